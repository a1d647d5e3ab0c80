package pipeline

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sort"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
)

const (
	// floatRankSamples calibration samples measure one unit, floatRankUnits units at
	// most are measured, those with the largest proxies.
	floatRankSamples = 12
	floatRankUnits   = 64
	// floatSamples calibration samples judge the whole.
	floatSamples = 64
	// floatTrials bounds how often the whole is made anew.
	floatTrials = 5
	// floatMACs is the largest share of the multiply-accumulates that may stay in
	// float: past it the result would be hardly faster than FP32.
	floatMACs = 0.3
)

// floating chooses which operators stay in float until the output reaches an SQNR.
type floating struct {
	*run
	ref *replay
}

// harm is what a unit does to the output when it alone is quantized.
type harm struct {
	search.Unit
	noise float64 // over signal
}

// keepFloat makes the model with the operators in FP32 that harm its output most,
// as few as bring it to req.MinSQNR on the calibration samples. It takes the place
// of rewrite.
func (r *run) keepFloat(ctx context.Context) error {
	r.reuse = newReuse()
	ref, err := r.lab.Open(ctx, r.m, nil, engine.Options{})
	if err != nil {
		return err
	}
	defer ref.Close()
	k := &floating{run: r, ref: &replay{Session: ref, kept: map[calib.SampleID]engine.Feeds{}}}
	done, first, err := k.try(ctx, nil)
	if err != nil {
		return err
	}
	got, kept, share, why := first, []harm(nil), 0.0, ""
	if first < r.req.MinSQNR {
		units, macs, err := k.rank(ctx)
		if err != nil {
			return err
		}
		for trial := 0; got < r.req.MinSQNR; trial++ {
			n := more(units, len(kept), noiseOf(got), noiseOf(r.req.MinSQNR))
			for n > len(kept) && shareOf(units[:n], macs) > floatMACs {
				n--
				why = fmt.Sprintf("more would leave over %.0f %% of the multiply-accumulates in float", 100*floatMACs)
			}
			if n > len(kept) && n == len(units) {
				n--
				why = "more would leave nothing to quantize"
			}
			if n == len(kept) || trial == floatTrials {
				break
			}
			kept, share = units[:n], shareOf(units[:n], macs)
			if done, got, err = k.try(ctx, kept); err != nil {
				return err
			}
			r.progress.say("keep operators in float", float64(trial+1)/floatTrials)
		}
	}
	r.adopt(done)
	note := fmt.Sprintf("SQNR %.1f dB on calibration samples, %.1f dB asked for", first, r.req.MinSQNR)
	names := 0
	if len(kept) > 0 {
		for _, u := range kept {
			names += len(u.Names)
		}
		note = fmt.Sprintf("%d operators with %.1f %% of the multiply-accumulates stay in FP32: SQNR %.1f dB on calibration samples instead of %.1f, %.1f dB asked for", names, 100*share, got, first, r.req.MinSQNR)
	}
	if got < r.req.MinSQNR {
		if why == "" {
			why = "no more operators would help"
		}
		r.rep.Warnings = append(r.rep.Warnings, fmt.Sprintf("the output's SQNR is %.1f dB on calibration samples where %.1f dB are asked for: %s", got, r.req.MinSQNR, why))
	}
	r.rep.Passes = append(r.rep.Passes, report.Pass{Name: "keep-float", Changed: names, Gain: note})
	return nil
}

// more returns how many units have to stay in float, at least one more than now,
// if noise adds up and what all others make in sum is what was measured.
func more(units []harm, now int, noise, want float64) int {
	var left float64
	for _, u := range units[now:] {
		left += u.noise
	}
	n, rest := now, left
	for n < len(units) && (n == now || noise*rest > want*left) {
		rest -= units[n].noise
		n++
	}
	return n
}

func noiseOf(sqnr float64) float64 { return math.Pow(10, -sqnr/10) }

// shareOf is the units' share of all multiply-accumulates.
func shareOf(units []harm, macs int64) float64 {
	var sum int64
	for _, u := range units {
		sum += u.MACs
	}
	return float64(sum) / float64(max(macs, 1))
}

// try makes the whole with some units in float and measures it.
func (k *floating) try(ctx context.Context, units []harm) (*run, float64, error) {
	cfg := k.req.Config
	var rules []quant.Rule
	for _, u := range units {
		for _, name := range u.Names {
			rules = append(rules, quant.Rule{Match: name, Precision: quant.PrecisionFP32})
		}
	}
	cfg.Rules = slices.Concat(rules, cfg.Rules) // one's own win
	f := k.fork(cfg)
	if err := f.rewrite(ctx); err != nil {
		return nil, 0, err
	}
	q, err := k.lab.Open(ctx, f.m, nil, engine.Options{})
	if err != nil {
		return nil, 0, err
	}
	defer q.Close()
	ds, err := k.openCalib()
	if err != nil {
		return nil, 0, fmt.Errorf("calibration data: %w", err)
	}
	defer ds.Close()
	res, err := eval.Compare(ctx, k.ref, q, ds, eval.Options{MaxSamples: floatSamples})
	if err != nil {
		return nil, 0, err
	}
	return f, res.SQNR, nil
}

// rank measures the units, the most harmful first, and returns the multiply-accumulates of all operators.
func (k *floating) rank(ctx context.Context) ([]harm, int64, error) {
	cfg := k.req.Config
	cfg.NoBiasCorrection = true // it belongs to the whole, not to one operator
	if cfg.Weights == quant.BRECQ {
		cfg.Weights = quant.GPTQ // so do blocks
	}
	f := k.fork(cfg)
	if err := f.choose(ctx); err != nil {
		return nil, 0, err
	}
	s := &sensitivity{run: f, out: &report.Sensitivity{}, ref: k.ref, data: func() (data.Dataset, error) { return f.openCalib() }}
	s.req.EvalSamples = floatRankSamples
	if err := s.proxies(); err != nil {
		return nil, 0, err
	}
	var macs int64
	for _, c := range f.plan.Cover(f.m, f.shapes()) {
		macs += c.MACs
	}
	units, ops := s.units()
	units = units[:min(len(units), floatRankUnits)]
	var out []harm
	for i, u := range units {
		res, err := s.loss(ctx, func(o *quant.Op) bool { return ops[i][o] })
		if err != nil {
			return nil, 0, fmt.Errorf("operator %q: %w", u.Names[0], err)
		}
		out = append(out, harm{u, noiseOf(res.SQNR)})
		k.progress.say("rank operators", float64(i+1)/float64(len(units)))
	}
	sort.SliceStable(out, func(a, b int) bool { return out[a].noise > out[b].noise })
	return out, macs, nil
}

// adopt makes what a fork has made r's own.
func (r *run) adopt(f *run) {
	r.req.Config = f.req.Config
	r.m, r.qdq, r.rules, r.plans, r.plan, r.evidence, r.insert, r.covered = f.m, f.qdq, f.rules, f.plans, f.plan, f.evidence, f.insert, f.covered
	r.choices, r.solved = f.choices, f.solved
	r.observable, r.roomy, r.rep.Memory.Predicted = f.observable, f.roomy, f.rep.Memory.Predicted
	r.rep.Operators, r.rep.Integer = f.rep.Operators, f.rep.Integer
	r.rep.Passes = append(r.rep.Passes, f.rep.Passes...)
	r.rep.Warnings = append(r.rep.Warnings, f.rep.Warnings...)
}

// MaxMinSQNR is the largest SQNR that can be asked for, in dB: beyond what 8 bits
// can give nothing but FP32 is left.
const MaxMinSQNR = 60

// CheckMinSQNR refuses an SQNR that cannot be measured or reached.
func (q Request) CheckMinSQNR() error {
	switch {
	case q.MinSQNR == 0:
		return nil
	case !(q.MinSQNR > 0 && q.MinSQNR <= MaxMinSQNR):
		return fmt.Errorf("%w: a least SQNR of %g dB: give more than 0 and at most %d dB, or 0 for none", quant.ErrConfig, q.MinSQNR, MaxMinSQNR)
	case q.Config.Scheme.HalfWeights():
		return fmt.Errorf("%w: a least SQNR keeps operators in FP32, and scheme %s has none to choose from: use scheme %s", quant.ErrConfig, q.Config.Scheme, quant.INT8)
	case q.Calib == "":
		return fmt.Errorf("%w: a least SQNR is measured on calibration samples: give %s", ErrNeedsCalibration, q.Words.calib())
	}
	if _, ok, err := OpenTable(q.Calib); ok && err == nil {
		return fmt.Errorf("%w: a least SQNR is measured on calibration samples, and a calibration table holds none: give the data", quant.ErrConfig)
	}
	return nil
}

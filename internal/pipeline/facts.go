package pipeline

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/fewbit/fewbit/internal/bare"

	"github.com/klauspost/cpuid/v2"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// describe fills the report's facts about model, recipe and machine.
func (r *run) describe(ctx context.Context) {
	name := r.req.Name
	if name == "" {
		name = filepath.Base(r.req.Model)
	}
	r.rep.Model = modelFacts(r.m, name)
	c := r.req.Config
	method, granularity := c.Details()
	r.rep.Recipe = report.Recipe{Scheme: c.Name(), Target: string(c.Target), Method: method, Granularity: string(granularity)}
	r.rep.Warnings = append(r.rep.Warnings, c.Unused()...)
	r.rep.Machine = r.machine(ctx)
}

// beginHash begins to hash a file.
func beginHash(ctx context.Context, path string) *beside[string] {
	return begin(ctx, func(ctx context.Context) (string, error) { return fileSHA256(ctx, path) })
}

func modelFacts(m *graph.Model, name string) report.Model {
	f := report.Model{Name: name, Opset: m.Opset(), Nodes: len(m.Graph.Nodes), Bytes: m.Bytes}
	for _, n := range m.Graph.Inits() {
		f.Parameters += m.Graph.Init(n).Len()
	}
	return f
}

func (r *run) describeResult(ctx context.Context, path string) error {
	sum, err := fileSHA256(ctx, path)
	if err != nil {
		return err
	}
	name := r.rep.Model.Name
	if r.req.Name == "" && r.req.Out != "" {
		name = filepath.Base(r.req.Out)
	}
	r.rep.Quantized = modelFacts(r.m, name)
	r.rep.Quantized.SHA256 = sum
	for _, suffix := range []string{"", ".data"} {
		if st, err := os.Stat(path + suffix); err == nil {
			r.rep.Quantized.Bytes += st.Size()
		}
	}
	r.rep.Quantized.Bytes -= r.m.Bytes // modelFacts counted the source's file
	return nil
}

// machine describes where this process runs.
func (p *Pipeline) machine(ctx context.Context) report.Machine {
	threads := p.Threads
	if threads == 0 {
		threads = engine.AvailableCPUs()
	}
	name := p.Engine.Name()
	if d, err := p.Engine.Probe(ctx); err == nil {
		name = d.Name
	}
	return report.ThisMachine(name, p.Version, threads)
}

// SaturatesU8S8 reports whether this CPU multiplies u8 by s8 through 16-bit
// sums that saturate (x86 with AVX2 but no VNNI), so that weights need 7 bits.
func SaturatesU8S8() bool {
	return runtime.GOARCH == "amd64" && !cpuid.CPU.Supports(cpuid.AVX512VNNI) && !cpuid.CPU.Supports(cpuid.AVXVNNI)
}

func fileSHA256(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", filepath.Base(path), bare.Error(err))
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 1<<20)
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", filepath.Base(path), bare.Error(err))
		}
	}
}

var nan = math.NaN()

// cover records, before the plan is written into the graph, which operators run in integers and what rule the others broke.
func (r *run) cover() {
	precision := map[string]quant.Precision{}
	for _, op := range r.plan.Ops {
		precision[op.Node.Outputs[0]] = op.Precision
	}
	for _, c := range r.plan.Cover(r.m, r.shapes()) {
		op := report.Operator{Name: c.Node.Name, Op: c.Node.Op, Integer: c.Integer, Rule: c.Rule, MACs: c.MACs, Precision: "fp32", SQNR: report.Num(nan), Cosine: report.Num(nan)}
		if p := r.rules[c.Node]; p == quant.PrecisionFP16 || p == quant.PrecisionBF16 {
			op.Precision = string(p)
		}
		if c.Integer {
			op.Precision = "int8"
			if r.plan.Config.Wide {
				op.Precision, op.Integer, op.Rule = string(quant.A16W8), false, "16-bit activations: ONNX Runtime's CPU engine multiplies in float what it reads from them"
			}
		}
		if precision[c.Node.Outputs[0]] == quant.PrecisionINT4 {
			op.Precision = "int4"
		}
		r.rep.Operators = append(r.rep.Operators, op)
		r.covered = append(r.covered, c.Node.Outputs[0])
	}
	r.rep.Integer = report.CountMACs(r.rep.Operators)
}

// shapes gives every input the mean size seen in calibration, or a default.
func (r *run) shapes() map[string][]int64 {
	shapes := map[string][]int64{}
	for _, v := range r.m.Graph.Inputs {
		dims := make([]int64, len(v.Dims))
		for i, d := range v.Dims {
			switch {
			case d.N >= 0:
				dims[i] = d.N
			case r.evidence != nil && i < len(r.evidence.dims[v.Name]):
				dims[i] = max(1, r.evidence.dims[v.Name][i]/int64(r.evidence.Samples()))
			case i == 0:
				dims[i] = 1
			default:
				dims[i] = defaultLength
			}
		}
		shapes[v.Name] = dims
	}
	return shapes
}

// defaultLength stands in for a variable length when nothing was calibrated:
// it weighs attention against projections in the share of integer work.
const defaultLength = 128

// receipt turns the calibration's facts and choices into the report's.
func (r *run) receipt() {
	if r.evidence == nil {
		return
	}
	ranges := map[string]calib.Range{}
	for t, c := range r.choices {
		if c.Smooth == nil {
			ranges[t] = c.Range
		}
	}
	table := r.evidence.Table(r.rep.Model.SHA256)
	rc, err := table.Receipt(ranges)
	out := &report.Calibration{Source: cmp.Or(r.req.CalibName, filepath.Base(r.req.Calib)), Samples: int64(rc.Samples), Duplicates: int64(rc.Duplicates), Tensors: len(rc.Tensors), Seconds: r.evidence.Seconds, Engine: r.evidence.Engine, Precision: string(r.evidence.Precision), EngineReason: r.evidence.Reason, Warnings: rc.Warnings}
	if err != nil {
		out.Warnings = append(out.Warnings, err.Error())
	}
	if out.EngineReason != "" {
		out.Warnings = append(out.Warnings, "calibrated on the CPU, not on the GPU: "+out.EngineReason)
	}
	var clipped, seen float64
	for _, name := range table.Names() {
		t := rc.Tensors[name]
		out.NaN += int64(t.NaN)
		out.Inf += int64(t.Inf)
		if t.Constant {
			out.Constant++
			out.ConstantNames = append(out.ConstantNames, name)
		}
		if t.Wide {
			out.LargeNames = append(out.LargeNames, name)
		}
		if t.Range != nil {
			clipped += t.ClippedShare * float64(t.Elements)
			seen += float64(t.Elements)
		}
	}
	if seen > 0 {
		out.Clipped = report.Num(clipped / seen)
	}
	r.rep.Calibration = out
	r.rep.Tensors = r.tensorChoices()
}

// plotBins is the number of bins of the histograms in reports.
const plotBins = 64

func (r *run) tensorChoices() []report.TensorChoice {
	readers := map[string]string{}
	for _, op := range r.plan.Ops {
		for _, x := range op.X {
			if readers[x] == "" {
				readers[x] = op.Node.Name
			}
		}
	}
	names := slices.Clone(r.plan.Tensors)
	for _, t := range sortedKeys(r.choices) { // measured when they run: chosen for their smoothing only
		if !slices.Contains(r.plan.Tensors, t) {
			names = append(names, t)
		}
	}
	var out []report.TensorChoice
	for _, t := range names {
		c := r.choices[t]
		if c == nil {
			continue
		}
		h := r.evidence.Histogram(t)
		seen, _ := h.MinMax()
		tc := report.TensorChoice{
			Name: t, Operator: readers[t], Method: c.Method, Type: c.Scheme.Type.String(), Granularity: "per-tensor",
			Lo: report.Num(c.Range.Lo), Hi: report.Num(c.Range.Hi), ObservedLo: report.Num(seen.Lo), ObservedHi: report.Num(seen.Hi),
			Scale: report.Num(c.Params.Scale), ZeroPoint: int(c.Params.Zero), Error: report.Num(nan), Why: c.Why,
		}
		if r.req.Config.Target.Native() && !slices.Contains(r.plan.Tensors, t) {
			tc.Granularity, tc.Scale, tc.ZeroPoint = "per-row", report.Num(nan), 0
		}
		if c.Smooth != nil {
			tc.Method = fmt.Sprintf("smooth %.1f, %s", c.Alpha, c.Method)
		}
		for _, m := range sortedKeys(c.Candidates) {
			e := nan
			if v, ok := c.Errors[m]; ok {
				e = v
			}
			if m == tc.Method {
				tc.Error = report.Num(e)
			}
			tc.Candidates = append(tc.Candidates, report.Candidate{Method: m, Lo: report.Num(c.Candidates[m].Lo), Hi: report.Num(c.Candidates[m].Hi), Error: report.Num(e)})
		}
		if c.Smooth == nil { // the thresholds of a smoothed tensor are not on this axis
			tc.Histogram = plotHistogram(h, seen)
		}
		out = append(out, tc)
	}
	return out
}

func plotHistogram(h *calib.Histogram, seen calib.Range) *report.Histogram {
	if !(seen.Hi > seen.Lo) {
		return nil
	}
	p := &report.Histogram{Lo: report.Num(seen.Lo), Hi: report.Num(seen.Hi), Counts: make([]int64, plotBins)}
	width := (float64(seen.Hi) - float64(seen.Lo)) / plotBins
	for _, c := range h.Cells() {
		i := int(((c.Lo+c.Hi)/2 - float64(seen.Lo)) / width)
		p.Counts[min(max(i, 0), plotBins-1)] += int64(c.Count)
	}
	return p
}

// operatorSamples is how many samples the error of every operator is taken over.
const operatorSamples = 16

// taps lists the tensors on which the operators of both models compare, empty where
// they cannot be observed.
func (r *run) taps() (taps []eval.Tap) {
	if len(r.plan.Ops) == 0 {
		return nil
	}
	if r.lab.limits != nil && !r.observable {
		r.rep.Warnings = append(r.rep.Warnings, "the error of single operators was not measured: the engine makes floats of all weights for it, which do not fit below "+r.req.Words.maxMemory())
		return nil
	}
	for _, op := range r.plan.Ops {
		if op.Kind != quant.Linear && op.Kind != quant.Conv && op.Kind != quant.Recurrent {
			continue
		}
		t := eval.Tap{Name: op.Node.Outputs[0], Ref: op.Out, Quant: op.Out}
		if op.QuantOut {
			t.Quant = r.insert.Dequantized[op.Out]
		} else if r.insert != nil && r.insert.Renamed[op.Out] != "" { // 4 bits have no Insert
			t.Quant = r.insert.Renamed[op.Out]
			if t.Name == t.Quant { // the operator's own output, which cover knew as it was
				t.Name = op.Out
			}
		}
		taps = append(taps, t)
	}
	return taps
}

// operators measures each operator's output against the float model's, on
// inputs that carry the error of all operators before it.
func (r *run) operators(ctx context.Context, taps []eval.Tap) error {
	for _, part := range pieces(taps, r.lab.tapLimit(), func(t eval.Tap) int64 { return 2 * r.lab.tapBytes(t.Ref) }) {
		if err := r.fidelities(ctx, part); err != nil {
			return err
		}
	}
	return nil
}

// fidelities measures the operators' outputs in taps.
func (r *run) fidelities(ctx context.Context, taps []eval.Tap) error {
	sessions, err := r.together([]string{"the float model", "the quantized model"}, []open{
		func() (engine.Session, error) { return r.lab.Open(ctx, r.float, refs(taps), engine.Options{}) },
		func() (engine.Session, error) { return r.openTapped(ctx, taps) },
	})
	if err != nil {
		return err
	}
	defer closeAll(sessions)
	ds, err := r.openEval()
	if err != nil {
		return err
	}
	defer ds.Close()
	res, err := eval.Compare(ctx, sessions[0], sessions[1], ds, eval.Options{Taps: taps, MaxSamples: operatorSamples, Output: r.m.Graph.Outputs[0].Name})
	if err != nil {
		return err
	}
	r.operatorErrors(res.Tensors)
	return nil
}

// operatorErrors puts what was measured beside the operators.
func (r *run) operatorErrors(all []eval.TensorFidelity) {
	at := map[string]eval.TensorFidelity{}
	for _, t := range all {
		at[t.Name] = t
	}
	for i := range r.rep.Operators {
		if t, ok := at[r.covered[i]]; ok {
			r.rep.Operators[i].SQNR, r.rep.Operators[i].Cosine = report.Num(t.SQNR), report.Num(t.Cosine)
		}
	}
}

package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// Progress is told what runs and how far it is, 0 to 1 within the phase.
type Progress func(phase string, frac float64)

func (p Progress) say(phase string, frac float64) {
	if p != nil {
		p(phase, frac)
	}
}

// Evidence is what one calibration run observed.
type Evidence struct {
	*calib.Collector
	rows map[string]*quant.Rows
	spec engine.IOSpec // of the whole model: what runs may be a part of it
	// dims sums the dimensions of the inputs over the samples.
	dims    map[string][]int64
	Seconds float64
	// Engine ran the model, Reason says why it was not the device asked for.
	Engine, Reason string
	// Precision of the model's products on the engine: FP32 or BF16.
	Precision Precision
}

var _ quant.Statistics = (*Evidence)(nil)

// Histogram implements quant.Statistics.
func (e *Evidence) Histogram(t string) *calib.Histogram {
	if s := e.Stats(t); s != nil {
		return s.Histogram()
	}
	return nil
}

// Threshold implements quant.Statistics.
func (e *Evidence) Threshold(t, method string, s calib.Scheme) (calib.Range, error) {
	st := e.Stats(t)
	if st == nil {
		return calib.Range{}, fmt.Errorf("%w: it was not observed", quant.ErrUncalibrated)
	}
	return st.Threshold(method, s)
}

// ChannelMax implements quant.Statistics.
func (e *Evidence) ChannelMax(t string) []float32 {
	if s := e.Stats(t); s != nil {
		return s.ChannelMax()
	}
	return nil
}

// Rows implements quant.Statistics.
func (e *Evidence) Rows(t string) *quant.Rows { return e.rows[t] }

// ErrCalibration: the calibration data cannot calibrate this model.
var ErrCalibration = errors.New("calibration failed")

// dropEvery is after how many samples the mapped weights are let go, so that
// resident memory does not grow with the words that the samples hold. Mapping
// BERT-base's again takes some milliseconds.
const dropEvery = 16

// Calibrate runs every sample of ds through m once and observes the tensors
// that the plan needs. Memory does not grow with the number of samples: values
// are counted while the engine still holds them. keepRows keeps a bounded sample
// of rows besides, on which output errors can be measured; a table has no use
// for them.
//
// With a Device in lab it happens there. What the device cannot do, or fails
// with, the engine does from the start, and the evidence says why.
func Calibrate(ctx context.Context, lab *Lab, m *graph.Model, p *quant.Plan, ds data.Dataset, keepRows bool, progress Progress) (*Evidence, error) {
	start := time.Now()
	c := newCalibration(lab, m, p, keepRows)
	reason := ""
	if lab.Device != nil {
		ev, err := c.run(ctx, ds, [][]string{c.taps}, onDevice, progress)
		var fault *deviceFault
		switch {
		case err == nil:
			ev.Seconds = time.Since(start).Seconds()
			return ev, nil
		case ctx.Err() != nil || !errors.As(err, &fault):
			return nil, err
		}
		reason = fault.Unwrap().Error()
		if err := ds.Reset(); err != nil {
			return nil, err
		}
	}
	ev, err := c.run(ctx, ds, c.lab.split(c.taps), onEngine, progress)
	if err != nil {
		return nil, err
	}
	ev.Seconds, ev.Reason = time.Since(start).Seconds(), reason
	return ev, nil
}

// calibration is what a run observes, wherever.
type calibration struct {
	lab   *Lab
	model *graph.Model // as far as it must run
	whole *graph.Model
	plan  *quant.Plan
	specs map[string]calib.Spec
	rows  map[string]int // width
	taps  []string       // observed values that are not inputs
	again bool           // another part has seen the samples, and the inputs, before
}

func newCalibration(lab *Lab, m *graph.Model, p *quant.Plan, keepRows bool) *calibration {
	c := &calibration{lab: lab, model: m, whole: m, plan: p, specs: map[string]calib.Spec{}, rows: map[string]int{}}
	for _, t := range p.Tensors {
		c.specs[t] = calib.Spec{MovingAverage: p.Config.Method == quant.MovingAverage}
	}
	for _, g := range p.Linears() {
		if x := g[0].X[0]; !p.InChain(x) {
			c.specs[x] = calib.Spec{ChannelMax: true, Axis: -1, MovingAverage: p.Config.Method == quant.MovingAverage}
			if keepRows {
				c.rows[x] = int(m.Graph.Init(g[0].W).Dims[g[0].InAxis])
			}
		}
	}
	inputs := map[string]bool{}
	for _, v := range m.Graph.Inputs {
		inputs[v.Name] = true
	}
	for _, t := range sortedKeys(c.specs) {
		if !inputs[t] {
			c.taps = append(c.taps, t)
		}
	}
	// What lies behind the last observed tensor need not run.
	if len(c.taps) > 0 {
		c.model = upTo(m, c.taps)
	}
	return c
}

// observer takes one sample after the other into the evidence that it was made
// with; all of them are in when finish returns.
type observer interface {
	observe(ctx context.Context, sample data.Sample, id calib.SampleID) error
	finish() error
	close()
}

// run takes all samples of ds into new evidence, once for each part of the taps.
func (c *calibration) run(ctx context.Context, ds data.Dataset, parts [][]string, open opener, progress Progress) (*Evidence, error) {
	ev := &Evidence{Collector: calib.NewCollector(c.lab.Threads, c.specs), rows: map[string]*quant.Rows{}, spec: SpecOf(c.whole), dims: map[string][]int64{}}
	for t, width := range c.rows {
		ev.rows[t] = quant.NewRows(width)
	}
	for i, taps := range parts {
		part := *c
		part.taps, part.again = taps, i > 0
		if len(parts) > 1 {
			part.model = upTo(c.whole, taps)
		}
		if part.again {
			if err := ds.Reset(); err != nil {
				return nil, err
			}
		}
		if err := part.pass(ctx, ds, ev, open, func(phase string, f float64) { progress.say(phase, (float64(i)+f)/float64(len(parts))) }); err != nil {
			return nil, err
		}
	}
	return ev, nil
}

// opener starts what observes.
type opener func(context.Context, *calibration, *Evidence) (observer, error)

// pass takes all samples of ds into ev.
func (c *calibration) pass(ctx context.Context, ds data.Dataset, ev *Evidence, open opener, progress Progress) error {
	mapped := weightBytes(c.model) > inlineMax // smaller weights are in a file that is read, not mapped
	o, err := open(ctx, c, ev)
	if err != nil {
		return err
	}
	defer o.close()
	total := ds.Len()
	var audit data.Audit
	read := 0
	for ; ; read++ {
		sample, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		audit.Add(sample)
		if err := engine.CheckFeeds(ev.spec, sample.Feeds); err != nil {
			return fmt.Errorf("sample %s: %w", sample.ID, err)
		}
		if err := o.observe(ctx, sample, calib.SampleHash(sample.Feeds)); err != nil {
			return fmt.Errorf("sample %s: %w", sample.ID, err)
		}
		if !c.again {
			ev.addDims(sample.Feeds)
		}
		progress.say("calibrate", float64(read+1)/float64(max(total, read+1)))
		if mapped && read%dropEvery == dropEvery-1 {
			dropMapped(c.lab.dir.path)
		}
	}
	if read == 0 {
		return fmt.Errorf("%w: %w", ErrCalibration, data.ErrEmpty)
	}
	if err := o.finish(); err != nil {
		return err
	}
	// One of several inputs may well be constant: a mask in floats.
	if err := audit.Err(); err != nil && (len(c.model.Graph.Inputs) == 1 || !errors.Is(err, data.ErrConstant)) {
		return fmt.Errorf("%w: %w", ErrCalibration, err)
	}
	return nil
}

// addDims sums the sizes of the inputs.
func (e *Evidence) addDims(feeds engine.Feeds) {
	for name, t := range feeds {
		if e.dims[name] == nil {
			e.dims[name] = make([]int64, len(t.Dims))
		}
		for i, d := range t.Dims {
			e.dims[name][i] += d
		}
	}
}

// onEngine observes what the engine hands over.
func onEngine(ctx context.Context, c *calibration, ev *Evidence) (observer, error) {
	s, precision, err := c.lab.openObserved(ctx, c.model, c.taps)
	if err != nil {
		return nil, err
	}
	ev.Engine, ev.Precision = c.lab.Engine.Name(), precision
	if d, err := c.lab.Engine.Probe(ctx); err == nil {
		ev.Engine = d.Name
	}
	return &tapped{ev: ev, s: s, taps: c.taps, again: c.again}, nil
}

// openObserved opens the float model, or a part of it, with the precision that it is
// observed in.
func (l *Lab) openObserved(ctx context.Context, m *graph.Model, taps []string) (s engine.Session, precision Precision, err error) {
	precision, bf16, err := l.Precision.resolve(l.Engine)
	if err != nil {
		return nil, "", err
	}
	if o := (engine.Options{ShrinkMemory: !fixedSizes(m)}); bf16 != nil {
		s, err = l.openBF16(ctx, bf16, m, taps, o)
	} else {
		s, err = l.Open(ctx, m, taps, o)
	}
	if err != nil {
		return nil, "", fmt.Errorf("open the model for calibration: %w", err)
	}
	return s, precision, nil
}

// fixedSizes reports whether all sizes of the inputs are known but that of the batch:
// then each run takes the memory of the one before, and giving it back in between only
// costs time.
func fixedSizes(m *graph.Model) bool {
	for _, in := range m.Graph.Inputs {
		if in.Dims == nil {
			return false
		}
		for _, d := range in.Dims[min(1, len(in.Dims)):] {
			if d.N < 0 {
				return false
			}
		}
	}
	return true
}

// tapped is a session whose inner tensors are outputs.
type tapped struct {
	ev    *Evidence
	s     engine.Session
	taps  []string
	again bool
}

func (t *tapped) finish() error { return nil }
func (t *tapped) close()        { t.s.Close() }

func (t *tapped) observe(ctx context.Context, sample data.Sample, id calib.SampleID) error {
	e := t.ev
	res, err := t.s.Run(ctx, only(t.s.Spec(), sample.Feeds), t.taps)
	if err != nil {
		return err
	}
	defer res.Close()
	seen := res.Tensors()
	all := make(engine.Feeds, len(seen)+len(sample.Feeds))
	for k, v := range seen {
		all[k] = v
	}
	ids := []calib.SampleID{id}
	if t.again {
		ids = nil
	} else {
		for k, v := range sample.Feeds {
			if e.Stats(k) != nil {
				all[k] = v
			}
		}
	}
	if err := e.Observe(ctx, all, ids...); err != nil {
		return err
	}
	key := binary.LittleEndian.Uint64(id[:8])
	for name, r := range e.rows {
		x := all[name]
		if x == nil {
			continue
		}
		v, err := x.F32()
		if err != nil {
			return err
		}
		if err := r.Observe(key, v); err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
	}
	return nil
}

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

// Calibrate runs every sample of ds through m once and observes the tensors
// that the plan needs. Memory does not grow with the number of samples: values
// are counted while the engine still holds them. keepRows keeps a bounded sample
// of rows besides, on which output errors can be measured; a table has no use
// for them.
func Calibrate(ctx context.Context, lab *Lab, m *graph.Model, p *quant.Plan, ds data.Dataset, keepRows bool, progress Progress) (*Evidence, error) {
	start := time.Now()
	ev := &Evidence{rows: map[string]*quant.Rows{}, spec: SpecOf(m), dims: map[string][]int64{}}
	specs := map[string]calib.Spec{}
	for _, t := range p.Tensors {
		specs[t] = calib.Spec{MovingAverage: p.Config.Method == quant.MovingAverage}
	}
	for _, g := range p.Linears() {
		if x := g[0].X[0]; !p.InChain(x) {
			specs[x] = calib.Spec{ChannelMax: true, Axis: -1, MovingAverage: p.Config.Method == quant.MovingAverage}
			if keepRows {
				ev.rows[x] = quant.NewRows(int(m.Graph.Init(g[0].W).Dims[g[0].InAxis]))
			}
		}
	}
	ev.Collector = calib.NewCollector(lab.Threads, specs)
	inputs := map[string]bool{}
	for _, v := range m.Graph.Inputs {
		inputs[v.Name] = true
	}
	var taps []string
	for _, t := range ev.Names() {
		if !inputs[t] {
			taps = append(taps, t)
		}
	}
	// What lies behind the last observed tensor need not run.
	if len(taps) > 0 {
		m = upTo(m, taps)
	}
	s, err := lab.Open(ctx, m, taps, engine.Options{ShrinkMemory: true})
	if err != nil {
		return nil, fmt.Errorf("open the model for calibration: %w", err)
	}
	defer s.Close()
	total := ds.Len()
	var audit data.Audit
	for n := 0; ; n++ {
		sample, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		audit.Add(sample)
		if err := ev.observe(ctx, s, sample, taps); err != nil {
			return nil, fmt.Errorf("sample %s: %w", sample.ID, err)
		}
		progress.say("calibrate", float64(n+1)/float64(max(total, n+1)))
	}
	if ev.Samples() == 0 {
		return nil, fmt.Errorf("%w: %w", ErrCalibration, data.ErrEmpty)
	}
	// One of several inputs may well be constant: a mask in floats.
	if err := audit.Err(); err != nil && (len(m.Graph.Inputs) == 1 || !errors.Is(err, data.ErrConstant)) {
		return nil, fmt.Errorf("%w: %w", ErrCalibration, err)
	}
	ev.Seconds = time.Since(start).Seconds()
	return ev, nil
}

func (e *Evidence) observe(ctx context.Context, s engine.Session, sample data.Sample, taps []string) error {
	id := calib.SampleHash(sample.Feeds)
	if err := engine.CheckFeeds(e.spec, sample.Feeds); err != nil {
		return err
	}
	res, err := s.Run(ctx, only(s.Spec(), sample.Feeds), taps)
	if err != nil {
		return err
	}
	defer res.Close()
	seen := res.Tensors()
	all := make(engine.Feeds, len(seen)+len(sample.Feeds))
	for k, v := range seen {
		all[k] = v
	}
	for k, v := range sample.Feeds {
		if e.Stats(k) != nil {
			all[k] = v
		}
	}
	if err := e.Observe(ctx, all, id); err != nil {
		return err
	}
	for name, t := range sample.Feeds {
		if e.dims[name] == nil {
			e.dims[name] = make([]int64, len(t.Dims))
		}
		for i, d := range t.Dims {
			e.dims[name][i] += d
		}
	}
	key := binary.LittleEndian.Uint64(id[:8])
	for name, r := range e.rows {
		t := all[name]
		if t == nil {
			continue
		}
		v, err := t.F32()
		if err != nil {
			return err
		}
		if err := r.Observe(key, v); err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
	}
	return nil
}

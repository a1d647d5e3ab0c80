package pipeline

import (
	"context"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
)

// equalizePass scales channels between convolutions so that one scale serves all
// of them better (quant.EqualGroups).
type equalizePass struct {
	lab      *Lab
	samples  func() (data.Dataset, error)
	progress Progress
}

var _ quant.Pass = (*equalizePass)(nil)

func (*equalizePass) Name() string { return "equalize" }

func (p *equalizePass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	groups, left := quant.EqualGroups(m)
	note := ""
	if len(left) > 0 {
		note = fmt.Sprintf("; %d stay, the first is %s", len(left), left[0])
	}
	if len(groups) == 0 {
		return quant.Stats{Note: "nothing to equalize" + note}, nil
	}
	peaks, err := p.peaks(ctx, m, groups)
	if err != nil {
		return quant.Stats{}, err
	}
	var before, after float64 // bits of the range that the channels' mean takes
	for i, e := range groups {
		f, err := e.Factors(m.Graph, peaks[i])
		if err != nil {
			return quant.Stats{}, err
		}
		b, a := filled(peaks[i], f)
		before, after = before+b/float64(len(groups)), after+a/float64(len(groups))
		if err := e.Apply(m.Graph, f); err != nil {
			return quant.Stats{}, err
		}
	}
	return quant.Stats{Changed: len(groups), Note: fmt.Sprintf("%d groups of tensors; a channel fills %.0f %% of its tensor's range, %.0f %% before%s", len(groups), 100*after, 100*before, note)}, nil
}

// equalize runs the pass where there are samples. It belongs to the float model,
// so that every form and precision made of it compares with the same tensors.
func (r *run) equalize(ctx context.Context) error {
	if r.req.Calib == "" || !r.req.Config.Equalize {
		return nil
	}
	if _, table, err := OpenTable(r.req.Calib); err != nil {
		return fmt.Errorf("calibration table: %w", err)
	} else if table {
		return fmt.Errorf("%w: equalization changes the model that the table was made of: give samples instead of a table, or leave it out", quant.ErrConfig)
	}
	return r.passes(ctx, &equalizePass{r.lab, r.openCalib, r.progress}, &absorbPass{r.lab, r.openCalib, r.progress})
}

// filled is the mean over channels of the share of the range that a channel takes,
// before and after it is multiplied by f.
func filled(peaks, f []float32) (before, after float64) {
	var top, topAfter float64
	for c, p := range peaks {
		top, topAfter = math.Max(top, float64(p)), math.Max(topAfter, float64(p*f[c]))
	}
	if top == 0 {
		return 1, 1
	}
	for c, p := range peaks {
		before += float64(p) / top / float64(len(peaks))
		after += float64(p*f[c]) / topAfter / float64(len(peaks))
	}
	return before, after
}

// peaks runs the samples and returns the largest magnitude of each channel over all
// tensors of each group.
func (p *equalizePass) peaks(ctx context.Context, m *graph.Model, groups []*quant.EqualGroup) ([][]float32, error) {
	var taps []string
	for _, e := range groups {
		taps = append(taps, e.Tensors...)
	}
	peaks := make([][]float32, len(groups))
	for i, e := range groups {
		peaks[i] = make([]float32, e.Channels)
	}
	parts := p.lab.split(taps)
	for i, part := range parts {
		progress := func(f float64) { p.progress.say("equalize", (float64(i)+f)/float64(len(parts))) }
		if err := p.lab.eachSample(ctx, upTo(m, part), part, p.samples, progress, func(_, values engine.Feeds) error {
			return observePeaks(values, groups, peaks)
		}); err != nil {
			return nil, err
		}
	}
	return peaks, nil
}

// observePeaks raises peaks to the values of one sample.
func observePeaks(values engine.Feeds, groups []*quant.EqualGroup, peaks [][]float32) error {
	for i, e := range groups {
		for _, name := range e.Tensors {
			if values[name] == nil { // another part's
				continue
			}
			if err := eachChannel(values, name, e.Channels, func(c int, x []float32) {
				for _, v := range x {
					if a := float32(math.Abs(float64(v))); a > peaks[i][c] {
						peaks[i][c] = a
					}
				}
			}); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachChannel calls f with the values of each channel (axis 1) of a tensor, sample
// by sample.
func eachChannel(values engine.Feeds, name string, channels int, f func(c int, x []float32)) error {
	t := values[name]
	x, err := t.F32()
	if err != nil {
		return err
	}
	if len(t.Dims) < 3 || int(t.Dims[1]) != channels {
		return fmt.Errorf("%w: tensor %q has shape %v where %d channels are expected", quant.ErrConfig, name, t.Dims, channels)
	}
	inner := 1
	for _, d := range t.Dims[2:] {
		inner *= int(d)
	}
	if inner == 0 {
		return nil
	}
	for at := 0; at+inner <= len(x); at += inner {
		f(at/inner%channels, x[at:at+inner])
	}
	return nil
}

// absorbPass moves what a channel never falls below from the bias before a Relu into
// the next convolution's (quant.AbsorbPairs).
type absorbPass struct {
	lab      *Lab
	samples  func() (data.Dataset, error)
	progress Progress
}

var _ quant.Pass = (*absorbPass)(nil)

func (*absorbPass) Name() string { return "absorb-biases" }

func (p *absorbPass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	pairs := quant.AbsorbPairs(m)
	if len(pairs) == 0 {
		return quant.Stats{Note: "no convolution without padding behind another and a Relu"}, nil
	}
	var taps []string
	seen := make([]*quant.ChannelMoments, len(pairs))
	for i, a := range pairs {
		taps, seen[i] = append(taps, a.Tensor), quant.NewChannelMoments(a.Channels)
	}
	err := p.lab.eachSample(ctx, upTo(m, taps), taps, p.samples, func(f float64) { p.progress.say("absorb biases", f) }, func(_, values engine.Feeds) error {
		for i, a := range pairs {
			if err := eachChannel(values, a.Tensor, a.Channels, seen[i].Observe); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return quant.Stats{}, err
	}
	var logs float64 // of what is left of the range
	done, channels := 0, 0
	for i, a := range pairs {
		amounts, before, after := seen[i].Amounts()
		if amounts == nil {
			continue
		}
		if err := a.Apply(m.Graph, amounts); err != nil {
			return quant.Stats{}, err
		}
		done++
		logs += math.Log(after / before)
		for _, c := range amounts {
			if c > 0 {
				channels++
			}
		}
	}
	note := fmt.Sprintf("no channel's bias widens the range of any of %d tensors", len(pairs))
	if done > 0 {
		note = fmt.Sprintf("%d channels of %d of %d tensors; the range of these is %.0f %% of what it was (geometric mean)", channels, done, len(pairs), 100*math.Exp(logs/float64(done)))
	}
	return quant.Stats{Changed: done, Note: note}, nil
}

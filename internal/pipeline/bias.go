package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// biasSamples is how many calibration samples the channel means are taken over.
const biasSamples = 32

// biasPass corrects the biases of convolutions one after the other, in graph
// order (sequential bias correction, Nagel et al. 2019, arXiv:1906.04721,
// section 4.2, with means measured instead of derived): to each channel it adds
// the mean of the float model's output minus the mean of the quantized model's,
// where all earlier corrections are already in. Transformers gain nothing from
// it (reference/quantization.md, section 9), so matrix products are left alone.
type biasPass struct {
	lab      *Lab
	plan     *quant.Plan
	choices  quant.Choices
	solved   *quant.Solved
	samples  func() (data.Dataset, error)
	progress Progress
}

var _ quant.Pass = (*biasPass)(nil)

func (b *biasPass) Name() string { return "bias-correction" }

func (b *biasPass) Run(ctx context.Context, m *graph.Model) (quant.Stats, error) {
	var convs []*quant.Op
	for _, op := range b.plan.Ops {
		if op.Kind == quant.Conv && m.Graph.Init(op.Bias) != nil {
			convs = append(convs, op)
		}
	}
	if len(convs) == 0 {
		return quant.Stats{Note: "no convolutions"}, nil
	}
	feeds, err := b.feeds(ctx)
	if err != nil {
		return quant.Stats{}, err
	}
	raw := make([]string, len(convs))
	for i, op := range convs {
		raw[i] = op.Node.Outputs[0]
	}
	want := map[string][]float64{}
	for _, part := range b.lab.split(raw) {
		means, err := b.means(ctx, m, part, feeds)
		if err != nil {
			return quant.Stats{}, err
		}
		maps.Copy(want, means)
	}
	q := m.Clone()
	ins := &quant.Insert{Plan: b.plan.On(q), Choices: b.choices, Solved: b.solved}
	if _, err := ins.Run(ctx, q); err != nil {
		return quant.Stats{}, err
	}
	var shifts float64
	for i, op := range convs {
		got, err := b.means(ctx, upTo(q, raw[i:i+1]), raw[i:i+1], feeds)
		if err != nil {
			return quant.Stats{}, fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
		shift, err := correct(m.Graph, q.Graph, ins, op, want[raw[i]], got[raw[i]])
		if err != nil {
			return quant.Stats{}, err
		}
		shifts += shift
		b.progress.say("bias correction", float64(i+1)/float64(len(convs)))
	}
	return quant.Stats{Changed: len(convs), Note: fmt.Sprintf("%d biases; the quantized means were off by %.2g %% of the float means", len(convs), 100*shifts/float64(len(convs)))}, nil
}

func (b *biasPass) feeds(ctx context.Context) ([]engine.Feeds, error) {
	ds, err := b.samples()
	if err != nil {
		return nil, err
	}
	defer ds.Close()
	var all []engine.Feeds
	for len(all) < biasSamples {
		s, err := ds.Next(ctx)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		all = append(all, s.Feeds)
	}
	return all, nil
}

// means returns the mean over samples, batch and space of each channel (axis 1)
// of the named tensors.
func (b *biasPass) means(ctx context.Context, m *graph.Model, names []string, feeds []engine.Feeds) (map[string][]float64, error) {
	s, err := b.lab.Open(ctx, m, names, engine.Options{})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	sums := map[string][]float64{}
	counts := map[string]float64{}
	for _, f := range feeds {
		r, err := s.Run(ctx, only(s.Spec(), f), names)
		if err != nil {
			return nil, err
		}
		for name, t := range r.Tensors() {
			x, err := t.F32()
			if err != nil {
				r.Close()
				return nil, err
			}
			if sums[name] == nil {
				sums[name] = make([]float64, t.Dims[1])
			}
			inner := 1
			for _, d := range t.Dims[2:] {
				inner *= int(d)
			}
			for i, c := 0, 0; i+inner <= len(x); i, c = i+inner, (c+1)%int(t.Dims[1]) {
				var sum float64
				for _, v := range x[i : i+inner] {
					sum += float64(v)
				}
				sums[name][c] += sum
			}
			counts[name] += float64(len(x)) / float64(t.Dims[1])
		}
		r.Close()
	}
	for name, s := range sums {
		for c := range s {
			s[c] /= counts[name]
		}
	}
	return sums, nil
}

// only returns the feeds that the (possibly cut) model still has as inputs.
func only(spec engine.IOSpec, f engine.Feeds) engine.Feeds {
	out := engine.Feeds{}
	for _, in := range spec.Inputs {
		out[in.Name] = f[in.Name]
	}
	return out
}

// upTo returns a view of m that computes the given values and nothing else. It
// has the inputs that they need.
func upTo(m *graph.Model, values []string) *graph.Model {
	c := m.Clone()
	c.Graph.Outputs = nil
	for _, v := range values {
		c.Graph.Outputs = append(c.Graph.Outputs, &graph.Value{Name: v, Type: tensor.Float32})
	}
	c.Graph.Prune()
	ix := c.Graph.Index()
	inputs := c.Graph.Inputs[:0]
	for _, in := range c.Graph.Inputs {
		if len(ix.Uses(in.Name)) > 0 || ix.Captured(in.Name) {
			inputs = append(inputs, in)
		}
	}
	c.Graph.Inputs = inputs
	return c
}

// correct adds want-got to the float bias in g and to its INT32 form in the
// quantized model q. It returns the mean |shift| relative to the mean |want|.
func correct(g, q *graph.Graph, ins *quant.Insert, op *quant.Op, want, got []float64) (float64, error) {
	b, err := g.Init(op.Bias).F32()
	if err != nil {
		return 0, err
	}
	fixed := make([]float32, len(b))
	var moved, size float64
	for i := range b {
		d := want[i] - got[i]
		fixed[i] = b[i] + float32(d)
		moved += abs(d)
		size += abs(want[i])
	}
	t := tensor.From(fixed, g.Init(op.Bias).Dims...)
	g.SetInit(op.Bias, t)
	ins.Rebias(q, op.Bias, fixed)
	if size == 0 {
		return 0, nil
	}
	return moved / size, nil
}

func abs(x float64) float64 {
	if x < 0 {
		return -x
	}
	return x
}

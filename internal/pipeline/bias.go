package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

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
	codes    int64 // bytes of codes that are held between two convolutions
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
		means, err := b.means(ctx, m, part, nil, feeds, nil)
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
	front := newFrontier(q, feeds, b.codes)
	var shifts float64
	for i, op := range convs {
		part, made := front.part(raw[i], raw[i+1:])
		got, err := b.means(ctx, part, raw[i:i+1], made, front.held, front.keep)
		if err != nil {
			return quant.Stats{}, fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
		shift, err := correct(m.Graph, q.Graph, ins, op, want[raw[i]], got[raw[i]])
		if err != nil {
			return quant.Stats{}, err
		}
		shifts += shift
		front.advance()
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
// of the named tensors, and hands the values of more to keep, of some samples at a
// time. Those are valid during the call.
func (b *biasPass) means(ctx context.Context, m *graph.Model, names, more []string, feeds []engine.Feeds, keep func(sample int, values engine.Feeds)) (map[string][]float64, error) {
	// Samples beside each other rather than threads within one: the operators of a
	// part are small.
	runs := min(b.lab.atOnce(), len(feeds))
	s, err := b.lab.Open(ctx, m, slices.Concat(names, more), engine.Options{Threads: max(1, b.lab.threads()/max(1, runs))})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	planes, channels, counts := make([]map[string][]float64, len(feeds)), map[string]int64{}, map[string]float64{}
	var mu sync.Mutex
	one := func(i int) error {
		r, err := s.Run(ctx, only(s.Spec(), feeds[i]), slices.Concat(names, more))
		if err != nil {
			return err
		}
		defer r.Close()
		values, sums := r.Tensors(), map[string][]float64{}
		for _, name := range names {
			t := values[name]
			x, err := t.F32()
			if err != nil {
				return err
			}
			sums[name] = planeSums(x, t.Dims)
			mu.Lock()
			channels[name] = t.Dims[1]
			counts[name] += float64(len(x)) / float64(t.Dims[1])
			mu.Unlock()
		}
		planes[i] = sums
		if len(more) > 0 {
			keep(i, values)
		}
		return nil
	}
	if err := eachOf(len(feeds), runs, one); err != nil {
		return nil, err
	}
	out := map[string][]float64{}
	for _, name := range names {
		sums := make([]float64, channels[name])
		for _, p := range planes { // in the order of the samples, whoever ran them
			for j, v := range p[name] {
				sums[j%len(sums)] += v
			}
		}
		for c := range sums {
			sums[c] /= counts[name]
		}
		out[name] = sums
	}
	return out, nil
}

// planeSums returns the sum of each plane of x [batch, channels, space...].
func planeSums(x []float32, dims []int64) []float64 {
	inner := 1
	for _, d := range dims[2:] {
		inner *= int(d)
	}
	out := make([]float64, len(x)/max(inner, 1))
	for i := range out {
		var sum float64
		for _, v := range x[i*inner : (i+1)*inner] {
			sum += float64(v)
		}
		out[i] = sum
	}
	return out
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
func upTo(m *graph.Model, values []string) *graph.Model { return between(m, nil, values) }

// between is upTo where the values known, each the only output of its operator, are
// given: those that are needed are inputs too.
func between(m *graph.Model, known map[string]*graph.Value, values []string) *graph.Model {
	c := m.Clone()
	c.Graph.Outputs = nil
	for _, v := range values {
		c.Graph.Outputs = append(c.Graph.Outputs, &graph.Value{Name: v, Type: tensor.Float32})
	}
	c.Graph.Nodes = slices.DeleteFunc(c.Graph.Nodes, func(n *graph.Node) bool { return known[n.Outputs[0]] != nil })
	for _, name := range sortedKeys(known) {
		c.Graph.Inputs = append(c.Graph.Inputs, known[name])
	}
	c.Graph.Prune()
	ix := c.Graph.Index()
	c.Graph.Inputs = slices.DeleteFunc(c.Graph.Inputs, func(in *graph.Value) bool {
		return len(ix.Uses(in.Name)) == 0 && !ix.Captured(in.Name)
	})
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

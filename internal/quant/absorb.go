package quant

import (
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Absorbing high biases (Nagel et al. 2019, arXiv:1906.04721, section 4.1): where a
// convolution's output y never falls below c > 0, a Relu behind it does nothing,
//
//	W2 relu(y) + b2 = W2 relu(y - c) + (b2 + W2 c)
//
// so that c goes from the first bias into the next one. A quantized tensor's range
// contains 0, and what lies between 0 and c is lost to all of its channels.
//
// The paper takes c = max(0, beta - 3 gamma) from the batch normalization before;
// here mean and deviation are measured, and c is not above the smallest value that
// was seen either. Of that a channel gives only what lowers the tensor's range.

// absorbSigmas is how many deviations below the mean count as never reached.
const absorbSigmas = 3

// AbsorbPair is a convolution, whose output only a Relu reads, and the convolutions
// without padding that alone read what the Relu gives.
type AbsorbPair struct {
	// Tensor is the first one's output; Channels is the size of its axis 1.
	Tensor   string
	Channels int
	maker    *graph.Node
	readers  []*graph.Node
}

// AbsorbPairs lists the pairs of m, in graph order. Padding would add zeros where c
// is meant.
func AbsorbPairs(m *graph.Model) (pairs []*AbsorbPair) {
	g, ix := m.Graph, m.Graph.Index()
	for _, n := range g.Nodes {
		if !n.Is("Conv") || !plainConv(g, ix, n) || g.Init(n.In(2)) == nil {
			continue
		}
		relu := ix.Only(n.Outputs[0])
		if relu == nil || !relu.Is("Relu") || ix.IsOutput(relu.Outputs[0]) || ix.Captured(relu.Outputs[0]) {
			continue
		}
		p := &AbsorbPair{Tensor: n.Outputs[0], Channels: int(g.Init(n.In(1)).Dims[0]), maker: n}
		for _, u := range ix.Uses(relu.Outputs[0]) {
			p.readers = append(p.readers, u.Node)
		}
		if len(p.readers) > 0 && !slices.ContainsFunc(p.readers, func(r *graph.Node) bool { return !p.takes(g, ix, r, relu.Outputs[0]) }) {
			pairs = append(pairs, p)
		}
	}
	return pairs
}

// takes reports whether r is a convolution of x that can take the bias over.
func (p *AbsorbPair) takes(g *graph.Graph, ix *graph.Index, r *graph.Node, x string) bool {
	if !r.Is("Conv") || !plainConv(g, ix, r) || r.In(0) != x || g.Init(r.In(2)) == nil {
		return false
	}
	if pad := r.Str("auto_pad", "NOTSET"); pad != "NOTSET" && pad != "VALID" || slices.ContainsFunc(r.Ints("pads"), func(n int64) bool { return n != 0 }) {
		return false
	}
	return g.Init(r.In(1)).Dims[1]*r.Int("group", 1) == int64(p.Channels)
}

// ChannelMoments is what was seen in each channel of a tensor.
type ChannelMoments struct {
	Min, Max    []float32
	sum, square []float64
	count       []int64
}

// NewChannelMoments returns those of no value.
func NewChannelMoments(channels int) *ChannelMoments {
	return &ChannelMoments{make([]float32, channels), make([]float32, channels), make([]float64, channels), make([]float64, channels), make([]int64, channels)}
}

// Observe adds values of channel c.
func (s *ChannelMoments) Observe(c int, values []float32) {
	for _, v := range values {
		if s.count[c] == 0 {
			s.Min[c], s.Max[c] = v, v
		}
		s.Min[c], s.Max[c] = min(s.Min[c], v), max(s.Max[c], v)
		s.sum[c] += float64(v)
		s.square[c] += float64(v) * float64(v)
		s.count[c]++
	}
}

// below is what the channel is taken never to fall below, at least 0.
func (s *ChannelMoments) below(c int) float64 {
	if s.count[c] == 0 {
		return 0
	}
	n := float64(s.count[c])
	mean := s.sum[c] / n
	deviation := math.Sqrt(max(0, s.square[c]/n-mean*mean))
	return max(0, min(mean-absorbSigmas*deviation, float64(s.Min[c])))
}

// Amounts is what each channel gives up, and the tensor's largest value after the
// Relu, before and after that; nil where it would not fall.
func (s *ChannelMoments) Amounts() (amounts []float32, before, after float64) {
	for c := range s.Max {
		top := float64(s.Max[c])
		before, after = max(before, top), max(after, top-s.below(c))
	}
	if !(after < before) || math.IsInf(before, 0) {
		return nil, before, before
	}
	amounts = make([]float32, len(s.Max))
	for c := range amounts {
		amounts[c] = float32(min(s.below(c), max(0, float64(s.Max[c])-after)))
	}
	return amounts, before, after
}

// Apply takes amounts from the bias of the pair's first convolution and gives what
// its readers make of them to theirs.
func (p *AbsorbPair) Apply(g *graph.Graph, amounts []float32) error {
	if len(amounts) != p.Channels {
		return fmt.Errorf("%w: %d amounts for %d channels of %q", ErrConfig, len(amounts), p.Channels, p.Tensor)
	}
	change := func(name string, by func(b []float64)) error {
		t := g.Init(name)
		v, err := t.F32()
		if err != nil {
			return err
		}
		wide := make([]float64, len(v))
		for i, x := range v {
			wide[i] = float64(x)
		}
		by(wide)
		out := make([]float32, len(v))
		for i, x := range wide {
			out[i] = float32(x)
		}
		if err := checkFinite(out); err != nil {
			return fmt.Errorf("absorb into %q: %w", name, err)
		}
		g.SetInit(name, tensor.From(out, t.Dims...))
		return nil
	}
	for _, r := range p.readers {
		t := g.Init(r.In(1))
		w, err := t.F32()
		if err != nil {
			return err
		}
		each := len(w) / int(t.Dims[0]) // of an output
		if err := change(r.In(2), func(b []float64) {
			inChannels(t.Dims, int(r.Int("group", 1)), func(i, c int) { b[i/each] += float64(w[i]) * float64(amounts[c]) })
		}); err != nil {
			return err
		}
	}
	return change(p.maker.In(2), func(b []float64) {
		for c := range b {
			b[c] -= float64(amounts[c])
		}
	})
}

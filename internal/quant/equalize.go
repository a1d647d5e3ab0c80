package quant

import (
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1):
// channel i of a tensor between convolutions is multiplied by t_i, with the
// weights that make it, and the weights that read it are divided by t_i. It
// holds only where all that lies between is positively homogeneous and works
// channel by channel: f(t x) = t f(x).
//
// The paper scales so that both weights get the range sqrt(r1 r2), for one scale a
// weight. With one scale a channel the range of the weights that make the tensor
// is of no account; what one scale serves all channels of is the tensor. So the
// channels are scaled half the way, on a log scale, to one range of the tensor:
// t_i = r_i^-1/2, r_i the largest magnitude that calibration sees in channel i.
// The full way leaves the weights that read quiet channels no resolution.
const (
	// equalizeMost bounds how much a channel is scaled relative to the one that is
	// scaled least, so that one that calibration hardly saw is not blown up.
	equalizeMost = 32
	// equalizeChannels is the least number of channels that are worth it.
	equalizeChannels = 2
)

// homogeneous are the operators that equalization passes: input 0 alone is data,
// and f(t x) = t f(x) by channel for t > 0.
var homogeneous = map[string]bool{"Relu": true, "LeakyRelu": true, "MaxPool": true, "AveragePool": true, "GlobalAveragePool": true, "GlobalMaxPool": true, "Identity": true}

// EqualGroup is some tensors whose channels are scaled together: a convolution's
// output and what follows by homogeneous operators, sums of such tensors included.
type EqualGroup struct {
	// Tensors are all of them, in graph order; Channels is the size of axis 1.
	Tensors  []string
	Channels int
	makers   []*graph.Node // convolutions that write a member
	readers  []*graph.Node // convolutions that read one
	why      string        // what stands against it
}

// EqualGroups lists what can be equalized, and for people what could not and why.
func EqualGroups(m *graph.Model) (groups []*EqualGroup, left []string) {
	g, ix := m.Graph, m.Graph.Index()
	of := map[string]*EqualGroup{}
	var all []*EqualGroup
	join := func(a, b *EqualGroup) *EqualGroup {
		if a == b {
			return a
		}
		if a.Channels != b.Channels && a.why == "" {
			a.why = fmt.Sprintf("it sums %d and %d channels", a.Channels, b.Channels)
		}
		if a.why == "" {
			a.why = b.why
		}
		a.Tensors, a.makers, a.readers = append(a.Tensors, b.Tensors...), append(a.makers, b.makers...), append(a.readers, b.readers...)
		for _, t := range b.Tensors {
			of[t] = a
		}
		b.Tensors = nil
		return a
	}
	refuse := func(e *EqualGroup, f string, args ...any) {
		if e != nil && e.why == "" {
			e.why = fmt.Sprintf(f, args...)
		}
	}
	for _, n := range g.Nodes {
		switch {
		case n.Is("Conv") && plainConv(g, ix, n):
			e := &EqualGroup{Tensors: []string{n.Outputs[0]}, Channels: int(g.Init(n.In(1)).Dims[0]), makers: []*graph.Node{n}}
			of[n.Outputs[0]] = e
			all = append(all, e)
			if x := of[n.In(0)]; x != nil {
				x.readers = append(x.readers, n)
			}
			for _, in := range n.Inputs[1:] {
				refuse(of[in], "%s reads it as a weight", n.Name)
			}
		case n.Domain == graph.DomainONNX && homogeneous[n.Op] && of[n.In(0)] != nil && len(n.Outputs) == 1:
			e := of[n.In(0)]
			e.Tensors = append(e.Tensors, n.Outputs[0])
			of[n.Outputs[0]] = e
		case n.Is("Add") && of[n.In(0)] != nil && of[n.In(1)] != nil:
			e := join(of[n.In(0)], of[n.In(1)])
			e.Tensors = append(e.Tensors, n.Outputs[0])
			of[n.Outputs[0]] = e
		default:
			why := "is not positively homogeneous by channel"
			if n.Is("Conv") {
				why = "has no weight or bias of its own"
			}
			for _, in := range n.Inputs {
				refuse(of[in], "%s %s %s", n.Op, n.Name, why)
			}
		}
	}
	for _, e := range all {
		if len(e.Tensors) == 0 {
			continue
		}
		for _, t := range e.Tensors {
			if len(e.readers) > 0 && (ix.IsOutput(t) || ix.Captured(t)) {
				refuse(e, "%s is read from outside", t)
			}
		}
		switch {
		case e.why != "":
			left = append(left, fmt.Sprintf("%s: %s", e.Tensors[0], e.why))
		case len(e.readers) > 0 && e.Channels >= equalizeChannels:
			groups = append(groups, e)
		}
	}
	return groups, left
}

// plainConv reports whether the weight and bias of n are constants of its own.
func plainConv(g *graph.Graph, ix *graph.Index, n *graph.Node) bool {
	if len(n.Inputs) < 2 {
		return false
	}
	for i, name := range n.Inputs[1:] {
		if name == "" {
			continue
		}
		t := g.Init(name)
		if t == nil || t.Type != tensor.Float32 || len(ix.Uses(name)) != 1 || ix.Captured(name) || ix.IsOutput(name) || i == 0 && len(t.Dims) < 3 {
			return false
		}
	}
	w, group := g.Init(n.In(1)), n.Int("group", 1)
	if w.Len() == 0 || group < 1 || w.Dims[0]%group != 0 {
		return false
	}
	b := g.Init(n.In(2))
	return b == nil || b.Len() == w.Dims[0]
}

// inChannels calls f for every element of a convolution's weight with the input
// channel that it multiplies.
func inChannels(dims []int64, groups int, f func(i, channel int)) {
	outs, ins, inner := int(dims[0]), int(dims[1]), 1
	for _, d := range dims[2:] {
		inner *= int(d)
	}
	for o := range outs {
		first := o / (outs / groups) * ins
		for c := range ins {
			at := (o*ins + c) * inner
			for i := at; i < at+inner; i++ {
				f(i, first+c)
			}
		}
	}
}

// Factors returns what each channel is multiplied by, from its largest magnitude:
// t_i = r_i^-1/2 but for a factor of the tensor. A channel that was never active
// follows the median.
func (e *EqualGroup) Factors(g *graph.Graph, peaks []float32) ([]float32, error) {
	if len(peaks) != e.Channels {
		return nil, fmt.Errorf("%w: %d channels were observed where %q has %d", ErrConfig, len(peaks), e.Tensors[0], e.Channels)
	}
	for _, n := range e.readers {
		if t := g.Init(n.In(1)); int(t.Dims[1])*int(n.Int("group", 1)) != e.Channels {
			return nil, fmt.Errorf("%w: %s reads %d channels of %d", ErrConfig, n.Name, int(t.Dims[1])*int(n.Int("group", 1)), e.Channels)
		}
	}
	logs := make([]float64, e.Channels)
	var known []float64
	for c := range logs {
		if r := float64(peaks[c]); r > 0 && !math.IsInf(r, 0) {
			logs[c] = -math.Log(r) / 2
			known = append(known, logs[c])
		} else {
			logs[c] = math.NaN()
		}
	}
	out := make([]float32, e.Channels)
	if len(known) == 0 {
		for c := range out {
			out[c] = 1
		}
		return out, nil
	}
	slices.Sort(known)
	middle, reach := known[len(known)/2], math.Log(equalizeMost)/2
	for c, l := range logs {
		if math.IsNaN(l) {
			l = middle
		}
		out[c] = float32(math.Exp(min(max(l-middle, -reach), reach)))
	}
	return out, nil
}

// Apply scales the weights and biases that make the group by f and divides those
// that read it. The model computes what it did, but for rounding.
func (e *EqualGroup) Apply(g *graph.Graph, f []float32) error {
	change := func(name string, by func(v []float32, dims []int64)) error {
		t := g.Init(name)
		w, err := t.F32()
		if err != nil {
			return err
		}
		v := slices.Clone(w)
		by(v, t.Dims)
		if err := checkFinite(v); err != nil {
			return fmt.Errorf("equalize %q: %w", name, err)
		}
		g.SetInit(name, tensor.From(v, t.Dims...))
		return nil
	}
	for _, n := range e.makers {
		for _, name := range n.Inputs[1:] {
			if name == "" {
				continue
			}
			if err := change(name, func(v []float32, _ []int64) {
				inner := len(v) / len(f)
				for i := range v {
					v[i] *= f[i/inner]
				}
			}); err != nil {
				return err
			}
		}
	}
	for _, n := range e.readers {
		if err := change(n.In(1), func(v []float32, dims []int64) {
			inChannels(dims, int(n.Int("group", 1)), func(i, c int) { v[i] /= f[c] })
		}); err != nil {
			return err
		}
	}
	return nil
}

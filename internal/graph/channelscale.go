package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// FoldChannelScales folds each multiplication by a constant for every channel into the product
// before it, and returns how many it folded: layer scale, as DINOv2, BEiT and ConvNeXt have it
// behind attention and feed-forward.
//
//	x -> MatMul W [-> Add b] [-> Transpose] -> Mul c        W' = W*c by column;  b' = b*c
//
// in float64, rounded once. W, b and c are constants, and what lies between is read by the next
// operator alone, W by its product alone: a copy for each reader would make the file grow. One
// number for all channels stays where it is, and so does a factor that is not finite or takes a
// weight beyond what its type holds.
func FoldChannelScales(m *Model) int {
	f := &scaleFolder{bnFolder: bnFolder{m: m, ix: m.Graph.Index(), names: m.Graph.Namer()}}
	gone := map[*Node]bool{}
	for _, n := range m.Graph.Nodes {
		if n.Is("Mul") && len(n.Attrs) == 0 && len(n.Inputs) == 2 && len(n.Outputs) == 1 && !m.isLocal(n) && (f.fold(n, 0) || f.fold(n, 1)) {
			gone[n] = true
		}
	}
	m.Graph.dropNodes(gone)
	m.Graph.dropUnread(f.stale)
	return len(gone)
}

type scaleFolder struct{ bnFolder }

// fold reports whether it folded n, whose input i is the constant: what was before n gives its
// result then.
func (f *scaleFolder) fold(n *Node, i int) bool {
	inits := f.m.Graph.inits
	c := inits[n.Inputs[i]]
	behind, factor := channelFactors(c) // how many dimensions are behind the channels
	if factor == nil {
		return false
	}
	x := n.Inputs[1-i]
	chain := []*Node{f.before(n, x)} // from n back to the product
	if t := chain[0]; t != nil && t.Is("Transpose") {
		perm := t.Ints("perm")
		rank := len(perm)
		if len(c.Dims) > rank || perm[rank-1-behind] != int64(rank-1) {
			return false
		}
		chain = append(chain, f.before(t, t.In(0)))
	} else if behind > 0 || len(c.Dims) > 1 && len(f.dims(x)) < len(c.Dims) { // the result would have more dimensions
		return false
	}
	add, side := chain[len(chain)-1], -1
	var bias []float64
	if add != nil && add.Is("Add") && len(add.Attrs) == 0 && len(add.Inputs) == 2 {
		if side = 0; inits[add.Inputs[0]] == nil {
			side = 1
		}
		chain = append(chain, f.before(add, add.Inputs[1-side]))
	}
	p := chain[len(chain)-1]
	if p == nil || !p.Is("MatMul") {
		return false
	}
	w := inits[p.In(1)]
	if w == nil || len(w.Dims) != 2 || !w.Type.IsFloat() || w.Dims[1] != int64(len(factor)) || len(f.ix.uses[p.In(1)]) != 1 || f.ix.outputs[p.In(1)] || f.ix.captured[p.In(1)] {
		return false
	}
	wt := rounded(scaled(w, 1, factor), w.Type, w.Dims...)
	if wt == nil {
		return false
	}
	f.stale = append(f.stale, n.Inputs[i])
	if side >= 0 {
		var ok bool
		if bias, ok = f.bias(add.Inputs[side], w.Dims[1], w.Type); !ok {
			return false
		}
		for j := range bias {
			bias[j] *= factor[j]
		}
		dims := []int64{w.Dims[1]}
		if d := inits[add.Inputs[side]].Dims; len(d) > 1 {
			dims = append(slices.Repeat([]int64{1}, len(d)-1), dims...)
		}
		bt := rounded(bias, w.Type, dims...)
		if bt == nil {
			return false
		}
		f.stale = append(f.stale, add.Inputs[side])
		f.set(add, side, bt, "")
	}
	f.set(p, 1, wt, "")
	f.rename(chain, n.Outputs[0])
	return true
}

// before returns the operator that makes value, which n alone reads, or nil.
func (f *scaleFolder) before(n *Node, value string) *Node {
	p := f.ix.producer[value]
	if p == nil || p.Domain != DomainONNX || f.m.isLocal(p) || len(p.Outputs) != 1 || f.ix.Only(value) != n {
		return nil
	}
	return p
}

func (f *scaleFolder) dims(value string) []Dim {
	if f.shapes == nil {
		f.shapes = infer(f.m, nil, false)
	}
	return f.shapes.of(value).Dims
}

// rename gives the first operator of chain result y, and fresh names to what lies between:
// values that are not those of the model must not be compared with them by name.
func (f *scaleFolder) rename(chain []*Node, y string) {
	for i, p := range chain {
		old := p.Outputs[0]
		delete(f.m.Graph.Info, old)
		delete(f.ix.producer, old)
		name := y
		if i > 0 {
			name = f.names.Name(old + "_scaled")
			after := chain[i-1]
			after.Inputs = slices.Clone(after.Inputs)
			after.Inputs[slices.Index(after.Inputs, old)] = name
			f.ix.uses[name] = f.ix.uses[old]
		}
		p.Outputs = []string{name}
		f.ix.producer[name] = p
	}
}

// channelFactors returns the elements of a constant of which one dimension alone is more than 1,
// and how many dimensions follow it.
func channelFactors(c *tensor.Tensor) (behind int, factor []float64) {
	axis := -1
	if c == nil || !c.Type.IsFloat() {
		return 0, nil
	}
	for i, d := range c.Dims {
		if d != 1 {
			if axis >= 0 {
				return 0, nil
			}
			axis = i
		}
	}
	if axis < 0 {
		return 0, nil
	}
	factor = float64s(c)
	if slices.ContainsFunc(factor, func(v float64) bool { return !finite(v) }) {
		return 0, nil
	}
	return len(c.Dims) - 1 - axis, factor
}

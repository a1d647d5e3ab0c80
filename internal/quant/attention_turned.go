package quant

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// turned is split for queries and keys that are turned by their positions (rotary), or are parts
// of one projection: what stands behind is joined again, so that the attention takes it.
//
//	x -> rotation or part -> [Transpose] -> [constants]
//
// becomes x -> rotation -> Transpose 0213 -> Reshape, or as joined says. The axes of value are
// those of rotation or part by perm.
func (f *attentionFuser) turned(a *attention, value string, perm []int64) (string, float32) {
	at := []int64{0, 1, 2, 3}
	of := &attention{scale: 1}
	merged := len(f.g.Dims(value)) == 3 // batch and heads are one dimension
	for {
		value = f.before(f.scaled(of, value))
		if !merged && slices.Equal(at, perm) {
			if r, ok := graph.RotaryOf(f.g, f.ix, value); ok {
				return f.joined(a, value), of.scale * f.unscaled(a, r)
			}
			if whole, _ := f.third(value); whole != "" {
				return f.joined(a, value), of.scale
			}
		}
		if t := f.step(value, "Transpose"); t != nil {
			if !turn(at, t.Ints("perm"), merged) {
				return "", 0
			}
			value = t.In(0)
			continue
		}
		r := f.step(value, "Reshape")
		switch {
		case r == nil || at[0] != 0 || at[1] != 1:
			return "", 0
		case merged && f.isSplit(value, r.In(0), 0):
			merged = false
		case !merged && f.isSplit(r.In(0), value, 0):
			merged = true
		default:
			return "", 0
		}
		value = r.In(0)
	}
}

// unscaled notes that a constant factor before the rotation, by which ESM scales its queries, goes
// to the scores, and returns it: 1 where there is none, or where others read what it gives.
func (f *attentionFuser) unscaled(a *attention, r graph.Rotary) float32 {
	n := f.ix.Producer(r.X)
	if n == nil || !n.Is("Mul") || f.ix.IsOutput(r.X) || f.ix.Captured(r.X) {
		return 1
	}
	want := 3 // readers: a Mul and two Slices, or one Split
	readers := f.readers(r.X)
	if slices.ContainsFunc(readers, func(n *graph.Node) bool { return n.Is("Split") }) {
		want = 2
	}
	if len(readers) != want {
		return 1
	}
	for i := range 2 {
		c, ok := f.g.Number(n.In(i))
		if !ok || !slices.Equal(f.g.Dims(n.In(1-i)), f.g.Dims(r.X)) {
			continue
		}
		a.unscaled = append(a.unscaled, n)
		return c
	}
	return 1
}

// readers returns what reads value, behind Casts that change nothing too.
func (f *attentionFuser) readers(value string) (readers []*graph.Node) {
	for _, u := range f.ix.Uses(value) {
		if u.Node.Is("Cast") && f.changesNothing(u.Node) && !f.ix.IsOutput(u.Node.Outputs[0]) && !f.ix.Captured(u.Node.Outputs[0]) {
			readers = append(readers, f.readers(u.Node.Outputs[0])...)
		} else {
			readers = append(readers, u.Node)
		}
	}
	return readers
}

// joined returns value [batch, heads, length, size] as [batch, length, heads*size], or ""
// when it has other dimensions than the attention. A part of one projection is taken before it is
// turned: Gather 2 -> Reshape.
func (f *attentionFuser) joined(a *attention, value string) string {
	d := f.g.Dims(value)
	if len(d) != 4 || d[1].N <= 0 || d[3].N <= 0 || a.heads != 0 && a.heads != d[1].N {
		return ""
	}
	a.heads = d[1].N
	width := d[1].N * d[3].N
	rows, flat, sizes := f.names.Name(value+"_by_row"), f.names.Name(value+"_flat"), f.names.Name(value+"_flat_sizes")
	f.g.SetInit(sizes, tensor.From([]int64{0, 0, width}, 3))
	if whole, part := f.third(value); whole != "" {
		index := f.names.Name(value + "_part")
		f.g.SetInit(index, tensor.From([]int64{part}))
		f.added = append(f.added, graph.NewNode("", "Gather", rows, []string{whole, index}, []string{rows}, graph.AttrInt("axis", 2)))
	} else {
		f.added = append(f.added, graph.NewNode("", "Transpose", rows, []string{value}, []string{rows}, graph.AttrInts("perm", 0, 2, 1, 3)))
	}
	f.added = append(f.added, graph.NewNode("", "Reshape", flat, []string{rows, sizes}, []string{flat}))
	f.g.Info[flat] = &graph.Value{Name: flat, Type: tensor.Float32, Dims: []graph.Dim{d[0], d[2], {N: width}}}
	return flat
}

// third returns [batch, length, 3, heads, size] of which value is one of three parts, turned
// into heads, and which, as timm's vision transformers and BLIP have it:
//
//	Reshape -> Transpose 20314 -> Gather 0, Split and Squeeze, or Slice and Squeeze
func (f *attentionFuser) third(value string) (whole string, part int64) {
	n := f.ix.Producer(value)
	if n == nil || !f.ix.OnlyBesideShapes(value) {
		return "", 0
	}
	all := ""
	switch {
	case n.Is("Gather") && n.Int("axis", 0) == 0:
		if t := f.g.Init(n.In(1)); t != nil && t.Type == tensor.Int64 && len(t.Dims) == 0 {
			all, part = n.In(0), tensor.View[int64](t)[0]
		}
	case n.Is("Squeeze") && f.isFirst(n, 1):
		s := f.ix.Producer(n.In(0))
		switch {
		case s == nil:
		case s.Is("Split") && len(s.Outputs) == 3 && s.Int("axis", 0) == 0 && (s.In(1) == "" || f.g.Holds(s.In(1), 1, 1, 1)):
			all, part = s.In(0), int64(slices.Index(s.Outputs, n.In(0)))
		case s.Is("Slice") && f.g.Holds(s.In(3), 0) && (s.In(4) == "" || f.g.Holds(s.In(4), 1)):
			for i := range int64(3) {
				if f.g.Holds(s.In(1), i) && f.g.Holds(s.In(2), i+1) {
					all, part = s.In(0), i
				}
			}
		}
	}
	if part < 0 {
		part += 3
	}
	t := f.ix.Producer(all)
	if t == nil || !t.Is("Transpose") || !slices.Equal(t.Ints("perm"), []int64{2, 0, 3, 1, 4}) || part < 0 || part > 2 {
		return "", 0
	}
	r := f.ix.Producer(t.In(0))
	if d := f.g.Dims(t.In(0)); r == nil || !r.Is("Reshape") || len(d) != 5 || d[2].N != 3 {
		return "", 0
	}
	return t.In(0), part
}

// isFirst reports whether n, whose axes may be its input i, is of the first axis alone.
func (f *attentionFuser) isFirst(n *graph.Node, i int) bool {
	return slices.Equal(n.Ints("axes"), []int64{0}) || f.g.Holds(n.In(i), 0)
}

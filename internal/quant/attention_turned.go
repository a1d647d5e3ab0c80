package quant

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// turned is split for queries and keys that are turned by their positions (rotary): what
// stands behind the rotation is joined again, so that the attention takes it.
//
//	x -> rotation -> [Transpose] -> [constants]
//
// becomes x -> rotation -> Transpose 0213 -> Reshape. The axes of value are those of the
// rotation by perm.
func (f *attentionFuser) turned(a *attention, value string, perm []int64) (string, float32) {
	at := []int64{0, 1, 2, 3}
	of := &attention{scale: 1}
	merged := len(f.g.Dims(value)) == 3 // batch and heads are one dimension
	for {
		value = f.before(f.scaled(of, value))
		if !merged && slices.Equal(at, perm) {
			if _, ok := graph.RotaryOf(f.g, f.ix, value); ok {
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

// joined returns value [batch, heads, length, size] as [batch, length, heads*size], or ""
// when it has other dimensions than the attention.
func (f *attentionFuser) joined(a *attention, value string) string {
	d := f.g.Dims(value)
	if len(d) != 4 || d[1].N <= 0 || d[3].N <= 0 || a.heads != 0 && a.heads != d[1].N {
		return ""
	}
	a.heads = d[1].N
	width := d[1].N * d[3].N
	rows, flat, sizes := f.names.Name(value+"_by_row"), f.names.Name(value+"_flat"), f.names.Name(value+"_flat_sizes")
	f.g.SetInit(sizes, tensor.From([]int64{0, 0, width}, 3))
	f.added = append(f.added,
		graph.NewNode("", "Transpose", rows, []string{value}, []string{rows}, graph.AttrInts("perm", 0, 2, 1, 3)),
		graph.NewNode("", "Reshape", flat, []string{rows, sizes}, []string{flat}))
	f.g.Info[flat] = &graph.Value{Name: flat, Type: tensor.Float32, Dims: []graph.Dim{d[0], d[2], {N: width}}}
	return flat
}

package quant

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
)

// step returns the producer of value when it is op and only the block, and Shapes
// perhaps, read it.
func (f *attentionFuser) step(value, op string) *graph.Node {
	n := f.ix.Producer(value)
	if n == nil || !n.Is(op) || !f.ix.OnlyBesideShapes(value) || len(n.Outputs) != 1 {
		return nil
	}
	return n
}

// reader returns the only reader of value beside Shapes when it is op.
func (f *attentionFuser) reader(value, op string) *graph.Node {
	if !f.ix.OnlyBesideShapes(value) {
		return nil
	}
	for _, u := range f.ix.Uses(value) {
		if u.Node.Is(op) && u.Input == 0 {
			return u.Node
		}
	}
	return nil
}

func (f *attentionFuser) match(soft *graph.Node) *attention {
	last := int64(-1)
	if f.m.Opset() < 13 {
		last = 1 // the default axis then; the attribute decides
	}
	if axis := soft.Int("axis", last); axis != -1 && axis != 3 {
		return nil
	}
	a := &attention{name: soft.Name, scale: 1}
	// Behind the softmax.
	ctx := f.reader(soft.Outputs[0], "MatMul")
	if ctx == nil {
		return nil
	}
	joined := f.reader(ctx.Outputs[0], "Transpose")
	if joined == nil || !slices.Equal(joined.Ints("perm"), []int64{0, 2, 1, 3}) {
		return nil
	}
	// The joined value may also be read for its shape, which goes with it.
	if a.flat = f.reader(joined.Outputs[0], "Reshape"); a.flat == nil {
		return nil
	}
	a.out = a.flat.Outputs[0]
	var scale float32
	if a.v, scale = f.split(a, ctx.In(1), []int64{0, 2, 1, 3}); a.v == "" || scale != 1 {
		return nil
	}
	// Before the softmax.
	x, ok := f.masked(a, soft.In(0))
	if !ok {
		return nil
	}
	x = f.scaled(a, x)
	scores := f.step(x, "MatMul")
	if scores == nil {
		return nil
	}
	if a.q, scale = f.split(a, scores.In(0), []int64{0, 2, 1, 3}); a.q == "" {
		return nil
	}
	a.scale *= scale
	if a.k, scale = f.split(a, scores.In(1), []int64{0, 2, 3, 1}); a.k == "" {
		return nil
	}
	if a.scale *= scale; a.scale == 0 || a.scale-a.scale != 0 || !f.shapesFit(a) {
		return nil
	}
	return a
}

// masked takes the mask away from the scores that the softmax takes.
func (f *attentionFuser) masked(a *attention, x string) (string, bool) {
	if add := f.step(x, "Add"); add != nil {
		x, a.mask = add.In(0), add.In(1)
		if !f.isScores(x) {
			x, a.mask = a.mask, x
		}
		return x, true
	}
	w := f.step(x, "Where")
	if w == nil {
		return x, true
	}
	for i := 1; i <= 2; i++ { // scores where the condition is true, or where it is not
		if hidden, ok := f.g.Number(w.In(3 - i)); ok && hidden <= leastHidden && f.isScores(w.In(i)) {
			a.where = w
			a.mask = w.In(0)
			if e := f.ix.Producer(a.mask); e != nil && e.Is("Expand") { // to the scores' shape
				a.mask = e.In(0)
			}
			return w.In(i), true
		}
	}
	return x, false
}

// leastHidden: added to a score, a number from here down is what takes its place
// behind a Where, because the score vanishes beside it.
const leastHidden = -1e20

// scaled takes constant factors away from value.
func (f *attentionFuser) scaled(a *attention, value string) string {
	for {
		x, c := f.factor(value)
		if x == "" {
			return value
		}
		value, a.scale = x, a.scale*c
	}
}

// factor returns x and c of value = x * c or x / (1/c), or "".
func (f *attentionFuser) factor(value string) (x string, c float32) {
	if n := f.step(value, "Div"); n != nil {
		if c, ok := f.g.Number(n.In(1)); ok && c != 0 {
			return n.In(0), 1 / c
		}
	}
	if n := f.step(value, "Mul"); n != nil {
		for i := range 2 {
			if c, ok := f.g.Number(n.In(i)); ok {
				return n.In(1 - i), c
			}
		}
	}
	return "", 1
}

// isScores reports whether value is a product of two values, times constants
// perhaps: beside it stands the mask.
func (f *attentionFuser) isScores(value string) bool {
	for {
		x, _ := f.factor(value)
		if x == "" {
			break
		}
		value = x
	}
	p := f.ix.Producer(value)
	return p != nil && p.Is("MatMul") && f.g.Init(p.In(0)) == nil && f.g.Init(p.In(1)) == nil
}

// split follows value back to the projection that Reshape divides into heads,
// [batch, length, heads, size], and Transposes turn by perm. It records the sizes
// and returns the projection and the constants that scale it on the way.
func (f *attentionFuser) split(a *attention, value string, perm []int64) (string, float32) {
	at := []int64{0, 1, 2, 3} // the axes of value, of those of the product's operand
	of := &attention{scale: 1}
	for {
		value = f.scaled(of, value)
		t := f.step(value, "Transpose")
		if t == nil {
			break
		}
		p := t.Ints("perm")
		if len(p) != 4 {
			return "", 0
		}
		for i := range at {
			if p[at[i]] < 0 || p[at[i]] > 3 {
				return "", 0
			}
			at[i] = p[at[i]]
		}
		value = t.In(0)
	}
	r := f.step(value, "Reshape")
	if r == nil || !slices.Equal(at, perm) {
		return "", 0
	}
	heads := f.g.Dims(r.Outputs[0])
	if len(heads) != 4 || heads[2].N <= 0 || heads[3].N <= 0 || (a.heads != 0 && a.heads != heads[2].N) {
		return "", 0
	}
	a.heads = heads[2].N
	value = f.scaled(of, r.In(0))
	p := f.g.Dims(value)
	if len(p) != 3 || p[2].N != heads[2].N*heads[3].N {
		return "", 0
	}
	return value, of.scale
}

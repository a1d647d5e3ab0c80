package quant

import (
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
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
	rank := int64(len(f.g.Dims(soft.In(0))))
	if axis := soft.Int("axis", last); axis != -1 && axis != rank-1 {
		return nil
	}
	a := &attention{name: soft.Name, scale: 1}
	// Behind the softmax.
	ctx := f.reader(f.unguarded(a, soft.Outputs[0]), "MatMul")
	if ctx == nil {
		return nil
	}
	var scale float32
	if a.v, scale = f.split(a, ctx.In(1), []int64{0, 2, 1, 3}); a.v != "" && scale != 1 {
		return nil
	}
	out := f.past(ctx.Outputs[0])
	if r := f.reader(out, "Reshape"); r != nil && f.isSplit(out, r.Outputs[0], a.heads) { // [batch*heads, length, size]
		out = f.past(r.Outputs[0])
	}
	joined := f.reader(out, "Transpose")
	if joined == nil || !slices.Equal(joined.Ints("perm"), []int64{0, 2, 1, 3}) {
		return nil
	}
	// The joined value may also be read for its shape, which goes with it.
	if a.flat = f.reader(joined.Outputs[0], "Reshape"); a.flat == nil {
		return nil
	}
	a.out = a.flat.Outputs[0]
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
	var byKeys float32
	if a.q, scale = f.turned(a, scores.In(0), []int64{0, 1, 2, 3}); a.q != "" {
		if a.k, byKeys = f.turned(a, scores.In(1), []int64{0, 1, 3, 2}); a.v == "" {
			a.v = f.joined(a, ctx.In(1)) // a part of one projection for all three
		}
	} else if a.q, scale = f.split(a, scores.In(0), []int64{0, 2, 1, 3}); a.q != "" {
		a.k, byKeys = f.split(a, scores.In(1), []int64{0, 2, 3, 1})
	}
	if a.q == "" || a.k == "" || a.v == "" {
		return nil
	}
	if a.scale *= scale * byKeys; a.scale == 0 || a.scale-a.scale != 0 || !f.shapesFit(a) {
		return nil
	}
	return a
}

// unguarded returns the value in whose place a.guard puts 0 where it is NaN, as
// PyTorch exports scaled_dot_product_attention: behind the softmax of a row whose keys
// are all hidden by minus infinity.
//
//	w -> IsNaN -> Where(., 0, w)
func (f *attentionFuser) unguarded(a *attention, w string) string {
	w = f.past(w)
	uses := f.ix.Uses(w)
	if len(uses) != 2 || f.ix.IsOutput(w) || f.ix.Captured(w) {
		return w
	}
	for i := range uses {
		nan, where := uses[i].Node, uses[1-i].Node
		if !nan.Is("IsNaN") || !where.Is("Where") || uses[1-i].Input != 2 || where.In(0) != nan.Outputs[0] || f.ix.Only(nan.Outputs[0]) != where {
			continue
		}
		if zero, ok := f.g.Number(where.In(1)); ok && zero == 0 {
			a.guard = true
			return f.past(where.Outputs[0])
		}
	}
	return w
}

// past follows value, as long as one node and Shapes read it, through nodes that
// change nothing.
func (f *attentionFuser) past(value string) string {
	for {
		next := ""
		for _, op := range []string{"Cast", "Reshape"} {
			if n := f.reader(value, op); n != nil && f.changesNothing(n) {
				next = n.Outputs[0]
			}
		}
		if next == "" {
			return value
		}
		value = next
	}
}

// before is past against the arrows.
func (f *attentionFuser) before(value string) string {
	for {
		n := f.step(value, "Cast")
		if n == nil {
			n = f.step(value, "Reshape")
		}
		if n == nil || !f.changesNothing(n) {
			return value
		}
		value = n.In(0)
	}
}

// changesNothing: a Cast to the type that the value has, a Reshape to its dimensions.
func (f *attentionFuser) changesNothing(n *graph.Node) bool {
	if n.Is("Cast") {
		v := f.g.Info[n.In(0)]
		return v != nil && v.Type == tensor.Float32 && n.Int("to", 0) == int64(tensor.Float32)
	}
	x, y := f.g.Dims(n.In(0)), f.g.Dims(n.Outputs[0])
	return len(x) > 0 && len(x) == len(y) && !slices.ContainsFunc(x, func(d graph.Dim) bool { return d.N < 0 && d.Name == "" }) && slices.Equal(x, y)
}

// equal reports whether both dimensions are known to be the same.
func equal(a, b graph.Dim) bool { return a == b && (a.N >= 0 || a.Name != "") }

// isSplit reports whether x [batch*heads, m, n] and y [batch, heads, m, n] are
// the same elements; heads of 0 are any number.
func (f *attentionFuser) isSplit(x, y string, heads int64) bool {
	a, b := f.g.Dims(x), f.g.Dims(y)
	return len(a) == 3 && len(b) == 4 && b[1].N > 0 && (heads == 0 || b[1].N == heads) && equal(a[1], b[2]) && equal(a[2], b[3])
}

// masked takes the masks away from the scores that the softmax takes.
func (f *attentionFuser) masked(a *attention, x string) (string, bool) {
	for len(a.masks) <= maxMasks {
		x = f.before(x)
		if r := f.step(x, "Reshape"); r != nil && (f.isSplit(r.In(0), x, a.heads) || f.isSplit(x, r.In(0), a.heads)) {
			x = r.In(0)
			continue
		}
		add := f.step(x, "Add")
		if add == nil {
			break
		}
		scores, mask := add.In(0), add.In(1)
		if !f.isScores(scores) {
			scores, mask = mask, scores
		}
		if len(f.g.Dims(x)) != 4 && f.g.Init(mask) == nil {
			return x, false
		}
		x, a.masks = scores, append(a.masks, mask)
	}
	w := f.step(x, "Where")
	if w == nil || len(a.masks) > 0 {
		return x, len(a.masks) <= maxMasks
	}
	for i := 1; i <= 2; i++ { // scores where the condition is true, or where it is not
		if hidden, ok := f.g.Number(w.In(3 - i)); ok && hidden <= leastHidden && f.isScores(w.In(i)) {
			a.where = w
			a.masks = []string{w.In(0)}
			if e := f.ix.Producer(a.masks[0]); e != nil && e.Is("Expand") { // to the scores' shape
				a.masks[0] = e.In(0)
			}
			return f.before(w.In(i)), true
		}
	}
	return x, false
}

// maxMasks bounds how many masks are added one after the other: a causal one, padding and
// a bias by position.
const maxMasks = 4

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

// isScores reports whether value is a product of two values, times constants and
// with other masks perhaps: beside it stands the mask.
func (f *attentionFuser) isScores(value string) bool {
	steps := maxScoreSteps
	return f.scoresFrom(value, &steps)
}

func (f *attentionFuser) scoresFrom(value string, steps *int) bool {
	for ; *steps > 0; *steps-- {
		p := f.ix.Producer(value)
		if p == nil {
			return false
		}
		switch x, _ := f.factor(value); {
		case x != "":
			value = x
		case p.Is("MatMul"):
			return f.g.Init(p.In(0)) == nil && f.g.Init(p.In(1)) == nil
		case p.Is("Add"):
			if *steps--; f.scoresFrom(p.In(0), steps) {
				return true
			}
			value = p.In(1)
		case p.Is("Cast"), p.Is("Reshape"):
			value = p.In(0)
		default:
			return false
		}
	}
	return false
}

// split follows value back to the projection that Reshape divides into heads,
// [batch, length, heads, size], and Transposes turn by perm. On the way batch and heads may
// be one dimension. It records the sizes and returns the projection and the constants that
// scale it.
func (f *attentionFuser) split(a *attention, value string, perm []int64) (string, float32) {
	at := []int64{0, 1, 2, 3} // the axes of value, of those of the product's operand
	of := &attention{scale: 1}
	merged := len(f.g.Dims(value)) == 3 // at then still counts batch and heads as two
	heads := int64(0)                   // that the dimension of both is known to have
	for {
		value = f.before(f.scaled(of, value))
		if t := f.step(value, "Transpose"); t != nil {
			if !turn(at, t.Ints("perm"), merged) {
				return "", 0
			}
			value = t.In(0)
			continue
		}
		r := f.step(value, "Reshape")
		if r == nil {
			return "", 0
		}
		switch apart := at[0] != 0 || at[1] != 1; {
		case merged && !apart && f.isSplit(value, r.In(0), heads):
			if merged = false; heads == 0 {
				heads = f.g.Dims(r.In(0))[1].N
			}
			value = r.In(0)
			continue
		case !merged && !apart && f.isSplit(r.In(0), value, heads):
			merged, heads = true, f.g.Dims(value)[1].N
			value = r.In(0)
			continue
		}
		if merged || !slices.Equal(at, perm) {
			return "", 0
		}
		d := f.g.Dims(value)
		if len(d) != 4 || d[2].N <= 0 || d[3].N <= 0 || (a.heads != 0 && a.heads != d[2].N) || (heads != 0 && heads != d[2].N) {
			return "", 0
		}
		a.heads = d[2].N
		value = f.scaled(of, r.In(0))
		p := f.g.Dims(value)
		if len(p) != 3 || p[2].N != d[2].N*d[3].N {
			return "", 0
		}
		return value, of.scale
	}
}

// turn applies the axes of a Transpose to at; of merged ones only the last two.
func turn(at, perm []int64, merged bool) bool {
	if merged {
		if len(perm) != 3 || perm[0] != 0 {
			return false
		}
		perm = []int64{0, 1, perm[1] + 1, perm[2] + 1}
	}
	if len(perm) != 4 {
		return false
	}
	for i := range at {
		if perm[at[i]] < 0 || perm[at[i]] > 3 {
			return false
		}
		at[i] = perm[at[i]]
	}
	return true
}

// maxScoreSteps bounds how far the product is looked for behind a mask.
const maxScoreSteps = 16

package plan

import (
	"math"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// maxHead is the largest head size of fb_attention; sizes are multiples of headStep.
const (
	maxHead  = 128
	headStep = 8
)

// packed is a Q, K, V projection whose three weights multiply the same rows:
// one product with the weights side by side, written as [rows, 3 parts].
type packed struct{ parts []*product }

// findPacked joins the projections of attention blocks, once all groups are
// known. The first of the three is emitted as the joint product.
func (b *builder) findPacked() {
	at := map[*graph.Node]int{}
	ends := map[string]*graph.Node{} // last value of a product -> its last node
	for i, n := range b.g.Nodes {
		at[n] = i
		if g := b.groups[n]; g != nil && g.product != nil {
			ends[g.product.out] = n
		}
	}
	for _, n := range b.g.Nodes {
		if n.Domain != graph.DomainMS || n.Op != "MultiHeadAttention" || b.absorbed[n] {
			continue
		}
		var parts []*product
		var nodes []*graph.Node
		for i := range 3 {
			end := ends[n.In(i)]
			if end == nil || b.ix.Only(n.In(i)) == nil || !b.packable(b.groups[end].product) || b.groups[end].packed != nil {
				break
			}
			p := b.groups[end].product
			if len(parts) > 0 && (p.core.In(0) != parts[0].core.In(0) || p.core.Op != parts[0].core.Op) {
				break
			}
			parts, nodes = append(parts, p), append(nodes, end)
		}
		if len(parts) != 3 {
			continue
		}
		first := nodes[0]
		for _, x := range nodes {
			if at[x] < at[first] {
				first = x
			}
		}
		for _, x := range nodes {
			if x != first {
				delete(b.groups, x)
				b.absorbed[x] = true
			}
		}
		b.groups[first] = &group{packed: &packed{parts}}
	}
}

// packable: an s8 product with no more than a bias behind it.
func (b *builder) packable(p *product) bool {
	w, ok := b.weightOf(p.core)
	return ok && w.kind == weightS8 && w.k <= ops.MaxK && p.act.act == ActNone && p.residual == "" && p.quant == nil
}

// emitPacked emits one product for several.
func (b *builder) emitPacked(g *packed) error {
	var keys []string
	s := &GemmS8{}
	a, err := b.gemmRows(g.parts[0].core, mustWeight(b, g.parts[0]).k)
	if err != nil {
		return err
	}
	c := a.codes
	s.K = mustWeight(b, g.parts[0]).k
	s.M, s.LdA, s.A, s.LdB = a.elems/s.K, c.ld, c.ref, round16(s.K)
	if s.Rows = c.scales != (Ref{}); s.Rows {
		s.AScale, s.AZero = c.scales, c.zeros
	} else {
		s.AScale, s.AZero = constant(b, c.scale), constant(b, c.zero)
	}
	var bs, scales, sums, biases []Ref
	var starts []int64
	anyBias := false
	for _, p := range g.parts {
		w := mustWeight(b, p)
		if w.k != s.K {
			return unsupported(p.core, "projections of different depth")
		}
		if _, err := b.gemmRows(p.core, w.k); err != nil {
			return err
		}
		op := gemmOperand{}
		if w.codes != nil {
			op = b.rowsS8(w.codes.t, w.codes.codes, w.codes.scale, w.k, w.n, w.trans)
		} else if op, err = b.nativeWeight(p.core, w); err != nil {
			return err
		}
		bias := b.bias(p, w)
		anyBias = anyBias || bias != (Ref{})
		bs, scales, sums, biases = append(bs, op.b), append(scales, op.scale), append(sums, op.sum), append(biases, bias)
		starts = append(starts, s.N)
		s.N += w.n
		keys = append(keys, p.core.Outputs[0])
	}
	s.LdC = s.N
	s.B, s.BScale, s.BSum = b.join(bs...), b.join(scales...), b.join(sums...)
	if anyBias {
		for i, r := range biases {
			if r == (Ref{}) {
				biases[i] = constant(b, make([]float32, mustWeight(b, g.parts[i]).n)...)
			}
		}
		s.Bias = b.join(biases...)
	}
	s.C = b.alloc(strings.Join(keys, "+"), s.M*s.N*4)
	for i, p := range g.parts {
		y, err := b.value(p.out)
		if err != nil {
			return err
		}
		if w := mustWeight(b, p); y.elems != s.M*w.n || y.last() != w.n {
			return unsupported(p.core, "result %v for a product [%d,%d]", y.dims, s.M, w.n)
		}
		y.rows, y.ld = Ref{s.C.Buf, starts[i] * 4}, s.N
	}
	s.Work, s.WorkBytes = b.work(s)
	b.step(s)
	return nil
}

// mustWeight is the form of a core that packable has accepted.
func mustWeight(b *builder, p *product) weightForm {
	w, _ := b.weightOf(p.core)
	return w
}

// join is one weight with the bytes of several behind each other. The parts go
// when nothing else reads them.
func (b *builder) join(refs ...Ref) Ref {
	var keys []string
	var fills []func() []byte
	var total int64
	for _, r := range refs {
		x := b.plan.Buffers[r.Buf]
		keys, fills = append(keys, x.Key), append(fills, x.Fill)
		total += x.Bytes
	}
	return b.keyed(strings.Join(keys, "+"), total, func() []byte {
		out := make([]byte, 0, total)
		for _, f := range fills {
			out = append(out, f()...)
		}
		return out
	})
}

// emitAttention emits com.microsoft.MultiHeadAttention(query, key, value, bias,
// key_padding_mask, attention_bias) on [batch, length, heads*size].
func (b *builder) emitAttention(n *graph.Node) error {
	for i := 6; i < len(n.Inputs); i++ {
		if n.In(i) != "" {
			return unsupported(n, "a cache of keys and values")
		}
	}
	if n.In(3) != "" || len(n.Outputs) > 1 && b.read(n.Outputs[1:]...) {
		return unsupported(n, "a bias of the projections, or the present keys")
	}
	var in [3]*value
	for i := range in {
		v, err := b.in(n, i)
		if err != nil {
			return err
		}
		if v.dtype != tensor.Float32 || len(v.dims) != 3 {
			return unsupported(n, "input %d is %v%v", i, v.dtype, v.dims)
		}
		in[i] = v
	}
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	q, k, v := in[0].dims, in[1].dims, in[2].dims
	heads := n.Int("num_heads", 0)
	if heads < 1 || q[2]%heads != 0 || v[2]%heads != 0 || k[2] != q[2] || k[0] != q[0] || v[0] != q[0] || v[1] != k[1] ||
		!sameDims(y.dims, []int64{q[0], q[1], v[2]}) {
		return unsupported(n, "%d heads of %v, %v, %v", heads, q, k, v)
	}
	s := &Attention{Batch: q[0], Heads: heads, QLen: q[1], KVLen: k[1], HeadDim: q[2] / heads, VDim: v[2] / heads,
		ORow: v[2], OBatch: q[1] * v[2], Causal: n.Int("unidirectional", 0) != 0, Scores: b.o.Scores}
	if s.HeadDim > maxHead || s.VDim > maxHead || s.HeadDim%headStep != 0 || s.VDim%headStep != 0 {
		return unsupported(n, "heads of %d and %d, at most %d and multiples of %d", s.HeadDim, s.VDim, maxHead, headStep)
	}
	s.Scale = n.Float("scale", 0)
	if s.Scale == 0 {
		s.Scale = float32(1 / math.Sqrt(float64(s.HeadDim)))
	}
	for i, p := range []struct {
		ref        *Ref
		row, batch *int64
	}{{&s.Q, &s.QRow, &s.QBatch}, {&s.K, &s.KRow, &s.KBatch}, {&s.V, &s.VRow, &s.VBatch}} {
		x := in[i]
		if x.dense == (Ref{}) && x.rows != (Ref{}) {
			*p.ref, *p.row = x.rows, x.ld
		} else {
			if *p.ref, err = b.dense(x); err != nil {
				return err
			}
			*p.row = x.dims[2]
		}
		*p.batch = *p.row * x.dims[1]
	}
	if n.In(4) != "" {
		l, err := b.in(n, 4)
		if err != nil {
			return err
		}
		if l.dtype != tensor.Int32 || !sameDims(l.dims, q[:1]) {
			return unsupported(n, "key padding mask %v%v", l.dtype, l.dims)
		}
		if s.KeyLengths, err = b.dense(l); err != nil {
			return err
		}
	}
	if n.In(5) != "" {
		if err := b.mask(n, s); err != nil {
			return err
		}
	}
	s.Out = b.fresh(y)
	b.step(s)
	return nil
}

// mask reads the additive mask. An Expand before it is left out: the kernel
// repeats rows itself.
func (b *builder) mask(n *graph.Node, s *Attention) error {
	m, err := b.in(n, 5)
	if err != nil {
		return err
	}
	if e := b.ix.Producer(m.name); e != nil && e.Is("Expand") {
		if src, err := b.in(e, 0); err == nil && len(src.dims) == 4 && len(m.dims) == 4 && src.dims[3] == m.dims[3] {
			m = src
		}
	}
	d := m.dims
	if m.dtype != tensor.Float32 || len(d) != 4 || (d[0] != 1 && d[0] != s.Batch) || (d[1] != 1 && d[1] != s.Heads) ||
		(d[2] != 1 && d[2] != s.QLen) || d[3] != s.KVLen {
		return unsupported(n, "attention bias %v%v", m.dtype, d)
	}
	s.MaskHeads, s.MaskQ = d[1] != 1, d[2] != 1
	if s.Mask, err = b.dense(m); err != nil {
		return err
	}
	if d[0] != s.Batch {
		s.Mask, err = b.expand(n, s.Mask, d, []int64{s.Batch, d[1], d[2], d[3]})
	}
	return err
}

package plan

import (
	"bytes"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// maxTables is what fb_embed sums in one call.
const maxTables = 3

// embedding is a sum of rows looked up by id, and of constant rows by position.
type embedding struct {
	out    string
	lookup []lookup
}

// lookup is one table: of floats, of s8 codes with a scale for each row, or of
// INT4 codes, two in a byte, with one for each block of a row. Without ids its rows
// repeat.
type lookup struct {
	table, scale *tensor.Tensor
	ids          string
	block        int64 // of INT4, otherwise 0
}

// matchEmbed finds Add(Add(lookup, lookup), lookup), or a single lookup of codes;
// one of floats is left to Gather.
func (b *builder) matchEmbed(n *graph.Node) *match {
	e := &embedding{out: n.Outputs[0]}
	var inner []*graph.Node
	dims := b.sizes(e.out)
	if len(dims) < 2 || !b.lookups(e, &inner, n, dims) {
		return nil
	}
	ids := 0
	coded := false
	for _, l := range e.lookup {
		if l.ids != "" {
			ids++
		}
		coded = coded || l.scale != nil
	}
	if ids == 0 || (len(e.lookup) == 1 && !coded) {
		return nil
	}
	return &match{group{embed: e}, inner}
}

// lookups collects the tables that n adds up.
func (b *builder) lookups(e *embedding, inner *[]*graph.Node, n *graph.Node, dims []int64) bool {
	if l, nodes, ok := b.lookup(n, dims); ok {
		e.lookup = append(e.lookup, l)
		*inner = append(*inner, nodes...)
		return len(e.lookup) <= maxTables
	}
	if !n.Is("Add") || len(n.Inputs) != 2 {
		return false
	}
	for i := range 2 {
		if t := b.g.Init(n.In(i)); t != nil {
			if !b.positions(t, dims) {
				return false
			}
			e.lookup = append(e.lookup, lookup{table: t})
			if len(e.lookup) > maxTables {
				return false
			}
			continue
		}
		side := b.sole(n.In(i))
		if side == nil {
			return false
		}
		if !sameDims(b.sizes(n.In(i)), dims) { // a table looked up by fewer ids, which repeat: [1, length, dim]
			if _, _, ok := b.lookup(side, dims); !ok {
				return false
			}
		}
		*inner = append(*inner, side)
		if !b.lookups(e, inner, side, dims) {
			return false
		}
	}
	return true
}

// positions: a constant whose rows repeat over the leading dimensions.
func (b *builder) positions(t *tensor.Tensor, dims []int64) bool {
	return t.Type == tensor.Float32 && len(t.Dims) >= 1 && t.Dims[len(t.Dims)-1] == dims[len(dims)-1] && suffix(t.Dims[:len(t.Dims)-1], dims[:len(dims)-1])
}

// suffix reports whether d, without leading ones, ends dims.
func suffix(d, dims []int64) bool {
	for len(d) > 0 && d[0] == 1 {
		d = d[1:]
	}
	return len(d) <= len(dims) && (len(d) == 0 || sameDims(d, dims[len(dims)-len(d):]))
}

// lookup matches Gather(table, ids) on rows, or the forms of quant.Embeddings
// (docs/adr/0008): Cast(Gather(codes, ids)) * Gather(scales, ids), and
// GatherBlockQuantized.
func (b *builder) lookup(n *graph.Node, dims []int64) (l lookup, inner []*graph.Node, ok bool) {
	if n.Domain == graph.DomainMS && n.Op == "GatherBlockQuantized" {
		l, why := b.blocksOf(n, dims[len(dims)-1])
		return l, nil, why == "" && suffix(b.sizes(n.In(1)), dims[:len(dims)-1])
	}
	if n.Is("Gather") {
		t := b.rowsOf(n, tensor.Float32)
		if t == nil || t.Dims[1] != dims[len(dims)-1] || !suffix(b.sizes(n.In(1)), dims[:len(dims)-1]) {
			return l, nil, false
		}
		return lookup{table: t, ids: n.In(1)}, nil, true
	}
	if !n.Is("Mul") || len(n.Inputs) != 2 {
		return l, nil, false
	}
	for i := range 2 {
		cast, scales := b.sole(n.In(i)), b.sole(n.In(1-i))
		if cast == nil || scales == nil || !cast.Is("Cast") || tensor.DType(cast.Int("to", 0)) != tensor.Float32 || !scales.Is("Gather") {
			continue
		}
		rows := b.sole(cast.In(0))
		if rows == nil || !rows.Is("Gather") || rows.In(1) != scales.In(1) {
			continue
		}
		t, s := b.rowsOf(rows, tensor.Int8), b.rowsOf(scales, tensor.Float32)
		if t == nil || s == nil || s.Dims[1] != 1 || s.Dims[0] != t.Dims[0] || t.Dims[1] != dims[len(dims)-1] ||
			!suffix(b.sizes(rows.In(1)), dims[:len(dims)-1]) {
			continue
		}
		return lookup{table: t, scale: s, ids: rows.In(1)}, []*graph.Node{cast, scales, rows}, true
	}
	return l, nil, false
}

// rowsOf returns the constant matrix of the given type that a Gather reads by
// row.
func (b *builder) rowsOf(n *graph.Node, d tensor.DType) *tensor.Tensor {
	t := b.g.Init(n.In(0))
	if t == nil || t.Type != d || len(t.Dims) != 2 || n.Int("axis", 0) != 0 || t.Len() == 0 {
		return nil
	}
	return t
}

// blocksOf returns the INT4 table that a GatherBlockQuantized of dim columns reads,
// or why there is no kernel for it.
func (b *builder) blocksOf(n *graph.Node, dim int64) (l lookup, why string) {
	t, s := b.g.Init(n.In(0)), b.g.Init(n.In(2))
	l = lookup{table: t, scale: s, ids: n.In(1), block: n.Int("block_size", 128)}
	switch axis := n.Int("quantize_axis", 1); {
	case n.Int("bits", 4) != 4 || n.In(3) != "":
		return l, fmt.Sprintf("%d bits, zero points %q; it can do 4 bits without", n.Int("bits", 4), n.In(3))
	case t == nil || t.Type != tensor.Uint8 || len(t.Dims) != 2 || t.Len() == 0 || n.Int("gather_axis", 0) != 0 || (axis != 1 && axis != -1):
		return l, "its table is no constant UINT8 matrix that is read by row"
	case l.block < minBlock || l.block > maxBlock || l.block&(l.block-1) != 0 || dim != 2*t.Dims[1] || dim%l.block != 0:
		return l, fmt.Sprintf("blocks of %d in rows of %d", l.block, dim)
	case s == nil || s.Type != tensor.Float32 || s.Len() != t.Dims[0]*dim/l.block:
		return l, "its scales are no FP32 constants, one for each block"
	}
	return l, ""
}

// minBlock and maxBlock are the sizes of blocks that fb_embed reads.
const minBlock, maxBlock = 16, 256

// refuseBlocks says why a GatherBlockQuantized is not part of a group.
func (b *builder) refuseBlocks(n *graph.Node) error {
	y, err := b.out(n, 0)
	if err != nil {
		return err
	}
	_, why := b.blocksOf(n, y.last())
	if why == "" {
		why = fmt.Sprintf("ids of dimensions %v", b.sizes(n.In(1)))
	}
	return unsupported(n, "%s", why)
}

func (b *builder) emitEmbed(e *embedding) error {
	y, err := b.value(e.out)
	if err != nil {
		return err
	}
	dim := y.last()
	s := &Embed{Tokens: y.elems / dim, Dim: dim}
	for _, l := range e.lookup {
		t := EmbedTable{Count: l.table.Len() / dim, Bits: 32}
		if l.block != 0 {
			t.Count = l.table.Dims[0]
		}
		if l.ids == "" {
			ids := make([]int64, t.Count)
			for i := range ids {
				ids[i] = int64(i)
			}
			t.IDs, t.IDsPeriod = constant(b, ids...), t.Count
			if whole := b.startOf(l.table); whole != nil {
				l.table, t.Count = whole, whole.Dims[0]
			}
		} else {
			ids, err := b.value(l.ids)
			if err != nil {
				return err
			}
			if t.IDs, err = b.ids(ids); err != nil {
				return err
			}
			t.IDsPeriod = ids.elems
		}
		if t.IDsPeriod == s.Tokens {
			t.IDsPeriod = 0
		}
		table := l.table
		t.Rows = b.weight(table, "", int64(len(table.Data)), func() []byte { return table.Data })
		switch {
		case l.block != 0:
			t.Bits, t.Block = 4, l.block
			t.Scale = b.weight(l.scale, "", int64(len(l.scale.Data)), func() []byte { return l.scale.Data })
		case l.scale != nil:
			t.Bits = 8
			t.Scale = b.scales(l.scale, t.Count)
		}
		s.Tables = append(s.Tables, t)
	}
	s.Out, s.Fault = b.fresh(y), b.fault()
	b.step(s)
	return nil
}

// startOf returns the initializer that begins with the rows of t, or nil. Position
// tables are cut to each length that comes; all of them then read the one table.
func (b *builder) startOf(t *tensor.Tensor) *tensor.Tensor {
	dim := t.Dims[len(t.Dims)-1]
	var whole *tensor.Tensor
	for x, name := range b.original {
		if x.Type == t.Type && len(x.Dims) == 2 && x.Dims[1] == dim && bytes.HasPrefix(x.Data, t.Data) && (whole == nil || name < b.original[whole]) {
			whole = x
		}
	}
	return whole
}

// ids returns indices as S64 on the device.
func (b *builder) ids(v *value) (Ref, error) {
	ref, err := b.dense(v)
	if err != nil || v.dtype == tensor.Int64 {
		return ref, err
	}
	if v.dtype != tensor.Int32 {
		return Ref{}, unsupported(b.ix.Uses(v.name)[0].Node, "indices of type %v", v.dtype)
	}
	y := b.alloc(v.name+" (s64)", v.elems*8)
	b.step(&Cast{From: S32, To: S64, N: v.elems, X: ref, Y: y})
	return y, nil
}

// meanPooling is the mean over tokens where the mask is not zero, as
// sentence-transformers exports it.
type meanPooling struct {
	x, mask string
	out     string
}

// meanFloor is the least sum of a mask in fb_masked_mean.
const meanFloor = 1e-9

// matchMean finds
//
//	ReduceSum(x * m, 1) / Clip(ReduceSum(m, 1), 1e-9)
//
// where m is the mask [b, t] as floats, repeated over the channels.
func (b *builder) matchMean(n *graph.Node) *match {
	if !n.Is("Div") || len(n.Inputs) != 2 {
		return nil
	}
	total, floor := b.sole(n.In(0)), b.sole(n.In(1))
	if total == nil || floor == nil || !b.sumOverTokens(total) || !floor.Is("Clip") {
		return nil
	}
	count := b.sole(floor.In(0))
	if lo, hi, ok := b.clip(floor); !ok || math.Abs(float64(lo)-meanFloor) > 1e-3*meanFloor || hi < math.MaxFloat32 || count == nil || !b.sumOverTokens(count) {
		return nil
	}
	mul := b.sole(total.In(0))
	if mul == nil || !mul.Is("Mul") {
		return nil
	}
	for i := range 2 {
		x, m := mul.In(i), mul.In(1-i)
		d := b.sizes(x)
		if m != count.In(0) || len(d) != 3 || !sameDims(b.sizes(mul.Outputs[0]), d) {
			continue
		}
		mask := m
		for len(b.sizes(mask)) == 3 {
			p := b.ix.Producer(mask)
			if p == nil || !(p.Is("Expand") || p.Is("Unsqueeze") || p.Is("Cast")) {
				return nil
			}
			if p.Is("Unsqueeze") && b.sizes(mask)[2] != 1 {
				return nil
			}
			mask = p.In(0)
		}
		if !sameDims(b.sizes(mask), d[:2]) {
			return nil
		}
		return &match{group{mean: &meanPooling{x, mask, n.Outputs[0]}}, []*graph.Node{total, floor, count, mul}}
	}
	return nil
}

// sumOverTokens: ReduceSum over axis 1 of three.
func (b *builder) sumOverTokens(n *graph.Node) bool {
	if !n.Is("ReduceSum") || n.Int("keepdims", 1) != 0 || len(b.sizes(n.In(0))) != 3 {
		return false
	}
	axes, ok := b.axes(n, 1)
	return ok && len(axes) == 1 && (axes[0] == 1 || axes[0] == -2)
}

func (b *builder) emitMean(g *meanPooling) error {
	x, err := b.value(g.x)
	if err != nil {
		return err
	}
	y, err := b.value(g.out)
	if err != nil {
		return err
	}
	m, err := b.value(g.mask)
	if err != nil {
		return err
	}
	s := &MaskedMean{B: x.dims[0], T: x.dims[1], D: x.dims[2]}
	if s.X, err = b.dense(x); err != nil {
		return err
	}
	if s.Mask, err = b.dense(m); err != nil {
		return err
	}
	if m.dtype != tensor.Float32 {
		from, _ := deviceType(m.dtype)
		f := b.alloc(m.name+" (float)", m.elems*4)
		b.step(&Cast{From: from, To: F32, N: m.elems, X: s.Mask, Y: f})
		s.Mask = f
	}
	s.Y = b.fresh(y)
	b.step(s)
	return nil
}

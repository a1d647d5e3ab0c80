package plan

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// inBlocks reports whether gemm_w4 multiplies k rows in blocks of this size.
func inBlocks(k, block int64) bool {
	return k%32 == 0 && k%block == 0 && (block == 32 || block == 64 || block%128 == 0 || block == k)
}

// blocks4 is the constant operand of com.microsoft.MatMulNBits in 4 bits:
// codes [n, blocks, block/2], low nibble first, scales [n, blocks], and zero
// points as packed nibbles or nil for 8.
type blocks4 struct {
	q, scale, zero *tensor.Tensor
	n, k, block    int64
}

func (w *blocks4) blocks() int64 { return (w.k + w.block - 1) / w.block }

func (b *builder) blocks4(n *graph.Node) (*blocks4, error) {
	w := &blocks4{q: b.g.Init(n.In(1)), scale: b.g.Init(n.In(2)), n: n.Int("N", 0), k: n.Int("K", 0), block: n.Int("block_size", 0)}
	if n.Int("bits", 4) != 4 || n.In(4) != "" || w.block < 16 || w.block > 1<<16 || w.block&(w.block-1) != 0 ||
		w.n < 1 || w.n > MaxDim || w.k < 1 || w.k > MaxDim {
		return nil, unsupported(n, "%d bits, blocks of %d", n.Int("bits", 4), w.block)
	}
	if w.q == nil || w.q.Type != tensor.Uint8 || w.q.Len() != w.n*w.blocks()*w.block/2 ||
		w.scale == nil || w.scale.Type != tensor.Float32 || w.scale.Len() != w.n*w.blocks() {
		return nil, unsupported(n, "weights are not constants [%d,%d] in blocks of %d with float scales", w.n, w.k, w.block)
	}
	if n.In(3) != "" {
		w.zero = b.g.Init(n.In(3))
		if w.zero == nil || w.zero.Type != tensor.Uint8 || w.zero.Len() != w.n*((w.blocks()+1)/2) {
			return nil, unsupported(n, "zero points are not packed constants")
		}
	}
	if n.In(5) != "" && !b.constVector(n.In(5), w.n) {
		return nil, unsupported(n, "bias is not a constant vector of %d", w.n)
	}
	return w, nil
}

// accuracyInt8 is the accuracy_level of MatMulNBits that allows INT8 activations.
const accuracyInt8 = 4

// emitGemmW4 emits MatMulNBits: on its blocks where the kernel knows them,
// otherwise on the floats they stand for.
func (b *builder) emitGemmW4(p *product, form weightForm) error {
	w, err := b.blocks4(p.core)
	if err != nil {
		return err
	}
	x, err := b.in(p.core, 0)
	if err != nil {
		return err
	}
	if x.dtype != tensor.Float32 || x.last() != w.k {
		return unsupported(p.core, "operand %v%v for weights [%d,%d]", x.dtype, x.dims, w.k, w.n)
	}
	m := x.elems / w.k
	residual, err := b.sum(p)
	if err != nil {
		return err
	}
	if w.zero != nil || !inBlocks(w.k, w.block) {
		s := &GemmFloat{M: m, N: w.n, K: w.k, LdA: w.k, LdB: w.k, LdC: w.n, Batch: 1, TransB: true, Alpha: 1,
			Act: p.act.act, ActMin: p.act.lo, ActMax: p.act.hi, Bias: b.bias(p, form), Residual: residual}
		if s.A, err = b.dense(x); err != nil {
			return err
		}
		s.B = b.weight(w.q, "|floats of "+b.keyOf(w.scale), w.n*w.k*4, func() []byte { return bytesOf(w.floats()) })
		if _, s.C, err = b.target(p, m, w.n); err != nil {
			return err
		}
		b.step(s)
		return nil
	}
	s := &GemmW4{M: m, N: w.n, K: w.k, LdC: w.n, Block: w.block, Act: p.act.act, ActMin: p.act.lo, ActMax: p.act.hi,
		Bias: b.bias(p, form), Residual: residual}
	if p.core.Int("accuracy_level", 0) == accuracyInt8 {
		c, err := b.quantizedRows(x, "")
		if err != nil {
			return err
		}
		s.AType, s.A, s.AScale, s.AZero, s.LdA = S8, c.ref, c.scales, c.zeros, c.ld
	} else {
		s.AType, s.LdA = F16, w.k
		if s.A, err = b.half(x); err != nil {
			return err
		}
	}
	s.Packed, s.PackedScale = b.pack(w)
	if _, s.C, err = b.target(p, m, w.n); err != nil {
		return err
	}
	s.Work, s.WorkBytes = b.work(s)
	b.step(s)
	return nil
}

// pack uploads blocks and has the device bring them into the kernel's order.
func (b *builder) pack(w *blocks4) (packed, scale Ref) {
	key := b.keyOf(w.q) + "|packed with " + b.keyOf(w.scale)
	if i, ok := b.weights[key]; ok {
		return Ref{Buf: i}, Ref{Buf: b.weights[key+"|scale"]}
	}
	q := b.weight(w.q, "", int64(len(w.q.Data)), func() []byte { return w.q.Data })
	s := b.weight(w.scale, "", int64(len(w.scale.Data)), func() []byte { return w.scale.Data })
	// fb_w4_pack pads to whole tiles of columns, and adds a row of sums to the scales.
	n := (w.n + packColumns - 1) / packColumns * packColumns
	packed = b.keyed(key, n*w.k/2, nil)
	scale = b.keyed(key+"|scale", (w.k/w.block+1)*n*4, nil)
	b.plan.Init = append(b.plan.Init, &W4Pack{N: w.n, K: w.k, Block: w.block, Q: q, Scale: s, Packed: packed, PackedScale: scale})
	return packed, scale
}

// packColumns is the width of the tiles that fb_w4_pack writes.
const packColumns = 32

// floats returns the weights that the codes stand for, [n, k].
func (w *blocks4) floats() []float32 {
	out := make([]float32, w.n*w.k)
	scales := tensor.View[float32](w.scale)
	for r := range w.n {
		for c := range w.k {
			blk := c / w.block
			i := c % w.block
			code := w.q.Data[(r*w.blocks()+blk)*w.block/2+i/2] >> (4 * (i % 2)) & 15
			zero := byte(8)
			if w.zero != nil {
				zero = w.zero.Data[r*((w.blocks()+1)/2)+blk/2] >> (4 * (blk % 2)) & 15
			}
			out[r*w.k+c] = float32(int(code)-int(zero)) * scales[r*w.blocks()+blk]
		}
	}
	return out
}

// divided names x / divisor, which a row is quantized after.
type divided struct{ x, divisor string }

// quantizedRows quantizes the rows of x, divided by a constant vector unless its
// name is "", once for all its readers.
func (b *builder) quantizedRows(x *value, divisor string) (*codes, error) {
	if c := b.inputs8[divided{x.name, divisor}]; c != nil {
		return c, nil
	}
	ref, err := b.dense(x)
	if err != nil {
		return nil, err
	}
	s, c := b.rowStep(x)
	s.X, s.Divisor = ref, b.vector(divisor)
	b.step(s)
	b.inputs8[divided{x.name, divisor}] = c
	return c, nil
}

// rowStep makes room for x quantized by row.
func (b *builder) rowStep(x *value) (*QuantizeRows, *codes) {
	k := x.last()
	m := x.elems / k
	s := &QuantizeRows{M: m, K: k, LdQ: round16(k)}
	s.Q = b.alloc(x.name+" (codes)", m*s.LdQ)
	s.Scale = b.alloc(x.name+" (scales)", m*4)
	s.Zero = b.alloc(x.name+" (zeros)", m*4)
	return s, &codes{ref: s.Q, ld: s.LdQ, scales: s.Scale, zeros: s.Zero}
}

// half returns x as F16, converted once for all its readers.
func (b *builder) half(x *value) (Ref, error) {
	if r, ok := b.inputs16[x.name]; ok {
		return r, nil
	}
	ref, err := b.dense(x)
	if err != nil {
		return Ref{}, err
	}
	y := b.alloc(x.name+" (half)", x.elems*2)
	b.step(&Cast{From: F32, To: F16, N: x.elems, X: ref, Y: y})
	b.inputs16[x.name] = y
	return y, nil
}

package plan

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// window reads the geometry of a convolution or pooling over one or two spatial
// axes (one is height 1).
func (b *builder) window(n *graph.Node, x, y []int64, kernel []int64) (c Conv, end [2]int64, err error) {
	r := len(x) - 2
	ints := func(name string, def int64, want int) []int64 {
		v := n.Ints(name)
		if v == nil {
			v = make([]int64, want)
			for i := range v {
				v[i] = def
			}
		}
		return v
	}
	stride, dil, pads := ints("strides", 1, r), ints("dilations", 1, r), ints("pads", 0, 2*r)
	if r < 1 || r > 2 || len(y) != len(x) || len(kernel) != r || len(stride) != r || len(dil) != r || len(pads) != 2*r {
		return c, end, unsupported(n, "%d spatial axes", r)
	}
	before := make([]int64, r)
	for i := range r {
		if kernel[i] < 1 || stride[i] < 1 || dil[i] < 1 || pads[i] < 0 || pads[r+i] < 0 ||
			kernel[i] > MaxDim || stride[i] > MaxDim || dil[i] > MaxDim || pads[i] > MaxDim || pads[r+i] > MaxDim {
			return c, end, unsupported(n, "kernel %v, strides %v, dilations %v, pads %v", kernel, stride, dil, pads)
		}
		before[i] = pads[i]
		after := pads[r+i]
		total := max((y[2+i]-1)*stride[i]+(kernel[i]-1)*dil[i]+1-x[2+i], 0)
		switch n.Str("auto_pad", "NOTSET") {
		case "SAME_UPPER":
			before[i], after = total/2, total-total/2
		case "SAME_LOWER":
			before[i], after = total-total/2, total/2
		case "VALID":
			before[i], after = 0, 0
		}
		end[2-r+i] = after
	}
	c = Conv{N: x[0], C: x[1], H: 1, W: x[len(x)-1], OC: y[1], KH: 1, KW: kernel[r-1], OH: 1, OW: y[len(y)-1],
		StrideH: 1, StrideW: stride[r-1], PadW: before[r-1], DilH: 1, DilW: dil[r-1], Groups: 1}
	if r == 2 {
		c.H, c.KH, c.OH, c.StrideH, c.PadH, c.DilH = x[2], kernel[0], y[2], stride[0], before[0], dil[0]
	}
	return c, end, nil
}

// convOf reads the geometry of a Conv.
func (b *builder) convOf(n *graph.Node) (c Conv, x, w *value, err error) {
	if x, err = b.in(n, 0); err != nil {
		return
	}
	if w, err = b.in(n, 1); err != nil {
		return
	}
	y, err := b.out(n, 0)
	if err != nil {
		return
	}
	if len(w.dims) != len(x.dims) || len(w.dims) < 3 {
		err = unsupported(n, "weight %v for input %v", w.dims, x.dims)
		return
	}
	if c, _, err = b.window(n, x.dims, y.dims, w.dims[2:]); err != nil {
		return
	}
	c.Groups = n.Int("group", 1)
	if c.Groups < 1 || c.C%c.Groups != 0 || w.dims[0]%c.Groups != 0 || w.dims[1] != c.C/c.Groups || c.OC != w.dims[0] || y.dims[0] != c.N {
		err = unsupported(n, "weight %v, %d groups, input %v, result %v", w.dims, c.Groups, x.dims, y.dims)
	}
	return
}

// tensorFilters is the fewest filters of a group that fb_conv_float multiplies on
// tensor cores. Fewer, depthwise ones above all, are bound by memory, and rounding
// their operands would gain nothing.
const tensorFilters = 8

// emitConv emits a convolution with its epilogue.
func (b *builder) emitConv(p *product) error {
	if b.intConv(p.core) {
		return b.emitConvS8(p)
	}
	n := p.core
	c, x, w, err := b.convOf(n)
	if err != nil {
		return err
	}
	y, err := b.value(p.out)
	if err != nil {
		return err
	}
	if x.dtype != tensor.Float32 || w.dtype != tensor.Float32 {
		return unsupported(n, "operands of type %v and %v", x.dtype, w.dtype)
	}
	s := &ConvFloat{Conv: c, Act: p.act.act, ActMin: p.act.lo, ActMax: p.act.hi}
	if s.X, err = b.dense(x); err != nil {
		return err
	}
	switch {
	case c.OC/c.Groups < tensorFilters: // FP32
	case b.o.Products == FP16 && w.host == nil:
		s.Products = TF32 // as of products of two computed operands
	default:
		s.Products = b.o.Products
	}
	if s.Products == FP16 {
		s.B = b.halfWeight(w)
	} else if s.B, err = b.dense(w); err != nil {
		return err
	}
	if n.In(2) != "" {
		if s.Bias, err = b.sized(n, 2, c.OC); err != nil {
			return err
		}
	}
	s.Y = b.fresh(y)
	b.step(s)
	return nil
}

func (b *builder) emitConvS8(p *product) error {
	n := p.core
	c, x, _, err := b.convOf(n)
	if err != nil {
		return err
	}
	y, err := b.value(p.out)
	if err != nil {
		return err
	}
	w, _ := b.weightCodes(n.In(1), 0)
	if !x.codes.nhwc {
		return unsupported(n, "its input has no channels")
	}
	s := &ConvS8{Conv: c, XScale: x.codes.scale, XZero: x.codes.zero, X: x.codes.ref, Act: p.act.act, ActMin: p.act.lo, ActMax: p.act.hi}
	d := w.t.Dims
	oc, cg, hw := d[0], d[1], d[2]*d[3]
	s.B = b.weight(w.t, "|nhwc", int64(len(w.codes)), func() []byte {
		out := make([]int8, len(w.codes))
		for o := range oc {
			for ch := range cg {
				for i := range hw {
					out[(o*hw+i)*cg+ch] = w.codes[(o*cg+ch)*hw+i]
				}
			}
		}
		return bytesOf(out)
	})
	s.BSum = b.weight(w.t, "|nhwc_sums", oc*4, func() []byte {
		sums := make([]int32, oc)
		for i, v := range w.codes {
			sums[int64(i)/(cg*hw)] += int32(v)
		}
		return bytesOf(sums)
	})
	s.BScale = b.scales(w.scale, oc)
	if n.In(2) != "" {
		if int64(len(b.constFloats(n.In(2)))) != oc {
			return unsupported(n, "bias of %d elements for %d channels", len(b.constFloats(n.In(2))), oc)
		}
		s.Bias = b.vector(n.In(2))
	}
	if p.residual != "" {
		r, err := b.value(p.residual)
		if err != nil {
			return err
		}
		s.Residual, s.ResidualScale, s.ResidualZero = r.codes.ref, r.codes.scale, r.codes.zero
	}
	if p.quant != nil {
		s.Out = S8
		s.OutScale, s.OutZero, _ = b.static(p.quant)
		s.Y = b.alloc(y.name, y.elems)
		y.codes = &codes{ref: s.Y, nhwc: true, scale: s.OutScale, zero: s.OutZero}
	} else {
		s.Y = b.alloc(y.name+" (nhwc)", y.elems*4)
		y.nhwc = s.Y
	}
	s.Work, s.WorkBytes = b.work(s)
	b.step(s)
	return nil
}

// poolOf reads the geometry of a pooling of rank 3 or 4.
func (b *builder) poolOf(n *graph.Node) (p Pool, err error) {
	x, err := b.in(n, 0)
	if err != nil {
		return p, err
	}
	y, err := b.out(n, 0)
	if err != nil {
		return p, err
	}
	if len(x.dims) < 3 {
		return p, unsupported(n, "operand %v", x.dims)
	}
	kernel := n.Ints("kernel_shape")
	if n.Is("GlobalAveragePool") {
		kernel = x.dims[2:]
	}
	c, end, err := b.window(n, x.dims, y.dims, kernel)
	if err != nil {
		return p, err
	}
	p = Pool{N: c.N, H: c.H, W: c.W, C: c.C, OH: c.OH, OW: c.OW, KH: c.KH, KW: c.KW, StrideH: c.StrideH, StrideW: c.StrideW,
		PadH: c.PadH, PadW: c.PadW, PadHEnd: end[0], PadWEnd: end[1], Average: !n.Is("MaxPool"), CountIncludePad: n.Int("count_include_pad", 0) != 0}
	switch {
	case p.PadH >= p.KH || p.PadHEnd >= p.KH || p.PadW >= p.KW || p.PadWEnd >= p.KW:
		return p, unsupported(n, "padding beyond the window")
	case c.DilH != 1 || c.DilW != 1:
		return p, unsupported(n, "dilations")
	case len(n.Outputs) > 1 && b.read(n.Outputs[1:]...):
		return p, unsupported(n, "the places of the largest values")
	}
	return p, nil
}

// emitPoolS8 pools codes.
func (b *builder) emitPoolS8(g *pooling) error {
	x, err := b.in(g.pool, 0)
	if err != nil {
		return err
	}
	y, err := b.out(g.quant, 0)
	if err != nil {
		return err
	}
	p, err := b.poolOf(g.pool)
	if err != nil {
		return err
	}
	s := &PoolS8{Pool: p, XScale: x.codes.scale, XZero: x.codes.zero, X: x.codes.ref}
	s.YScale, s.YZero, _ = b.static(g.quant)
	s.Y = b.alloc(y.name, y.elems)
	y.codes = &codes{ref: s.Y, nhwc: true, scale: s.YScale, zero: s.YZero}
	b.step(s)
	return nil
}

// emitPool pools floats, or codes whose parameters stay.
func (b *builder) emitPool(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	if x.codes != nil && x.dtype != tensor.Float32 {
		if !n.Is("MaxPool") || !x.codes.nhwc {
			return unsupported(n, "operand %v", x.dtype)
		}
		p, err := b.poolOf(n)
		if err != nil {
			return err
		}
		c := *x.codes
		c.ref = b.alloc(y.name, y.elems)
		b.step(&PoolS8{Pool: p, XScale: 1, YScale: 1, X: x.codes.ref, Y: c.ref})
		y.codes = &c
		return nil
	}
	if x.dtype != tensor.Float32 {
		return unsupported(n, "operand %v", x.dtype)
	}
	if n.Is("GlobalAveragePool") || n.Is("GlobalMaxPool") {
		if len(x.dims) < 3 {
			return unsupported(n, "operand %v", x.dims)
		}
		hw := product64(x.dims[2:])
		if n.Is("GlobalMaxPool") {
			return b.reduce(n, ReduceMax, x.dims[0]*x.dims[1], hw, 1)
		}
		s := &GlobalAverage{N: x.dims[0], C: x.dims[1], HW: hw}
		if s.X = b.channelsLast(x); s.X != (Ref{}) {
			s.NHWC = true
		} else if s.X, err = b.dense(x); err != nil {
			return err
		}
		s.Y = b.fresh(y)
		b.step(s)
		return nil
	}
	p, err := b.poolOf(n)
	if err != nil {
		return err
	}
	s := &PoolF32{Pool: p}
	if s.X, err = b.dense(x); err != nil {
		return err
	}
	s.Y = b.fresh(y)
	b.step(s)
	return nil
}

// emitBatchNorm emits inference: y = x * s + t by channel.
func (b *builder) emitBatchNorm(n *graph.Node) error {
	x, y, err := b.ends(n)
	if err != nil {
		return err
	}
	var p [4][]float32
	for i := range p {
		p[i] = b.constFloats(n.In(i + 1))
		if len(x.dims) < 2 || int64(len(p[i])) != x.dims[1] || x.dtype != tensor.Float32 {
			return unsupported(n, "its parameters are not constant")
		}
	}
	scale, shift := make([]float32, len(p[0])), make([]float32, len(p[0]))
	for i := range scale {
		scale[i] = p[0][i] / sqrt32(p[3][i]+n.Float("epsilon", 1e-5))
		shift[i] = p[1][i] - p[2][i]*scale[i]
	}
	channels := make([]int64, len(x.dims)-1)
	for i := range channels {
		channels[i] = 1
	}
	channels[0] = x.dims[1]
	ref, err := b.dense(x)
	if err != nil {
		return err
	}
	scaled := b.alloc(fmt.Sprint(y.name, " (scaled)"), x.elems*4)
	for _, s := range []struct {
		op   Op
		a, y Ref
		v    []float32
	}{{Mul, ref, scaled, scale}, {Add, scaled, b.fresh(y), shift}} {
		if err := b.binary(n, s.op, F32, x.dims, s.a, x.dims, constant(b, s.v...), channels, s.y); err != nil {
			return err
		}
	}
	return nil
}

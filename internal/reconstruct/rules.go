package reconstruct

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// rules is what gradients are known of, by domain and operator.
var rules = map[string]rule{
	":Conv": gradConv, ":MatMul": gradMatMul, ":Gemm": gradGemm,
	":Add": gradAdd, ":Sum": gradAdd, ":Sub": gradSub, ":Mul": gradMul, ":Div": gradDiv,
	":Relu": gradRelu, ":LeakyRelu": gradLeakyRelu, ":Clip": gradClip, ":Sigmoid": gradSigmoid, ":Tanh": gradTanh, ":HardSwish": gradHardSwish, ":HardSigmoid": gradHardSigmoid,
	":Erf": gradErf, ":Sqrt": gradSqrt, ":Pow": gradPow, ":Softmax": gradSoftmax, ":LayerNormalization": gradLayerNorm, ":ReduceMean": gradReduceMean,
	":GlobalAveragePool": gradGlobalAveragePool,
	":Gelu":              gradGelu, "com.microsoft:Gelu": gradGelu, "com.microsoft:MultiHeadAttention": gradAttention,
	":Reshape": gradShape, ":Flatten": gradShape, ":Squeeze": gradShape, ":Unsqueeze": gradShape, ":Identity": gradShape, ":Transpose": gradTranspose,
	":QuantizeLinear": gradQuantize, ":DequantizeLinear": gradDequantize,
}

// gradMatMul: of a matrix on the right, all rows of the left are taken as one matrix.
func gradMatMul(b *builder, n *graph.Node, dy string) ([]string, error) {
	x, w, y := n.In(0), n.In(1), n.Outputs[0]
	dx := make([]string, 2)
	flat := len(b.g.Dims(w)) == 2
	if b.g.Dims(w) == nil || b.g.Dims(x) == nil && !flat || len(b.g.Dims(x)) == 1 || len(b.g.Dims(w)) == 1 {
		return nil, fmt.Errorf("%w: the rank of its inputs is not known, or 1", ErrNoGradient)
	}
	if b.live[x] {
		dx[0] = b.product(dy, w, false, true)
		if !flat {
			dx[0] = b.unbroadcast(dx[0], dx[0], x)
		}
	}
	if b.live[w] && flat {
		d, err := b.fixed(w)
		if err != nil {
			return nil, err
		}
		dx[1] = b.product(b.reshape(x, -1, d[0]), b.reshape(dy, -1, d[1]), true, false)
	} else if b.live[w] {
		d := b.product(x, dy, true, false)
		dx[1] = b.unbroadcast(d, y, w)
	}
	return dx, nil
}

// gradGemm is for products that are neither scaled nor read a transposed activation.
func gradGemm(b *builder, n *graph.Node, dy string) ([]string, error) {
	if n.Int("transA", 0) != 0 || n.Float("alpha", 1) != 1 || n.Float("beta", 1) != 1 {
		return nil, fmt.Errorf("%w: with transA, alpha or beta", ErrNoGradient)
	}
	x, w := n.In(0), n.In(1)
	dx := []string{"", "", ""}
	turned := n.Int("transB", 0) != 0
	if b.live[x] {
		dx[0] = b.product(dy, w, false, !turned)
	}
	if b.live[w] && turned {
		dx[1] = b.product(dy, x, true, false)
	} else if b.live[w] {
		dx[1] = b.product(x, dy, true, false)
	}
	if b.live[n.In(2)] {
		dx[2] = b.unbroadcast(dy, n.Outputs[0], n.In(2))
	}
	return dx, nil
}

// each gives every live input the part of the derivative that f makes.
func (b *builder) each(n *graph.Node, f func(i int) string) []string {
	dx := make([]string, len(n.Inputs))
	for i, in := range n.Inputs {
		if b.live[in] {
			dx[i] = b.unbroadcast(f(i), n.Outputs[0], in)
		}
	}
	return dx
}

func gradAdd(b *builder, n *graph.Node, dy string) ([]string, error) {
	return b.each(n, func(int) string { return dy }), nil
}

func gradSub(b *builder, n *graph.Node, dy string) ([]string, error) {
	return b.each(n, func(i int) string {
		if i == 1 {
			return b.op("Neg", dy)
		}
		return dy
	}), nil
}

func gradMul(b *builder, n *graph.Node, dy string) ([]string, error) {
	return b.each(n, func(i int) string { return b.op("Mul", dy, n.In(1-i)) }), nil
}

func gradDiv(b *builder, n *graph.Node, dy string) ([]string, error) {
	return b.each(n, func(i int) string {
		if i == 1 { // -dy y / b
			return b.op("Neg", b.op("Div", b.op("Mul", dy, n.Outputs[0]), n.In(1)))
		}
		return b.op("Div", dy, n.In(1))
	}), nil
}

// where is dy where cond holds, else 0.
func (b *builder) where(cond, dy string) string { return b.op("Where", cond, dy, b.number(0)) }

func gradRelu(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.where(b.op("Greater", n.In(0), b.number(0)), dy)}, nil
}

func gradLeakyRelu(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.op("Where", b.op("Greater", n.In(0), b.number(0)), dy, b.op("Mul", dy, b.number(n.Float("alpha", 0.01))))}, nil
}

// gradClip passes what was not clipped.
func gradClip(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.where(b.op("Equal", n.In(0), n.Outputs[0]), dy)}, nil
}

// logistic is the derivative of a sigmoid whose value is y.
func (b *builder) logistic(y string) string {
	return b.op("Mul", y, b.op("Sub", b.number(1), y))
}

func gradSigmoid(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.op("Mul", dy, b.logistic(n.Outputs[0]))}, nil
}

func gradTanh(b *builder, n *graph.Node, dy string) ([]string, error) {
	y := n.Outputs[0]
	return []string{b.op("Mul", dy, b.op("Sub", b.number(1), b.op("Mul", y, y)))}, nil
}

// ramp is 1 where 0 < scale x + shift < 1, as a condition.
func (b *builder) ramp(x string, scale, shift float32) (inside string) {
	r := b.op("Add", b.op("Mul", x, b.number(scale)), b.number(shift))
	return b.op("And", b.op("Greater", r, b.number(0)), b.op("Less", r, b.number(1)))
}

// gradHardSwish: y = x clip(x/6 + 1/2, 0, 1).
func gradHardSwish(b *builder, n *graph.Node, dy string) ([]string, error) {
	x := n.In(0)
	gate := b.with("HardSigmoid", []string{x}, graph.AttrFloat("alpha", 1./6), graph.AttrFloat("beta", 0.5))
	rise := b.where(b.ramp(x, 1./6, 0.5), b.op("Mul", x, b.number(1./6)))
	return []string{b.op("Mul", dy, b.op("Add", gate, rise))}, nil
}

func gradHardSigmoid(b *builder, n *graph.Node, dy string) ([]string, error) {
	alpha := n.Float("alpha", 0.2)
	return []string{b.where(b.ramp(n.In(0), alpha, n.Float("beta", 0.5)), b.op("Mul", dy, b.number(alpha)))}, nil
}

// bell is c exp(-x^2 k).
func (b *builder) bell(x string, c, k float32) string {
	return b.op("Mul", b.op("Exp", b.op("Mul", b.op("Mul", x, x), b.number(-k))), b.number(c))
}

func gradErf(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.op("Mul", dy, b.bell(n.In(0), float32(2/math.Sqrt(math.Pi)), 1))}, nil
}

// gradGelu: y = x Phi(x), so that y' = Phi(x) + x phi(x).
func gradGelu(b *builder, n *graph.Node, dy string) ([]string, error) {
	if n.Str("approximate", "none") != "none" {
		return nil, fmt.Errorf("%w: of its approximation", ErrNoGradient)
	}
	x := n.In(0)
	half := b.number(0.5)
	phi := b.op("Add", b.op("Mul", b.op("Erf", b.op("Mul", x, b.number(float32(math.Sqrt2/2)))), half), half)
	density := b.bell(x, float32(1/math.Sqrt(2*math.Pi)), 0.5)
	return []string{b.op("Mul", dy, b.op("Add", phi, b.op("Mul", x, density)))}, nil
}

func gradSqrt(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.op("Div", b.op("Mul", dy, b.number(0.5)), n.Outputs[0])}, nil
}

// gradPow is for a constant exponent.
func gradPow(b *builder, n *graph.Node, dy string) ([]string, error) {
	p, ok := b.g.Number(n.In(1))
	if !ok {
		return nil, fmt.Errorf("%w: its exponent is no constant number", ErrNoGradient)
	}
	return []string{b.op("Mul", dy, b.op("Mul", b.op("Pow", n.In(0), b.number(p-1)), b.number(p)))}, nil
}

// gradSoftmax: dx = y (dy - sum(dy y)).
func gradSoftmax(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.softmax(n.Outputs[0], dy, n.Int("axis", -1))}, nil
}

func (b *builder) softmax(y, dy string, axis int64) string {
	return b.op("Mul", y, b.op("Sub", dy, b.sum(b.op("Mul", dy, y), true, axis)))
}

// mean is over the last axis. ReduceMean has its axes as an attribute before opset 18
// and as an input from it on; ReduceSum is the same in both.
func (b *builder) mean(x string) string {
	sum := b.sum(x, true, -1)
	return b.op("Div", sum, b.ratio(x, sum))
}

// ratio is how many values of x one of y stands for.
func (b *builder) ratio(x, y string) string {
	return b.with("Cast", []string{b.op("Div", b.op("Size", x), b.op("Size", y))}, graph.AttrInt("to", int64(tensor.Float32)))
}

// gradLayerNorm, with z the normalized input, r what it was multiplied by and g = dy
// times the scale: dx = r (g - mean(g) - z mean(g z)).
func gradLayerNorm(b *builder, n *graph.Node, dy string) ([]string, error) {
	x := n.In(0)
	if n.Int("axis", -1) != -1 || b.live[n.In(1)] || b.live[n.In(2)] {
		return nil, fmt.Errorf("%w: over more than the last axis", ErrNoGradient)
	}
	centered := b.op("Sub", x, b.mean(x))
	spread := b.op("Sqrt", b.op("Add", b.mean(b.op("Mul", centered, centered)), b.number(n.Float("epsilon", 1e-5))))
	z := b.op("Div", centered, spread)
	g := b.op("Mul", dy, n.In(1))
	d := b.op("Sub", b.op("Sub", g, b.mean(g)), b.op("Mul", z, b.mean(b.op("Mul", g, z))))
	return []string{b.op("Div", d, spread)}, nil
}

// spread gives each value of x an equal part of dy, which has the axes of y, the mean.
func (b *builder) spread(x, y, dy string) string {
	return b.op("Expand", b.op("Div", dy, b.ratio(x, y)), b.op("Shape", x))
}

func gradReduceMean(b *builder, n *graph.Node, dy string) ([]string, error) {
	if n.Int("keepdims", 1) == 0 {
		axes := n.In(1) // from opset 18 on
		if a := n.Ints("axes"); a != nil {
			axes = b.ints(a...)
		}
		if axes == "" {
			return nil, fmt.Errorf("%w: over all axes", ErrNoGradient)
		}
		dy = b.op("Unsqueeze", dy, axes)
	}
	return []string{b.spread(n.In(0), n.Outputs[0], dy)}, nil
}

func gradGlobalAveragePool(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.spread(n.In(0), n.Outputs[0], dy)}, nil
}

func gradShape(b *builder, n *graph.Node, dy string) ([]string, error) {
	return []string{b.like(dy, n.In(0))}, nil
}

func gradTranspose(b *builder, n *graph.Node, dy string) ([]string, error) {
	perm := n.Ints("perm")
	if perm == nil {
		return nil, fmt.Errorf("%w: without perm", ErrNoGradient)
	}
	back := make([]int64, len(perm))
	for i, p := range perm {
		if p < 0 || int(p) >= len(perm) {
			return nil, fmt.Errorf("%w: perm %v", ErrNoGradient, perm)
		}
		back[p] = int64(i)
	}
	return []string{b.with("Transpose", []string{dy}, graph.AttrInts("perm", back...))}, nil
}

// gradQuantize is the straight-through estimator (Bengio et al. 2013,
// arXiv:1308.3432): rounding passes the derivative as it is, clipping stops it. The
// derivative with respect to codes is that with respect to what they stand for. That
// with respect to the scale s is sum(dy (y - x) / s) over what lies in the range and
// sum(dy y / s) over the rest (LSQ, Esser et al. 2020, arXiv:1902.08153, section 2.1),
// the zero point being fixed.
func gradQuantize(b *builder, n *graph.Node, dy string) ([]string, error) {
	x, s, z := n.In(0), n.In(1), b.g.Init(n.In(2))
	if d, err := b.fixed(s); z == nil || z.Len() != 1 || err != nil || len(d) > 0 && !all(d, 1) {
		return nil, fmt.Errorf("%w: its scale or zero point is no single number", ErrNoGradient)
	}
	var lo, hi, zero float32
	switch z.Type {
	case tensor.Uint8:
		lo, hi, zero = 0, math.MaxUint8, float32(tensor.View[uint8](z)[0])
	case tensor.Int8:
		lo, hi, zero = math.MinInt8, math.MaxInt8, float32(tensor.View[int8](z)[0])
	case tensor.Uint16:
		lo, hi, zero = 0, math.MaxUint16, float32(tensor.View[uint16](z)[0])
	default:
		return nil, fmt.Errorf("%w: to %v", ErrNoGradient, z.Type)
	}
	clipped := b.op("Clip", x, b.op("Mul", s, b.number(lo-zero)), b.op("Mul", s, b.number(hi-zero)))
	dx := b.where(b.op("Equal", x, clipped), dy)
	ds := ""
	if b.live[s] {
		sum := func(p, q string) string {
			return b.with("ReduceSum", []string{b.op("Mul", p, q)}, graph.AttrInt("keepdims", 0))
		}
		y := b.op("DequantizeLinear", n.Outputs[0], s, n.In(2))
		ds = b.op("Div", b.op("Sub", sum(dy, y), sum(dx, x)), s)
	}
	return []string{dx, ds}, nil
}

func gradDequantize(_ *builder, _ *graph.Node, dy string) ([]string, error) {
	return []string{dy}, nil
}

// gradAttention takes com.microsoft's MultiHeadAttention apart as attention is defined
// (Vaswani et al. 2017, arXiv:1706.03762, section 3.2): P = softmax(scale Q K' + mask),
// y = P V, a head at a time.
func gradAttention(b *builder, n *graph.Node, dy string) ([]string, error) {
	heads, ok := graph.PlainAttention(n)
	if !ok {
		return nil, fmt.Errorf("%w: with a bias, a past or a causal order", ErrNoGradient)
	}
	width := b.g.Dims(n.In(0))
	if len(width) != 3 || width[2].N <= 0 || width[2].N%heads != 0 {
		return nil, fmt.Errorf("%w: the size of its heads is not known", ErrNoGradient)
	}
	if b.live[n.In(5)] {
		return nil, fmt.Errorf("%w: its mask is learned", ErrNoGradient)
	}
	scale := n.Float("scale", 0)
	if scale == 0 {
		scale = float32(1 / math.Sqrt(float64(width[2].N/heads)))
	}
	turn := func(v string) string { return b.with("Transpose", []string{v}, graph.AttrInts("perm", 0, 2, 1, 3)) }
	split := func(v string) string { return turn(b.reshape(v, 0, 0, heads, -1)) }
	q, k, v := split(n.In(0)), split(n.In(1)), split(n.In(2))
	scores := b.op("Mul", b.product(q, k, false, true), b.number(scale))
	if m := n.In(5); m != "" {
		scores = b.op("Add", scores, m)
	}
	p := b.with("Softmax", []string{scores}, graph.AttrInt("axis", -1))
	d := split(dy)
	ds := b.op("Mul", b.softmax(p, b.product(d, v, false, true), -1), b.number(scale))
	join := func(parts string) string { return b.reshape(turn(parts), 0, 0, -1) }
	return []string{join(b.product(ds, k, false, false)), join(b.product(ds, q, true, false)), join(b.product(p, d, true, false))}, nil
}

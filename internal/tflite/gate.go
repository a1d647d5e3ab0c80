package tflite

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/tensor"

	flatbuffers "github.com/google/flatbuffers/go"
)

func leakyOptions(alpha float32) options {
	return options{75, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 1, func() { b.PrependFloat32Slot(0, alpha, 0) })
	}}
}

func sayLeakyRelu(s *site) error {
	return unary(opLeakyRelu, leakyOptions(s.n.Float("alpha", 0.01)), nil)(s)
}

// hardSigmoidCodes accepts a HardSigmoid on codes that begin at 0 and end at 1 or below, so
// that their own bounds are the operator's.
func hardSigmoidCodes(s *site) error {
	alpha, beta := float64(s.n.Float("alpha", 0.2)), float64(s.n.Float("beta", 0.5))
	step := float64(s.quant.scale[0])
	lo, hi := s.quant.ends()
	if !(alpha > 0) || math.IsInf(alpha, 1) || math.IsNaN(beta) || math.IsInf(beta/alpha, 0) || lo != 0 || hi > 1+step/2 || !(step/alpha > 0) || math.IsInf(float64(float32(step/alpha)), 1) {
		return fmt.Errorf("%w: %g*x + %g on codes from %g to %g", ErrUnsupported, alpha, beta, lo, hi)
	}
	return nil
}

// codeOf makes a constant of one code that stands for v.
func (c *converter) codeOf(name string, v float32) int32 {
	q, code := &quantization{scale: []float32{1}}, int8(0)
	if scale := float32(math.Abs(float64(v)) / math.MaxInt8); scale > 0 {
		q.scale[0], code = scale, math.MaxInt8
		if v < 0 {
			code = -math.MaxInt8
		}
	}
	return c.add(&tensorDef{name: name, typ: int8Type, shape: []int32{1}, data: tensor.From([]int8{code}).Data, quant: q})
}

// sayHardSigmoid says max(0, min(1, alpha*x + beta)): there is no such operator. On codes it
// is (x + beta/alpha) * alpha, where the codes of the sum end at 0 and 1/alpha.
func sayHardSigmoid(s *site) error {
	x, err := s.input(0)
	if err != nil {
		return err
	}
	c, shape := s.c, s.c.p.tensors[x].shape
	alpha, beta := s.n.Float("alpha", 0.2), s.n.Float("beta", 0.5)
	if s.ints {
		sum := c.like(x, s.y+"/shifted", shape)
		c.p.tensors[sum].quant = &quantization{scale: []float32{s.quant.scale[0] / alpha}, zero: s.quant.zero}
		c.emit(opAdd, []int32{x, c.codeOf(s.y+"/shift", beta/alpha)}, sum, addOptions(actNone))
		return s.write(opMul, []int32{sum, c.codeOf(s.y+"/alpha", alpha)}, mulOptions(actNone))
	}
	scaled, shifted := c.like(x, s.y+"/scaled", shape), c.like(x, s.y+"/shifted", shape)
	c.emit(opMul, []int32{x, c.number(s.y+"/alpha", alpha)}, scaled, mulOptions(actNone))
	c.emit(opAdd, []int32{scaled, c.number(s.y+"/beta", beta)}, shifted, addOptions(actRelu))
	return s.write(opMinimum, []int32{shifted, c.number(s.y+"/one", 1)}, empty(39))
}

package ort

import (
	"testing"

	"github.com/fewbit/fewbit/internal/tensor"
)

// encoderLayers is a model of EncoderLayers for FuzzOperators.
func (c *bentCase) encoderLayers(t *testing.T) {
	batch, length, heads, size, inner := int64(pick(&c.src, 1, 2, 0)), int64(pick(&c.src, 1, 5, 18, 70, 0)), 1+c.src.of(3), pick(&c.src, 16, 24, 32, 5), c.size()
	width, padded := heads*size, (size+15)/16*16
	x := c.activation(batch, length, int64(width))
	c.feed("x", x)
	in := []string{"x", "mask"}
	mask := tensor.From([]float32{}, 0)
	if c.src.of(2) == 1 {
		mask = c.mask(batch, int64(heads), length)
	}
	c.feed("mask", mask)
	projection := func(k, n, used, step int) (w int8Weight, divisor, bias []float32) {
		w = c.paddedWeight(t, k, n, used, step)
		divisor, bias = randoms(c.r, k*c.src.of(2)), randoms(c.r, n*c.src.of(2))
		positive(divisor)
		for i := range bias {
			if i%step >= used {
				bias[i] = 0
			}
		}
		in = append(in, c.constant(tensor.From(w.packed, int64(len(w.packed)))))
		for _, v := range [][]float32{divisor, bias} {
			in = append(in, c.constant(tensor.From(v, int64(len(v)))))
		}
		return w, divisor, bias
	}
	var layers []bentLayer
	for range 1 + c.src.of(2) {
		var l bentLayer
		for i, d := range [4][4]int{{width, 3 * heads * padded, size, padded}, {width, width, 1, 1}, {width, inner, 1, 1}, {inner, width, 1, 1}} {
			l.products[i], l.divisors[i], l.biases[i] = projection(d[0], d[1], d[2], d[3])
			if i%2 == 1 {
				l.gamma[i/2], l.beta[i/2] = randoms(c.r, width), randoms(c.r, width)
				for _, v := range [][]float32{l.gamma[i/2], l.beta[i/2]} {
					in = append(in, c.constant(tensor.From(v, int64(len(v)))))
				}
			}
		}
		layers = append(layers, l)
	}
	attrs := encoderAttrs(int64(width), int64(heads), encScale, encEpsilon)
	act, first := pick(&c.src, "", "gelu", "gelu_tanh", "quick_gelu", "silu", "relu"), c.src.of(2) == 1
	if act != "" {
		attrs = append(attrs, attrString("activation", act))
	} else {
		act = "gelu"
	}
	if first {
		attrs = append(attrs, attrString("normalize", "first"))
	}
	skip := c.src.of(2) == 1
	if skip {
		attrs = append(attrs, attrString("padding", "skip"))
	}
	c.node("EncoderLayers", in, attrs...)
	if len(mask.Dims) == 1 {
		mask = nil
	}
	if skip && mask != nil {
		return // which rows are 0 is tested in cpu/test/encoder_test.cpp
	}
	c.want = encoded(tensor.View[float32](x), mask, layers, batch, length, int64(heads), int64(size), first, act)
	c.norm = encoderTolerance
}

// encoderTolerance: attention's weights have 8 bits, and what lies on the edge
// between two codes gets the other one here and there.
const encoderTolerance = .05

package ort

import (
	"fmt"
	"strings"
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
	n, gated, rms, rotary := 1+c.src.of(2), c.src.of(3) == 1, c.src.of(3) == 1, c.src.of(3) == 1
	kinds := ""
	if c.src.of(3) == 1 {
		kinds = pick(&c.src, "0", "1", "2", "01"[:n], "10"[:n], "00"[:n], "x")
	}
	if rotary {
		c.rotation(&in, "", batch, length, size)
	}
	for i := range 2 { // of a second and a third kind
		if !strings.ContainsAny(kinds, "12"[i:]) {
			break
		}
		name := fmt.Sprint("mask", i)
		c.feed(name, mask)
		in = append(in, name)
		if rotary {
			c.rotation(&in, fmt.Sprint(i), batch, length, size)
		}
	}
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
	up := [4]int{width, inner, 1, 1}
	if gated { // of both parts whole panels
		half := (inner + panelColumns - 1) / panelColumns * panelColumns
		up = [4]int{width, 2 * half, inner, half}
	}
	for range n {
		var l bentLayer
		for i, d := range [4][4]int{{width, 3 * heads * padded, size, padded}, {width, width, 1, 1}, up, {inner, width, 1, 1}} {
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
	for name, on := range map[string]bool{"gate": gated, "norm": rms, "rotary": rotary, "kinds": kinds != ""} {
		if on {
			attrs = append(attrs, attrString(name, map[string]string{"gate": "multiply", "norm": "rms", "rotary": "half", "kinds": kinds}[name]))
		}
	}
	skip := c.src.of(2) == 1
	if skip {
		attrs = append(attrs, attrString("padding", "skip"))
	}
	one := c.src.of(3) == 1
	if one {
		attrs = append(attrs, attrString("read", "first"))
	}
	c.node("EncoderLayers", in, attrs...)
	if kinds != "" && (len(kinds) != n || kinds == "x") {
		c.edits = append(c.edits, "kinds "+kinds)
	}
	if gated || rms || rotary || kinds != "" {
		return // what these give is tested in cpu/test/encoder_test.cpp
	}
	if len(mask.Dims) == 1 {
		mask = nil
	}
	if skip && mask != nil {
		return // which rows are 0 is tested in cpu/test/encoder_test.cpp
	}
	c.want = encoded(tensor.View[float32](x), mask, layers, batch, length, int64(heads), int64(size), first, act)
	if one && c.want != nil {
		of := make([]float64, 0, batch*int64(width))
		for b := range batch * min(1, length) {
			of = append(of, c.want[b*length*int64(width):][:width]...)
		}
		c.want = of
	}
	c.norm = encoderTolerance
}

// panelColumns is FEWBIT_CPU_PANEL, the columns of a panel of a packed weight.
const panelColumns = 48

// rotation adds cosines and sines of each position to in.
func (c *bentCase) rotation(in *[]string, suffix string, batch, length int64, size int) {
	of := int64(2 * (1 + c.src.of(max(1, size/2))))
	if of > int64(size) {
		c.edits = append(c.edits, "a rotation wider than a head")
	}
	for _, name := range []string{"cos" + suffix, "sin" + suffix} {
		c.feed(name, c.activation(pick(&c.src, batch, batch, 1), length, of))
		*in = append(*in, name)
	}
	a, b := c.feeds["cos"+suffix], c.feeds["sin"+suffix]
	if a.Dims[0] != b.Dims[0] {
		c.edits = append(c.edits, "cosines and sines of unlike batches")
	}
}

// encoderTolerance: attention's weights have 8 bits, and what lies on the edge
// between two codes gets the other one here and there.
const encoderTolerance = .05

package tflite

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/tensor"
)

// biasTolerance is how far the scale of a bias may be from the product of its
// input's and weight's before its codes are computed anew.
const biasTolerance = 1e-6

// maxReach bounds what a window spans in one dimension.
const maxReach = 1 << 20

// spatial reads what windows have in common. It returns the padding before and
// after the height and width that the format's own kinds do not say.
func (s *site) spatial(kernel [2]int32) (w window, before, after [2]int32, explicit bool, err error) {
	in, err := s.c.shape(s.n.In(0))
	if err != nil {
		return w, before, after, false, err
	}
	out, err := s.c.shape(s.n.Outputs[0])
	if err != nil {
		return w, before, after, false, err
	}
	if len(in) != 4 || len(out) != 4 {
		return w, before, after, false, fmt.Errorf("%w: windows over %d dimensions, two are taken", ErrUnsupported, len(in)-2)
	}
	pair := func(name string, def int64) (r [2]int32) {
		v := s.n.Ints(name)
		for i := range r {
			x := def
			if len(v) == 2 {
				x = v[i]
			}
			if (v != nil && len(v) != 2) || x < 1 || x > math.MaxInt16 {
				err = fmt.Errorf("%w: %s %v", ErrUnsupported, name, v)
				return r
			}
			r[i] = int32(x)
		}
		return r
	}
	w = window{pad: padValid, kernel: kernel, stride: pair("strides", 1), dilation: pair("dilations", 1), act: s.act}
	pads := s.n.Ints("pads")
	auto := s.n.Str("auto_pad", "NOTSET")
	if err != nil || pads != nil && len(pads) != 4 {
		return w, before, after, false, fmt.Errorf("%w: its strides, dilations or pads", ErrUnsupported)
	}
	same, none := true, true
	for i := range 2 {
		reach := int64(kernel[i]-1)*int64(w.dilation[i]) + 1
		total := int64(out[2+i]-1)*int64(w.stride[i]) + reach - int64(in[2+i]) // what the last window reads beyond the value
		var first int64
		switch {
		case auto == "SAME_UPPER":
			first = max(total, 0) / 2
		case auto == "SAME_LOWER":
			first = (max(total, 0) + 1) / 2
		case auto == "NOTSET" && pads != nil:
			first = pads[i]
		}
		if reach > maxReach || first < 0 || first >= reach || total-first > int64(in[2+i])+reach {
			return w, before, after, false, fmt.Errorf("%w: pads %v for a kernel of %v", ErrUnsupported, pads, kernel)
		}
		before[i], after[i] = int32(first), int32(max(total-first, 0))
		none = none && before[i] == 0 && after[i] == 0
		// SAME is what TensorFlow computes: as many outputs as strides fit, the odd one of the padding behind.
		full := (in[2+i] + w.stride[i] - 1) / w.stride[i]
		want := max(int64(full-1)*int64(w.stride[i])+reach-int64(in[2+i]), 0)
		same = same && full == out[2+i] && int64(before[i]) == want/2 && int64(after[i]) == want-want/2
	}
	switch {
	case none:
	case same:
		w.pad = padSame
	default:
		explicit = true
	}
	return w, before, after, explicit, nil
}

// padded puts a border around height and width; fill nil is zero.
func (s *site) padded(x int32, before, after [2]int32, fill *float32) int32 {
	c, d := s.c, s.c.p.tensors[x]
	shape := []int32{d.shape[0], d.shape[1] + before[0] + after[0], d.shape[2] + before[1] + after[1], d.shape[3]}
	out := c.like(x, s.y+"/padded", shape)
	in := []int32{x, c.integers(s.y+"/pads", []int32{0, 0, before[0], after[0], before[1], after[1], 0, 0}, 4, 2)}
	if fill == nil {
		c.emit(opPad, in, out, empty(22))
		return out
	}
	switch d.typ {
	case int8Type:
		in = append(in, c.add(&tensorDef{name: s.y + "/fill", typ: int8Type, shape: []int32{1}, data: []byte{0x80}, quant: d.quant}))
	case int16Type:
		in = append(in, c.add(&tensorDef{name: s.y + "/fill", typ: int16Type, shape: []int32{1}, data: []byte{0, 0x80}, quant: d.quant}))
	default:
		in = append(in, c.add(&tensorDef{name: s.y + "/fill", typ: float32Type, shape: []int32{1}, data: tensor.From([]float32{*fill}).Data}))
	}
	c.emit(opPadV2, in, out, empty(43))
	return out
}

// weightOf reads constant input i, float or dequantized.
func (s *site) weightOf(i int) (dims []int32, w *weight, err error) {
	name := s.n.In(i)
	if t := s.c.g.Init(name); t != nil {
		return dims32(t.Dims), nil, t.Check()
	}
	if w, err = s.c.weight(name); err != nil {
		return nil, nil, err
	}
	return w.dims, w, nil
}

// numbers returns what constant input i stands for.
func (s *site) numbers(i int) ([]float32, error) {
	_, w, err := s.weightOf(i)
	if err != nil {
		return nil, err
	}
	if w != nil {
		return w.floats(), nil
	}
	return s.c.g.Init(s.n.In(i)).F32()
}

// codes checks that a weight is what int8 kernels multiply by: no zero point, and
// one scale or one by output channel (dimension axis).
func codes(w *weight, axis int) error {
	switch {
	case w == nil:
		return fmt.Errorf("%w: its weight is float", ErrUnsupported)
	case w.typ != int8Type || w.zero != 0:
		return fmt.Errorf("%w: weight %q is not symmetric", ErrUnsupported, w.name)
	case len(w.scale) > 1 && w.axis != axis:
		return fmt.Errorf("%w: weight %q has scales along dimension %d", ErrUnsupported, w.name, w.axis)
	}
	return nil
}

func convWeights(s *site) error {
	_, w, err := s.weightOf(1)
	if err != nil {
		return err
	}
	return codes(w, 0)
}

func denseWeights(s *site) error {
	dims, w, err := s.weightOf(1)
	if err != nil {
		return err
	}
	if s.n.Op == "Gemm" && s.n.Float("alpha", 1) != 1 {
		return fmt.Errorf("%w: alpha %g", ErrUnsupported, s.n.Float("alpha", 1))
	}
	axis := len(dims) - 1
	if s.n.Op == "Gemm" && s.n.Int("transB", 0) != 0 {
		axis = 0
	}
	return codes(w, axis)
}

// constantWeight makes the tensor of constant input i in another order.
func (s *site) constantWeight(i int, dims []int32, w *weight, perm []int) (int32, error) {
	if w != nil {
		return s.c.weightTensor(w, perm, s.ints)
	}
	return s.c.constant(s.n.In(i), s.c.g.Init(s.n.In(i)), reorder(dims, perm), perm)
}

// bias makes the tensor of constant input i with n elements: int32 at the product
// of the scales of input and weight, or float.
func (s *site) bias(i int, n int32, x int32, w *weight) (int32, error) {
	name := s.n.In(i)
	if name == "" {
		return -1, nil
	}
	dims, bw, err := s.weightOf(i)
	if err != nil {
		return 0, err
	}
	f, err := s.numbers(i)
	if err != nil {
		return 0, err
	}
	if (&tensorDef{shape: dims}).elems() != int64(n) {
		return 0, fmt.Errorf("%w: a bias of dimensions %v for %d channels", ErrUnsupported, dims, n)
	}
	if err := s.c.reserve(4 * int64(n)); err != nil {
		return 0, err
	}
	if !s.ints {
		return s.c.add(&tensorDef{name: name, typ: float32Type, shape: []int32{n}, data: tensor.From(f).Data}), nil
	}
	scale := make([]float32, len(w.scale))
	keep := bw != nil && bw.typ == int32Type && (len(bw.scale) == len(scale))
	for j := range scale {
		scale[j] = s.c.p.tensors[x].quant.scale[0] * w.scale[j]
		if scale[j] == 0 {
			return 0, fmt.Errorf("%w: the scale of bias %q is too small", ErrUnsupported, name)
		}
		keep = keep && math.Abs(float64(bw.scale[j]-scale[j])) <= biasTolerance*float64(scale[j])
	}
	data := make([]int32, n)
	if keep {
		copy(data, tensor.View[int32](&tensor.Tensor{Type: tensor.Int32, Data: bw.data}))
	} else {
		for j, v := range f {
			r := math.RoundToEven(float64(v) / float64(scale[j%len(scale)]))
			data[j] = int32(max(min(r, math.MaxInt32), math.MinInt32))
		}
	}
	return s.c.add(s.biasDef(name, data, scale)), nil
}

// biasDef is a bias of int32, or of int64 beside 16-bit activations.
func (s *site) biasDef(name string, codes []int32, scale []float32) *tensorDef {
	t := &tensorDef{name: name, typ: int32Type, shape: []int32{int32(len(codes))}, data: tensor.From(codes).Data, quant: &quantization{scale: scale}}
	if s.quant.wide {
		wide := make([]int64, len(codes))
		for i, v := range codes {
			wide[i] = int64(v)
		}
		t.typ, t.data = int64Type, tensor.From(wide).Data
	}
	return t
}

func sayConv(s *site) error {
	c := s.c
	dims, w, err := s.weightOf(1)
	if err != nil {
		return err
	}
	if len(dims) != 4 {
		return fmt.Errorf("%w: convolution over %d dimensions, two are taken", ErrUnsupported, len(dims)-2)
	}
	win, before, after, explicit, err := s.spatial([2]int32{dims[2], dims[3]})
	if err != nil {
		return err
	}
	x, err := s.input(0)
	if err != nil {
		return err
	}
	channels, group := c.p.tensors[x].shape[3], s.n.Int("group", 1)
	if group < 1 || int64(dims[1])*group != int64(channels) || int64(dims[0])%group != 0 {
		return fmt.Errorf("%w: %d groups of weights %v over %d channels", ErrUnsupported, group, dims, channels)
	}
	depthwise := dims[1] == 1 && group > 1
	perm := []int{0, 2, 3, 1} // OIHW to OHWI
	if depthwise {
		perm = []int{1, 2, 3, 0} // O1HW to 1HWO
	}
	wt, err := s.constantWeight(1, dims, w, perm)
	if err != nil {
		return err
	}
	b, err := s.bias(2, dims[0], x, w)
	if err != nil {
		return err
	}
	if explicit {
		x = s.padded(x, before, after, nil)
	}
	in := []int32{x, wt, b}
	if b < 0 { // kernels demand one
		in[2] = s.zeroBias(dims[0], x, w)
	}
	if depthwise {
		return s.write(opDepthwiseConv2D, in, depthwiseOptions(win, dims[0]/channels))
	}
	return s.write(opConv2D, in, convOptions(win))
}

func (s *site) zeroBias(n, x int32, w *weight) int32 {
	if !s.ints {
		return s.c.add(&tensorDef{name: s.y + "/bias", typ: float32Type, shape: []int32{n}, data: make([]byte, 4*n)})
	}
	scale := make([]float32, len(w.scale))
	for i, v := range w.scale {
		scale[i] = v * s.c.p.tensors[x].quant.scale[0]
	}
	return s.c.add(s.biasDef(s.y+"/bias", make([]int32, n), scale))
}

// sayDense says a product with constant weights.
func sayDense(s *site) error {
	c := s.c
	dims, w, err := s.weightOf(1)
	if err != nil {
		return fmt.Errorf("%w (products of two computed values have no form here)", err)
	}
	from, err := c.shape(s.n.In(0))
	if err != nil {
		return err
	}
	gemm := s.n.Op == "Gemm"
	if alpha, beta, turned := s.n.Float("alpha", 1), s.n.Float("beta", 1), s.n.Int("transA", 0); gemm && (alpha != 1 || beta != 1 || turned != 0) {
		return fmt.Errorf("%w: alpha %v, beta %v, transA %d", ErrUnsupported, alpha, beta, turned)
	}
	if len(dims) != 2 || len(from) < 2 || len(from) == 4 {
		return fmt.Errorf("%w: weights %v on a value of rank %d", ErrUnsupported, dims, len(from))
	}
	x, err := s.input(0)
	if err != nil {
		return err
	}
	perm, n := []int{1, 0}, dims[1]
	if gemm && s.n.Int("transB", 0) != 0 {
		perm, n = []int{0, 1}, dims[0]
	}
	wt, err := s.constantWeight(1, dims, w, perm)
	if err != nil {
		return err
	}
	b := int32(-1)
	if gemm {
		if b, err = s.bias(2, n, x, w); err != nil {
			return err
		}
	}
	return s.write(opFullyConnected, []int32{x, wt, b}, fullyConnectedOptions(s.act, len(from) > 2))
}

func sayPool(s *site) error {
	k := s.n.Ints("kernel_shape")
	if len(k) != 2 || k[0] < 1 || k[1] < 1 || k[0] > math.MaxInt16 || k[1] > math.MaxInt16 {
		return fmt.Errorf("%w: a pool over %v", ErrUnsupported, k)
	}
	w, before, after, explicit, err := s.spatial([2]int32{int32(k[0]), int32(k[1])})
	if err != nil {
		return err
	}
	if w.dilation != [2]int32{1, 1} {
		return fmt.Errorf("%w: a dilated pool", ErrUnsupported)
	}
	x, err := s.input(0)
	if err != nil {
		return err
	}
	if s.n.Op == "MaxPool" {
		if explicit {
			lowest := float32(-math.MaxFloat32)
			x = s.padded(x, before, after, &lowest)
		}
		return s.moved(x, opMaxPool, []int32{x}, poolOptions(w))
	}
	switch counted := s.n.Int("count_include_pad", 0) != 0; {
	case counted && (explicit || w.pad == padSame) && s.n.Int("ceil_mode", 0) == 0:
		x = s.padded(x, before, after, nil)
		w.pad = padValid
	case explicit || counted && w.pad == padSame:
		return fmt.Errorf("%w: padding that an average does not count", ErrUnsupported)
	}
	if s.ints { // the kernel keeps the scale
		return s.moved(x, opAveragePool, []int32{x}, poolOptions(w))
	}
	return s.write(opAveragePool, []int32{x}, poolOptions(w))
}

// sayPad says a constant border.
func sayPad(s *site) error {
	c := s.c
	x, from, err := s.data()
	if err != nil {
		return err
	}
	v, ok := s.vector(1, "pads")
	if !ok || len(v) != 2*len(from) || s.n.In(3) != "" || s.n.Str("mode", "constant") != "constant" {
		return fmt.Errorf("%w: a border that is not constant in every dimension", ErrUnsupported)
	}
	value := s.n.Float("value", 0)
	if s.n.In(2) != "" {
		if value, ok = c.g.Number(s.n.In(2)); !ok {
			return fmt.Errorf("%w: the value of its border", ErrUnsupported)
		}
	}
	if value != 0 {
		return fmt.Errorf("%w: a border of %g", ErrUnsupported, value)
	}
	rank := len(from)
	order := toLast(rank)
	pads := make([]int32, 0, 2*rank)
	for i := range rank {
		d := i
		if order != nil {
			d = order[i]
		}
		if v[d] < 0 || v[d+rank] < 0 || v[d] > math.MaxInt16 || v[d+rank] > math.MaxInt16 {
			return fmt.Errorf("%w: pads %v", ErrUnsupported, v)
		}
		pads = append(pads, int32(v[d]), int32(v[d+rank]))
	}
	return s.moved(x, opPad, []int32{x, c.integers(s.y+"/pads", pads, int32(rank), 2)}, empty(22))
}

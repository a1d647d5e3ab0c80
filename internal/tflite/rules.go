package tflite

import (
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// rules are the operators of ONNX that have a form.
var rules map[string]rule

func init() { // they refer to each other
	one, two := []int{0}, []int{0, 1}
	rules = map[string]rule{
		"Conv":               {activations: one, fuses: true, weights: convWeights, say: sayConv},
		"Gemm":               {activations: one, fuses: true, weights: denseWeights, say: sayDense},
		"MatMul":             {activations: one, fuses: true, weights: denseWeights, say: sayDense},
		"Add":                {activations: two, fuses: true, weights: operands, say: binary(opAdd, addOptions)},
		"Sub":                {activations: two, fuses: true, weights: operands, say: binary(opSub, subOptions)},
		"Mul":                {activations: two, fuses: true, weights: operands, say: binary(opMul, mulOptions)},
		"Div":                {weights: never, say: binary(opDiv, func(activation) options { return divOptions() })},
		"Relu":               {activations: one, say: unary(opRelu, options{}, nil)},
		"Clip":               {activations: one, weights: clipCodes, say: sayClip},
		"Sigmoid":            {activations: one, say: unary(opLogistic, options{}, &quantization{scale: []float32{1. / 256}, zero: -128})},
		"Tanh":               {activations: one, say: unary(opTanh, options{}, &quantization{scale: []float32{1. / 128}})},
		"HardSwish":          {activations: one, narrow: true, say: unary(opHardSwish, empty(91), nil)},
		"HardSigmoid":        {activations: one, narrow: true, weights: hardSigmoidCodes, say: sayHardSigmoid},
		"LeakyRelu":          {activations: one, say: sayLeakyRelu},
		"Resize":             {activations: one, moves: true, say: sayResize},
		"Softmax":            {activations: one, weights: softmaxAxis, say: saySoftmax},
		"MaxPool":            {activations: one, moves: true, say: sayPool},
		"AveragePool":        {activations: one, say: sayPool},
		"GlobalAveragePool":  {activations: one, say: sayMean},
		"ReduceMean":         {activations: one, say: sayMean},
		"Flatten":            {activations: one, moves: true, say: sayReshape},
		"Reshape":            {activations: one, moves: true, say: sayReshape},
		"Squeeze":            {activations: one, moves: true, say: sayReshape},
		"Unsqueeze":          {activations: one, moves: true, say: sayReshape},
		"Transpose":          {activations: one, moves: true, say: sayTranspose},
		"Concat":             {weights: concatCodes, say: sayConcat},
		"Pad":                {activations: one, moves: true, say: sayPad},
		"Slice":              {activations: one, moves: true, say: saySlice},
		"BatchNormalization": {activations: one, fuses: true, weights: never, say: sayBatchNorm},
		"Identity":           {activations: one, moves: true, say: sayIdentity},
		"Dropout":            {activations: one, moves: true, say: sayIdentity},
	}
}

// Operators lists the operators of ONNX that have a form, sorted.
func Operators() []string {
	var names []string
	for n := range rules {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// never is for operators that have no integer kernel there.
func never(*site) error { return fmt.Errorf("%w on int8", ErrUnsupported) }

// unary says an operator of one input; own is the only scale that its integer
// kernel returns.
func unary(code opcode, o options, own *quantization) func(*site) error {
	return func(s *site) error {
		x, err := s.input(0)
		if err != nil {
			return err
		}
		if s.own = own; own != nil && s.ints && s.quant.wide { // it reaches from -1 to 1 whatever the operator
			s.own = &quantization{scale: []float32{1. / wideMiddle}, wide: true}
		}
		return s.write(code, []int32{x}, o)
	}
}

// operands checks that both sides of a binary operator are codes.
func operands(s *site) error {
	for _, i := range []int{0, 1} {
		if _, ok := s.in[i]; ok {
			continue
		}
		w, err := s.c.weight(s.n.In(i))
		if err != nil {
			return err
		}
		if w.typ != s.quant.typ() || len(w.scale) > 1 || s.quant.wide && w.zero != 0 {
			return fmt.Errorf("%w: operand %q has scales by channel, or is of another type", ErrUnsupported, w.name)
		}
	}
	return s.aligned()
}

// aligned refuses to broadcast a computed value of lower rank against one of
// rank 4, or one of rank 4 against one of more: their layouts differ.
func (s *site) aligned() error {
	out, err := s.c.shape(s.n.Outputs[0])
	if err != nil {
		return err
	}
	for i := range 2 {
		if s.c.g.Init(s.n.In(i)) != nil || s.isWeight(i) {
			continue
		}
		d, err := s.c.shape(s.n.In(i))
		if err != nil {
			return err
		}
		if n := (&tensorDef{shape: d}).elems(); len(out) != len(d) && (len(out) == 4 || len(d) == 4) && n != 1 {
			return fmt.Errorf("%w: %q of rank %d is broadcast to rank %d", ErrUnsupported, s.n.In(i), len(d), len(out))
		}
	}
	return nil
}

func binary(code opcode, o func(activation) options) func(*site) error {
	return func(s *site) error {
		if err := s.aligned(); err != nil {
			return err
		}
		a, err := s.input(0)
		if err != nil {
			return err
		}
		b, err := s.input(1)
		if err != nil {
			return err
		}
		return s.write(code, []int32{a, b}, o(s.act))
	}
}

// clipCodes accepts a Clip on codes where it is a ReLU6 or cuts off nothing.
func clipCodes(s *site) error {
	act, ok := s.c.fusable(s.n, s.quant)
	if !ok {
		return fmt.Errorf("%w: its bounds on int8", ErrUnsupported)
	}
	s.act = act
	return nil
}

func sayClip(s *site) error {
	x, err := s.input(0)
	if err != nil {
		return err
	}
	if s.ints {
		code := map[activation]opcode{actNone: opQuantize, actRelu: opRelu, actRelu6: opRelu6}[s.act]
		o := options{}
		if code == opQuantize {
			o = empty(89)
		}
		return s.write(code, []int32{x}, o)
	}
	lo, hi, err := s.c.bounds(s.n)
	if err != nil {
		return err
	}
	if act, ok := s.c.fusable(s.n, nil); ok {
		return s.write(map[activation]opcode{actRelu: opRelu, actRelu6: opRelu6}[act], []int32{x}, options{})
	}
	shape := s.c.p.tensors[x].shape
	if !math.IsInf(lo, -1) {
		t := s.c.like(x, s.y+"/min", shape)
		s.c.emit(opMaximum, []int32{x, s.c.number(s.y+"/low", float32(lo))}, t, empty(39))
		x = t
	}
	if math.IsInf(hi, 1) {
		hi = math.MaxFloat32
	}
	return s.write(opMinimum, []int32{x, s.c.number(s.y+"/high", float32(hi))}, empty(39))
}

// softmaxAxis: kernels normalize the last dimension.
func softmaxAxis(s *site) error {
	d, err := s.c.shape(s.n.In(0))
	if err != nil {
		return err
	}
	def := int64(-1)
	if s.c.m.Opset() < 13 {
		def = 1
	}
	axes, err := s.axes([]int64{s.n.Int("axis", def)}, len(d))
	if err != nil {
		return err
	}
	stored := toLast(len(d))
	at := axes[0]
	if stored != nil {
		at = slices.Index(stored, at)
	}
	if at != len(d)-1 || s.c.m.Opset() < 13 && len(d) != 2 {
		return fmt.Errorf("%w: softmax over dimension %d of %d", ErrUnsupported, axes[0], len(d))
	}
	return nil
}

func saySoftmax(s *site) error {
	if err := softmaxAxis(s); err != nil {
		return err
	}
	return unary(opSoftmax, softmaxOptions(), &quantization{scale: []float32{1. / 256}, zero: -128})(s)
}

// concatCodes accepts a Concat where every input is codes.
func concatCodes(s *site) error {
	for i, name := range s.n.Inputs {
		t, ok := s.c.dequantized(name)
		if !ok {
			return fmt.Errorf("%w: %q is not quantized", ErrUnsupported, name)
		}
		if s.c.p.tensors[t].quant.wide != s.quant.wide {
			return fmt.Errorf("%w: its values have 8 and 16 bits", ErrUnsupported)
		}
		s.in[i] = t
	}
	return nil
}

// sayConcat brings every input to the scale of the result first: integer kernels
// only copy.
func sayConcat(s *site) error {
	c := s.c
	out, err := c.shape(s.y)
	if err != nil {
		return err
	}
	axes, err := s.axes([]int64{s.n.Int("axis", 0)}, len(out))
	if err != nil {
		return err
	}
	axis := axes[0]
	if p := toLast(len(out)); p != nil {
		axis = slices.Index(p, axis)
	}
	var in []int32
	for i := range s.n.Inputs {
		t, err := s.input(i)
		if err != nil {
			return err
		}
		if d := c.p.tensors[t]; s.ints && !d.quant.same(s.quant) {
			to := c.add(&tensorDef{name: fmt.Sprintf("%s/%d", s.y, i), typ: d.typ, shape: d.shape, batched: d.batched, quant: s.quant})
			c.emit(opQuantize, []int32{t}, to, empty(89))
			t = to
		}
		in = append(in, t)
	}
	return s.write(opConcatenation, in, concatOptions(int32(axis)))
}

// sayReshape says whatever keeps the elements in order and changes the shape. It
// goes through ONNX's layout where that differs.
func sayReshape(s *site) error {
	c := s.c
	x, from, to, err := s.ends()
	if err != nil {
		return err
	}
	if !sameOrder(from) {
		x = c.transposed(x, s.y+"/first", channelsFirst)
	}
	target := slices.Clone(to)
	if c.batched[s.y] {
		target[0] = -1
	}
	if sameOrder(to) {
		t := last(target)
		return s.moved(x, opReshape, []int32{x, c.integers(s.y+"/shape", t, int32(len(t)))}, empty(17))
	}
	t := c.like(x, s.y+"/reshaped", to)
	c.p.tensors[t].batched = c.batched[s.y]
	c.emit(opReshape, []int32{x, c.integers(s.y+"/shape", target, int32(len(target)))}, t, empty(17))
	return s.finish(c.transposed(t, s.name(), channelsLast))
}

func sayTranspose(s *site) error {
	c := s.c
	x, from, err := s.data()
	if err != nil {
		return err
	}
	perm := s.n.Ints("perm")
	if perm == nil {
		for i := range from {
			perm = append(perm, int64(len(from)-1-i))
		}
	}
	axes, err := s.axes(perm, len(from))
	if err != nil || len(axes) != len(from) {
		return fmt.Errorf("%w: perm %v of rank %d", ErrUnsupported, perm, len(from))
	}
	// Dimension i of the result, stored, is dimension p of ONNX's input, which is stored elsewhere.
	if stored := toLast(len(from)); stored != nil {
		r := make([]int, len(axes))
		for i, at := range stored {
			r[i] = slices.Index(stored, axes[at])
		}
		axes = r
	}
	return s.finish(c.transposed(x, s.name(), axes))
}

func sayIdentity(s *site) error {
	x, err := s.input(0)
	if err != nil {
		return err
	}
	return s.finish(x)
}

// sayMean averages over dimensions, the spatial ones for GlobalAveragePool.
func sayMean(s *site) error {
	c := s.c
	x, from, err := s.data()
	if err != nil {
		return err
	}
	var axes []int
	keep := true
	if s.n.Op == "GlobalAveragePool" {
		for i := 2; i < len(from); i++ {
			axes = append(axes, i)
		}
	} else {
		keep = s.n.Int("keepdims", 1) != 0
		v, ok := s.vector(1, "axes")
		if !ok && s.n.In(1) != "" {
			return fmt.Errorf("%w: its axes are not constant", ErrUnsupported)
		}
		if axes, err = s.axes(v, len(from)); err != nil {
			return err
		}
		if len(axes) == 0 {
			if s.n.Int("noop_with_empty_axes", 0) != 0 {
				return sayIdentity(s)
			}
			for i := range from {
				axes = append(axes, i)
			}
		}
	}
	if !keep && len(from) == 4 && len(from)-len(axes) > 1 && !slices.Contains(axes, 1) { // channels would end up elsewhere
		x = c.transposed(x, s.y+"/first", channelsFirst)
	} else if p := toLast(len(from)); p != nil {
		for i, a := range axes {
			axes[i] = slices.Index(p, a)
		}
	}
	v := make([]int32, len(axes))
	for i, a := range axes {
		v[i] = int32(a)
	}
	slices.Sort(v)
	if !keep && len(from)-len(axes) == 4 { // rank 4 comes out in ONNX's order
		return fmt.Errorf("%w: reduced from rank %d to 4", ErrUnsupported, len(from))
	}
	return s.write(opMean, []int32{x, c.integers(s.y+"/axes", v, int32(len(v)))}, reduceOptions(keep))
}

// saySlice says a part of a value, its elements side by side.
func saySlice(s *site) error {
	c := s.c
	x, from, to, err := s.ends()
	if err != nil {
		return err
	}
	starts, ok := s.vector(1, "starts")
	if !ok || len(to) != len(from) {
		return fmt.Errorf("%w: its starts are not constant", ErrUnsupported)
	}
	over, ok := s.vector(3, "axes")
	if !ok {
		for i := range starts {
			over = append(over, int64(i))
		}
	}
	axes, err := s.axes(over, len(from))
	if err != nil || len(axes) != len(starts) {
		return fmt.Errorf("%w: its axes", ErrUnsupported)
	}
	if steps, ok := s.vector(4, ""); s.n.In(4) != "" && (!ok || slices.ContainsFunc(steps, func(v int64) bool { return v != 1 })) {
		return fmt.Errorf("%w: steps %v", ErrUnsupported, steps)
	}
	begin, size := make([]int32, len(from)), slices.Clone(to)
	for i, a := range axes {
		at := starts[i]
		if at < 0 {
			at += int64(from[a])
		}
		begin[a] = int32(min(max(at, 0), int64(from[a])))
		if int64(begin[a])+int64(to[a]) > int64(from[a]) {
			return fmt.Errorf("%w: it takes %d from %d of %d", ErrUnsupported, to[a], begin[a], from[a])
		}
	}
	if c.batched[s.y] {
		if begin[0] != 0 {
			return fmt.Errorf("%w: a part of the batch", ErrUnsupported)
		}
		size[0] = -1
	}
	n := int32(len(from))
	return s.moved(x, opSlice, []int32{x, c.integers(s.y+"/begin", last(begin), n), c.integers(s.y+"/size", last(size), n)}, empty(48))
}

// sayBatchNorm says one that follows no convolution, in float: x*a + b by channel.
func sayBatchNorm(s *site) error {
	c := s.c
	x, err := s.input(0)
	if err != nil {
		return err
	}
	shape := c.p.tensors[x].shape
	if len(shape) != 4 && len(shape) != 2 || s.n.Int("training_mode", 0) != 0 {
		return fmt.Errorf("%w: over a value of rank %d, or in training", ErrUnsupported, len(shape))
	}
	var p [4][]float32 // scale, bias, mean, variance
	for i := range p {
		if p[i], err = s.numbers(1 + i); err != nil {
			return err
		}
		if len(p[i]) != int(shape[len(shape)-1]) {
			return fmt.Errorf("%w: %d numbers for %d channels", ErrUnsupported, len(p[i]), shape[len(shape)-1])
		}
	}
	a, b := make([]float32, len(p[0])), make([]float32, len(p[0]))
	for i := range a {
		v := float64(p[0][i]) / math.Sqrt(float64(p[3][i])+float64(s.n.Float("epsilon", 1e-5)))
		a[i], b[i] = float32(v), float32(float64(p[1][i])-float64(p[2][i])*v)
	}
	channel := func(name string, v []float32) int32 {
		return c.add(&tensorDef{name: s.y + name, typ: float32Type, shape: []int32{int32(len(v))}, data: tensor.From(v).Data})
	}
	scaled := c.like(x, s.y+"/scaled", shape)
	c.emit(opMul, []int32{x, channel("/scale", a)}, scaled, mulOptions(actNone))
	return s.write(opAdd, []int32{scaled, channel("/shift", b)}, addOptions(s.act))
}

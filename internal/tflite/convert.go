// Package tflite writes models of images in TensorFlow Lite's format, for phones,
// boards and their accelerators.
//
// It takes what fewbit quantize --target qdq writes (or the float model) and says
// the same in the other format: an operator between DequantizeLinear and
// QuantizeLinear becomes one on int8 with the same scales, zero points and codes,
// by TensorFlow Lite's quantization specification (activations int8 with a zero
// point, weights int8 by output channel without one, bias int32 at the product of
// both scales; with activations of 16 bits int16 without a zero point, bias int64). What has no integer form there stays float between DEQUANTIZE and
// QUANTIZE. Values of rank 4 are laid out as that format has them, channels last.
package tflite

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// ErrUnsupported marks a model that the format, or this package, cannot say.
var ErrUnsupported = errors.New("no TensorFlow Lite form")

// ErrShapes marks given shapes that are none of the model's, or missing ones.
var ErrShapes = errors.New("sizes of inputs")

// Limits on what comes from a file.
const (
	maxRank  = 6       // of a value
	maxNodes = 100_000 // of a model
	maxElems = 1 << 31 // of a value
)

// wideMiddle is the zero point of unsigned 16-bit codes that are signed there.
const wideMiddle = 1 << 15

// Options say what the file tells of itself, and what the model leaves open.
type Options struct {
	Description string
	// Shapes gives the sizes of inputs whose dimensions beyond the first have none.
	Shapes map[string][]int64
	// Ports makes inputs and outputs of the file codes; the model must quantize all of them.
	Ports bool
}

// Result is a converted model.
type Result struct {
	File []byte
	// Integer and Float count operators by what they compute in, without those
	// that only move, quantize and dequantize values.
	Integer, Float int
	// FloatOps says which operators stayed float, and why where it is not that
	// their values are not quantized.
	FloatOps []string
	// Inputs and Outputs describe the file's, in its layout.
	Inputs, Outputs []Port
}

// Port is an input or output of the file; a first dimension of -1 is the batch.
type Port struct {
	Name  string  `json:"name"`
	Type  string  `json:"type"`
	Shape []int32 `json:"shape"`
	// Scale and Zero say what codes stand for: Scale*(code - Zero); Scale is 0 for float.
	Scale float32 `json:"scale,omitempty"`
	Zero  int64   `json:"zero_point,omitempty"`
}

// Convert returns the model as a TensorFlow Lite file. It edits m, folding
// constants and naming shapes; values that it cannot say end in ErrUnsupported.
func Convert(m *graph.Model, o Options) (*Result, error) {
	if len(m.Graph.Nodes) > maxNodes {
		return nil, fmt.Errorf("%w: %d operators, at most %d are taken", ErrUnsupported, len(m.Graph.Nodes), maxNodes)
	}
	graph.LiftConstants(m)
	half := halves(m.Graph)
	graph.FoldConstants(m)
	graph.DropIdentities(m)
	graph.FoldBatchNorm(m)
	c := &converter{m: m, g: m.Graph, res: &Result{FloatOps: []string{}}, floats: map[string]int32{}, quants: map[string]int32{},
		done: map[*graph.Node]bool{}, batched: map[string]bool{}, consts: map[string]int32{}, taken: map[string]bool{}}
	c.p.description, c.ports8, c.half = o.Description, o.Ports, half
	if err := c.settle(o.Shapes); err != nil {
		return nil, err
	}
	graph.SplitToSlices(m, nil)
	if err := supported(m.Graph); err != nil { // what computed shapes is gone now
		return nil, err
	}
	c.ix = c.g.Index()
	if err := c.run(); err != nil {
		return nil, err
	}
	file, err := c.p.encode()
	if err != nil {
		return nil, err
	}
	c.res.File = file
	c.res.Inputs, c.res.Outputs = c.ports(c.p.inputs), c.ports(c.p.outputs)
	return c.res, nil
}

// converter holds one conversion. Float values and quantized ones have tensors of
// their own; both are made when they are first asked for.
type converter struct {
	m   *graph.Model
	g   *graph.Graph
	ix  *graph.Index
	p   program
	res *Result
	// floats and quants map ONNX values to tensors: those of type float, and
	// outputs of QuantizeLinear.
	floats, quants map[string]int32
	done           map[*graph.Node]bool // said by an operator before
	batched        map[string]bool      // dimension 0 is the batch
	taken          map[string]bool      // names of tensors
	consts         map[string]int32     // see once
	bytes          int64                // of constants
	ports8         bool                 // inputs and outputs are codes
	half           map[string]bool      // constants that the model stores as float16
}

// supported lists every operator that has no form, not only the first.
func supported(g *graph.Graph) error {
	var missing []string
	foreign := false
	for _, n := range g.Nodes {
		if quantizes(n) || dequantizes(n) {
			continue
		}
		if _, ok := rules[n.Op]; ok && n.Domain == graph.DomainONNX {
			continue
		}
		foreign = foreign || n.Domain != graph.DomainONNX || strings.HasPrefix(n.Op, "QLinear")
		if !slices.Contains(missing, n.Op) {
			missing = append(missing, n.Op)
		}
	}
	if missing == nil {
		return nil
	}
	slices.Sort(missing)
	what := fmt.Errorf("%w for %s", ErrUnsupported, strings.Join(missing, ", "))
	if foreign {
		return fmt.Errorf("%w: quantize with --target qdq, which uses standard operators only", what)
	}
	return fmt.Errorf("%w; it is there for %s", what, strings.Join(Operators(), ", "))
}

// settle gives every value a size: the batch is 1 until whoever runs the file
// chooses another.
func (c *converter) settle(shapes map[string][]int64) error {
	graph.InferShapes(c.m)
	note := func(name string) {
		if d := c.g.Dims(name); len(d) > 0 && d[0].N < 0 {
			c.batched[name] = true
		}
	}
	for _, n := range c.g.Nodes {
		for _, o := range n.Outputs {
			note(o)
		}
	}
	for name := range shapes {
		if !slices.ContainsFunc(c.g.Inputs, func(v *graph.Value) bool { return v.Name == name }) {
			return fmt.Errorf("%w: %q is no input", ErrShapes, name)
		}
	}
	for _, v := range c.g.Inputs {
		if c.g.Init(v.Name) != nil {
			continue
		}
		note(v.Name)
		given := shapes[v.Name]
		if given != nil && len(given) != len(v.Dims) {
			return fmt.Errorf("%w: input %q has %d dimensions, its given shape %d", ErrShapes, v.Name, len(v.Dims), len(given))
		}
		for i := range v.Dims {
			d := &v.Dims[i]
			switch {
			case given != nil && given[i] > 0 && (d.N < 0 || d.N == given[i]):
				d.N, d.Name = given[i], ""
			case given != nil:
				return fmt.Errorf("%w: dimension %d of input %q is %d, its given shape says %d", ErrShapes, i, v.Name, d.N, given[i])
			case d.N < 0 && i == 0:
				d.N, d.Name = 1, ""
			case d.N < 0:
				return fmt.Errorf("%w: dimension %d of input %q has no size; give its shape, as %s=%s", ErrShapes, i, v.Name, v.Name, example(v.Dims))
			}
		}
	}
	graph.FoldConstants(c.m)
	graph.InferShapes(c.m)
	return nil
}

// example is a shape such as one might give.
func example(dims []graph.Dim) string {
	s := make([]string, len(dims))
	for i, d := range dims {
		switch n := d.N; {
		case n > 0:
			s[i] = fmt.Sprint(n)
		case i < 2:
			s[i] = "1"
		default:
			s[i] = "224"
		}
	}
	return strings.Join(s, ",")
}

func (c *converter) run() error {
	for _, v := range c.g.Inputs {
		if c.g.Init(v.Name) != nil {
			continue
		}
		if v.Type != tensor.Float32 {
			return fmt.Errorf("%w: input %q is %v; models of float32 inputs are taken", ErrUnsupported, v.Name, v.Type)
		}
		t, err := c.input(v.Name)
		if err != nil {
			return err
		}
		c.p.inputs = append(c.p.inputs, t)
	}
	for _, n := range c.g.Nodes {
		if c.done[n] {
			continue
		}
		if err := c.node(n); err != nil {
			return fmt.Errorf("operator %s %q: %w", n.Op, n.Name, err)
		}
	}
	for _, v := range c.g.Outputs {
		t, err := c.output(v.Name)
		if err != nil {
			return fmt.Errorf("output %q: %w", v.Name, err)
		}
		c.p.outputs = append(c.p.outputs, t)
	}
	return nil
}

// node says one operator.
func (c *converter) node(n *graph.Node) error {
	switch {
	case dequantizes(n): // when somebody reads it
		return nil
	case quantizes(n):
		return c.quantize(n)
	}
	if len(n.Outputs) == 0 || n.Outputs[0] == "" {
		return nil
	}
	for _, o := range n.Outputs[1:] {
		if o != "" && (len(c.ix.Uses(o)) > 0 || c.ix.IsOutput(o)) {
			return fmt.Errorf("%w: its output %q is read, and only the first is known", ErrUnsupported, o)
		}
	}
	r := rules[n.Op]
	s := c.site(n, r)
	before := len(c.p.ops)
	if err := r.say(s); err != nil {
		return err
	}
	if len(c.p.ops) == before || r.moves {
		return nil
	}
	if s.ints {
		c.res.Integer++
	} else {
		c.res.Float++
		c.res.FloatOps = append(c.res.FloatOps, strings.TrimSpace(n.Op+" "+n.Name+s.why))
	}
	return nil
}

// quantize says a QuantizeLinear that no operator took in.
func (c *converter) quantize(n *graph.Node) error {
	q, err := c.params(n)
	if err != nil {
		return err
	}
	if c.g.Init(n.In(0)) != nil {
		return fmt.Errorf("%w: it quantizes a constant", ErrUnsupported)
	}
	from, ok := c.dequantized(n.In(0)) // codes to codes, or float to codes
	if !ok {
		if from, err = c.float(n.In(0)); err != nil {
			return err
		}
	}
	to, err := c.value(n.Outputs[0], n.In(0), q.typ(), q)
	if err != nil {
		return err
	}
	c.emit(opQuantize, []int32{from}, to, empty(89))
	c.quants[n.Outputs[0]] = to
	return nil
}

func (c *converter) emit(code opcode, in []int32, out int32, o options) {
	c.p.ops = append(c.p.ops, operator{code, in, []int32{out}, o})
}

// add makes a tensor; its name becomes one that no other has.
func (c *converter) add(t *tensorDef) int32 {
	name := t.name
	for i := 1; c.taken[name]; i++ {
		name = fmt.Sprintf("%s;%d", t.name, i)
	}
	c.taken[name] = true
	t.name = name
	c.p.tensors = append(c.p.tensors, t)
	return int32(len(c.p.tensors) - 1)
}

// value makes the tensor of an ONNX value in the format's layout.
func (c *converter) value(name, shapeOf string, typ dtype, q *quantization) (int32, error) {
	shape, err := c.shape(shapeOf)
	if err != nil {
		return 0, err
	}
	return c.add(&tensorDef{name: name, typ: typ, shape: last(shape), batched: c.batched[shapeOf], quant: q}), nil
}

// shape returns the dimensions of a value, in ONNX's order.
func (c *converter) shape(name string) ([]int32, error) {
	d := c.g.Dims(name)
	if d == nil {
		return nil, fmt.Errorf("%w: the shape of %q is not known", ErrUnsupported, name)
	}
	if len(d) > maxRank {
		return nil, fmt.Errorf("%w: %q has %d dimensions, at most %d are taken", ErrUnsupported, name, len(d), maxRank)
	}
	s, n := make([]int32, len(d)), int64(1)
	for i, x := range d {
		if x.N < 0 {
			return nil, fmt.Errorf("%w: dimension %d of %q has no size", ErrUnsupported, i, name)
		}
		if x.N == 0 || x.N >= maxElems || n*x.N >= maxElems {
			return nil, fmt.Errorf("%w: %q is empty or too large", ErrUnsupported, name)
		}
		n *= x.N
		s[i] = int32(x.N)
	}
	return s, nil
}

// float returns the tensor that holds a value as float.
func (c *converter) float(name string) (int32, error) {
	if t, ok := c.floats[name]; ok {
		return t, nil
	}
	if init := c.g.Init(name); init != nil {
		t, err := c.constant(name, init, last(dims32(init.Dims)), toLast(len(init.Dims)))
		if err == nil {
			c.floats[name] = t
		}
		return t, err
	}
	dq := c.ix.Producer(name)
	if dq == nil || !dequantizes(dq) {
		return 0, fmt.Errorf("%w: %q is not computed before it is read", ErrUnsupported, name)
	}
	from, ok := c.quants[dq.In(0)]
	if !ok {
		w, err := c.weight(name)
		if err != nil {
			return 0, err
		}
		return c.weightTensor(w, toLast(len(w.dims)), false)
	}
	if err := c.sameParams(dq, from); err != nil {
		return 0, err
	}
	to, err := c.value(name, name, float32Type, nil)
	if err != nil {
		return 0, err
	}
	c.emit(opDequantize, []int32{from}, to, empty(38))
	c.floats[name] = to
	return to, nil
}

// dequantized returns the int8 tensor behind a value, if it is one dequantized.
func (c *converter) dequantized(name string) (int32, bool) {
	dq := c.ix.Producer(name)
	if dq == nil || !dequantizes(dq) {
		return 0, false
	}
	t, ok := c.quants[dq.In(0)]
	return t, ok && c.sameParams(dq, t) == nil
}

// sameParams makes sure that a DequantizeLinear has the scale that its codes have.
func (c *converter) sameParams(dq *graph.Node, t int32) error {
	q, err := c.params(dq)
	if err != nil {
		return err
	}
	if has := c.p.tensors[t].quant; has == nil || !has.same(q) {
		return fmt.Errorf("%w: %q is dequantized with another scale than it was quantized with", ErrUnsupported, dq.In(0))
	}
	return nil
}

// params reads the scale and zero point of an activation as those of int8 codes.
func (c *converter) params(n *graph.Node) (*quantization, error) {
	scale, ok := c.g.Number(n.In(1))
	if !ok || !(scale > 0) {
		return nil, fmt.Errorf("%w: its scale is not one positive constant", ErrUnsupported)
	}
	typ, zero := tensor.Uint8, int64(0)
	if z := n.In(2); z != "" {
		t := c.g.Init(z)
		if t == nil || t.Len() != 1 || len(t.Data) != int(t.Type.Bytes(1)) {
			return nil, fmt.Errorf("%w: its zero point is not one constant", ErrUnsupported)
		}
		switch typ = t.Type; typ {
		case tensor.Uint8:
			zero = int64(t.Data[0])
		case tensor.Int8:
			zero = int64(int8(t.Data[0]))
		case tensor.Uint16:
			zero = int64(tensor.View[uint16](t)[0]) - wideMiddle
		case tensor.Int16:
			zero = int64(tensor.View[int16](t)[0])
		}
	}
	switch typ {
	case tensor.Uint16, tensor.Int16:
		if zero != 0 {
			return nil, fmt.Errorf("%w: 16-bit activations whose range is not centred on zero: quantize with --scheme a16w8 --symmetric", ErrUnsupported)
		}
		return &quantization{scale: []float32{scale}, wide: true}, nil
	case tensor.Uint8:
		return &quantization{scale: []float32{scale}, zero: zero - 128}, nil
	case tensor.Int8:
		return &quantization{scale: []float32{scale}, zero: zero}, nil
	}
	return nil, fmt.Errorf("%w: activations of %v (8 and 16 bits are taken: --scheme int8 or a16w8)", ErrUnsupported, typ)
}

func (c *converter) ports(ids []int32) []Port {
	var p []Port
	for _, i := range ids {
		t := c.p.tensors[i]
		shape := slices.Clone(t.shape)
		if t.batched {
			shape[0] = -1
		}
		port := Port{Name: t.name, Type: typeNames[t.typ], Shape: shape}
		if t.quant != nil {
			port.Scale, port.Zero = t.quant.scale[0], t.quant.zero
		}
		p = append(p, port)
	}
	return p
}

// quantizes and dequantizes know both domains: scales by channel came to the
// standard one with opset 13.
func quantizes(n *graph.Node) bool { return in(n, "QuantizeLinear") }

func dequantizes(n *graph.Node) bool { return in(n, "DequantizeLinear") }

func in(n *graph.Node, op string) bool {
	return n.Op == op && (n.Domain == graph.DomainONNX || n.Domain == graph.DomainMS)
}

package tflite

import (
	"fmt"
	"math"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
)

// rule says how an operator is said.
type rule struct {
	// activations are the inputs that must be codes for the operator to be one on
	// codes; the others are constants.
	activations []int
	// fuses: a ReLU behind it can be part of it.
	fuses bool
	// moves: it computes nothing, and its result has the scale of its input.
	moves bool
	// narrow: its kernel takes 8 bits only.
	narrow bool
	// weights checks what int8 demands of the constants.
	weights func(s *site) error
	say     func(s *site) error
}

// site is one operator on its way out: whether it computes on codes, what is
// fused into it, and where its result goes.
type site struct {
	c    *converter
	n    *graph.Node
	ints bool
	why  string // not ints
	in   map[int]int32
	act  activation
	y    string // the value that it results in, behind what is fused
	q    *graph.Node
	quant,
	own *quantization // of the result, and of what the kernel itself returns where it has no choice
}

// site decides what n becomes.
func (c *converter) site(n *graph.Node, r rule) *site {
	s := &site{c: c, n: n, in: map[int]int32{}, y: n.Outputs[0]}
	if s.integers(r) {
		s.ints = true
		return s
	}
	s.act, s.y, s.q, s.quant = actNone, n.Outputs[0], nil, nil
	if a := c.ix.Only(s.y); r.fuses && a != nil {
		if act, ok := c.fusable(a, nil); ok {
			s.take(a, act)
		}
	}
	return s
}

func (s *site) take(a *graph.Node, act activation) {
	s.act, s.y = act, a.Outputs[0]
	s.c.done[a] = true
}

// integers finds out whether n lies between DequantizeLinear and QuantizeLinear.
func (s *site) integers(r rule) bool {
	c, y := s.c, s.n.Outputs[0]
	after := c.ix.Only(y)
	var fused *graph.Node
	if after != nil && r.fuses && !quantizes(after) && len(after.Outputs) == 1 {
		fused = after
		after = c.ix.Only(fused.Outputs[0])
	}
	if after == nil || !quantizes(after) {
		return false
	}
	q, err := c.params(after)
	if err != nil {
		return false
	}
	act := actNone
	if q.wide && r.narrow {
		s.why = ": it has no kernel on int16"
		return false
	}
	if fused != nil {
		var ok bool
		if act, ok = c.fusable(fused, q); !ok {
			return false
		}
	}
	for _, i := range r.activations {
		name := s.n.In(i)
		if name == "" {
			continue
		}
		t, ok := c.dequantized(name)
		if !ok {
			if i == 0 || len(r.activations) == 1 {
				return false
			}
			continue // may be a constant, which weights judges
		}
		if c.p.tensors[t].quant.wide != q.wide {
			s.why = ": its values have 8 and 16 bits"
			return false
		}
		s.in[i] = t
	}
	s.quant = q
	if r.weights != nil {
		if err := r.weights(s); err != nil {
			s.why = ": " + err.Error()
			return false
		}
	}
	if fused != nil {
		s.take(fused, act)
	}
	s.q = after
	c.done[after] = true
	return true
}

// fusable says which activation an operator is. With the scale q of its result, a
// Clip that only cuts off what q cannot say is none.
func (c *converter) fusable(n *graph.Node, q *quantization) (activation, bool) {
	switch {
	case n.Is("Relu"):
		return actRelu, true
	case !n.Is("Clip"):
		return actNone, false
	}
	lo, hi, err := c.bounds(n)
	switch {
	case err != nil:
		return actNone, false
	case lo == 0 && hi == 6:
		return actRelu6, true
	case lo == 0 && math.IsInf(hi, 1):
		return actRelu, true
	case q == nil:
		return actNone, false
	}
	s := float64(q.scale[0])
	least, most := q.ends()
	return actNone, lo <= least+s/2 && hi >= most-s/2
}

// bounds reads those of a Clip: inputs since opset 11, attributes before.
func (c *converter) bounds(n *graph.Node) (lo, hi float64, err error) {
	lo, hi = math.Inf(-1), math.Inf(1)
	if a := n.Attr("min"); a != nil {
		lo = float64(n.Float("min", 0))
	}
	if a := n.Attr("max"); a != nil {
		hi = float64(n.Float("max", 0))
	}
	for i, to := range []*float64{1: &lo, 2: &hi} {
		if i == 0 || n.In(i) == "" {
			continue
		}
		v, ok := c.g.Number(n.In(i))
		if !ok {
			return 0, 0, fmt.Errorf("%w: its bounds are not constant", ErrUnsupported)
		}
		*to = float64(v)
	}
	if math.IsNaN(lo) || math.IsNaN(hi) {
		return 0, 0, fmt.Errorf("%w: its bounds are not numbers", ErrUnsupported)
	}
	return lo, hi, nil
}

// input returns the tensor of activation i.
func (s *site) input(i int) (int32, error) {
	if s.ints {
		if t, ok := s.in[i]; ok {
			return t, nil
		}
		return s.operand(i, true)
	}
	name := s.n.In(i)
	if name == "" {
		return 0, fmt.Errorf("%w: input %d is missing", ErrUnsupported, i)
	}
	if s.c.g.Init(name) != nil || s.isWeight(i) {
		return s.operand(i, false)
	}
	return s.c.float(name)
}

// data returns the tensor of activation 0, and its shape in ONNX's order.
func (s *site) data() (t int32, shape []int32, err error) {
	if t, err = s.input(0); err != nil {
		return 0, nil, err
	}
	shape, err = s.c.shape(s.n.In(0))
	return t, shape, err
}

// ends is data with the shape of the result.
func (s *site) ends() (t int32, from, to []int32, err error) {
	if t, from, err = s.data(); err == nil {
		to, err = s.c.shape(s.y)
	}
	return t, from, to, err
}

func (s *site) isWeight(i int) bool {
	dq := s.c.ix.Producer(s.n.In(i))
	return dq != nil && dequantizes(dq) && s.c.g.Init(dq.In(0)) != nil
}

// operand makes the tensor of a constant beside an activation: aligned to the
// rank of the result, since layouts differ in rank 4.
func (s *site) operand(i int, codes bool) (int32, error) {
	c, name := s.c, s.n.In(i)
	out, err := c.shape(s.n.Outputs[0])
	if err != nil {
		return 0, err
	}
	lift := func(d []int32) []int32 {
		for len(out) >= 4 && len(d) < len(out) {
			d = append([]int32{1}, d...)
		}
		return d
	}
	if t := c.g.Init(name); t != nil {
		if codes {
			return 0, fmt.Errorf("%w: constant %q is not quantized", ErrUnsupported, name)
		}
		d := lift(dims32(t.Dims))
		wide := *t
		wide.Dims = nil
		for _, n := range d {
			wide.Dims = append(wide.Dims, int64(n))
		}
		return c.constant(name, &wide, last(d), toLast(len(d)))
	}
	w, err := c.weight(name)
	if err != nil {
		return 0, err
	}
	more := len(lift(w.dims)) - len(w.dims)
	w.dims = lift(w.dims)
	w.axis += more
	return c.weightTensor(w, toLast(len(w.dims)), codes)
}

// result makes the tensor that the operator writes; with the kernel's own scale
// where it has no choice.
func (s *site) result() (int32, error) {
	c := s.c
	if !s.ints {
		return c.value(s.y, s.y, float32Type, nil)
	}
	q := s.quant
	if s.own != nil {
		q = s.own
	}
	return c.value(s.name(), s.y, q.typ(), q)
}

func (s *site) name() string {
	if s.q != nil {
		return s.q.Outputs[0]
	}
	return s.y
}

// finish makes t the value that the operator results in.
func (s *site) finish(t int32) error {
	c := s.c
	if !s.ints {
		c.floats[s.y] = t
		return nil
	}
	if has := c.p.tensors[t].quant; !has.same(s.quant) {
		to, err := c.value(s.q.Outputs[0], s.y, s.quant.typ(), s.quant)
		if err != nil {
			return err
		}
		c.emit(opQuantize, []int32{t}, to, empty(89))
		t = to
	}
	c.quants[s.q.Outputs[0]] = t
	return nil
}

// write emits the operator and makes its output the result.
func (s *site) write(code opcode, in []int32, o options) error {
	out, err := s.result()
	if err != nil {
		return err
	}
	s.c.emit(code, in, out, o)
	return s.finish(out)
}

// moved is write for operators whose result has the scale of input t.
func (s *site) moved(t int32, code opcode, in []int32, o options) error {
	out, err := s.c.shape(s.y)
	if err != nil {
		return err
	}
	to := s.c.like(t, s.name(), last(out))
	s.c.p.tensors[to].batched = s.c.batched[s.y]
	s.c.emit(code, in, to, o)
	return s.finish(to)
}

// vector reads a constant vector of integers, such as axes or a shape.
func (s *site) vector(i int, attr string) ([]int64, bool) {
	if v := s.n.Ints(attr); v != nil {
		return v, true
	}
	if s.n.In(i) == "" {
		return nil, false
	}
	t := s.c.g.Init(s.n.In(i))
	if t == nil || t.Check() != nil {
		return nil, false
	}
	return t.Ints()
}

// axes returns normalized, distinct axes.
func (s *site) axes(v []int64, rank int) ([]int, error) {
	var r []int
	for _, a := range v {
		if a < 0 {
			a += int64(rank)
		}
		if a < 0 || a >= int64(rank) || slices.Contains(r, int(a)) {
			return nil, fmt.Errorf("%w: axes %v of a value of rank %d", ErrUnsupported, v, rank)
		}
		r = append(r, int(a))
	}
	return r, nil
}

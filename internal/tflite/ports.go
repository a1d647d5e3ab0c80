package tflite

import "fmt"

// input makes the tensor of an input of the model: float, or the codes that its quantizers
// make of it.
func (c *converter) input(name string) (int32, error) {
	if !c.ports8 {
		t, err := c.value(name, name, float32Type, nil)
		c.floats[name] = t
		return t, err
	}
	var q *quantization
	for _, u := range c.ix.Uses(name) {
		if !quantizes(u.Node) || u.Input != 0 {
			return 0, fmt.Errorf("%w: input %q is read in float by %s %q: quantize with --io int8", ErrUnsupported, name, u.Node.Op, u.Node.Name)
		}
		p, err := c.params(u.Node)
		if err != nil {
			return 0, err
		}
		if q != nil && !q.same(p) {
			return 0, fmt.Errorf("%w: input %q is quantized with two scales", ErrUnsupported, name)
		}
		q = p
	}
	if q == nil || c.ix.IsOutput(name) {
		return 0, fmt.Errorf("%w: input %q has no scale, as nothing quantizes it", ErrUnsupported, name)
	}
	t, err := c.value(name, name, q.typ(), q)
	if err != nil {
		return 0, err
	}
	for _, u := range c.ix.Uses(name) {
		c.quants[u.Node.Outputs[0]] = t
		c.done[u.Node] = true
	}
	return t, nil
}

// output returns the tensor of an output of the model: float unless the model gives codes, or
// the codes that it is dequantized from.
func (c *converter) output(name string) (int32, error) {
	if t, ok := c.quants[name]; ok {
		return t, nil
	}
	if !c.ports8 {
		return c.float(name)
	}
	t, ok := c.dequantized(name)
	if !ok {
		return 0, fmt.Errorf("%w: it is not quantized: quantize with --io int8", ErrUnsupported)
	}
	if d := c.p.tensors[t]; !c.taken[name] { // callers know the model's own name
		delete(c.taken, d.name)
		c.taken[name] = true
		d.name = name
	}
	return t, nil
}

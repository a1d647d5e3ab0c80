package graph

import (
	"slices"

	"github.com/fewbit/fewbit/internal/tensor"
)

// This file follows the small integer vectors in which exporters compute
// shapes: Shape -> Gather -> Unsqueeze -> Concat -> Reshape and the like.

// content returns the elements of an integer value as far as they are known.
func (f *inferrer) content(name string) ([]content, bool) {
	t := f.m.Graph.inits[name]
	if t == nil {
		c, ok := f.contents[name]
		return c, ok
	}
	if t.Len() > maxContents || len(t.Dims) > 1 {
		return nil, false
	}
	var v []int64
	if t.Type == tensor.Bool {
		for _, b := range t.Data {
			v = append(v, int64(min(b, 1)))
		}
	} else if i, ok := ints(t); ok {
		v = i
	} else {
		return nil, false
	}
	c := make([]content, len(v))
	for i, x := range v {
		c[i] = content{known: true, v: x}
	}
	return c, true
}

// known returns the elements of an integer value when all are numbers.
func (f *inferrer) known(name string) ([]int64, bool) {
	c, ok := f.content(name)
	if !ok || name == "" {
		return nil, false
	}
	v := make([]int64, len(c))
	for i, x := range c {
		if !x.known {
			return nil, false
		}
		v[i] = x.v
	}
	return v, true
}

// constant returns a computed value whose elements and type are all known, nil
// for others.
func (f *inferrer) constant(name string) *tensor.Tensor {
	v, ok := f.vals[name]
	if !ok || f.m.Graph.inits[name] != nil || v.Dims == nil {
		return nil
	}
	e, ok := f.known(name)
	if !ok {
		return nil
	}
	dims := make([]int64, len(v.Dims))
	if len(dims) > 0 {
		dims[0] = int64(len(e))
	}
	switch v.Type {
	case tensor.Int64:
		return tensor.From(e, dims...)
	case tensor.Int32:
		r := make([]int32, len(e))
		for i, x := range e {
			r[i] = int32(x)
		}
		return tensor.From(r, dims...)
	case tensor.Bool:
		r := make([]bool, len(e))
		for i, x := range e {
			r[i] = x != 0
		}
		return tensor.From(r, dims...)
	}
	return nil
}

// number returns the single element of an integer value.
func (f *inferrer) number(name string) (int64, bool) {
	v, ok := f.known(name)
	if !ok || len(v) != 1 {
		return 0, false
	}
	return v[0], true
}

// contentOf records the elements of n's output, if it can. The output's
// dimensions must be known by now.
func (f *inferrer) contentOf(n *Node) {
	if n.Domain != DomainONNX || n.out(0) == "" {
		return
	}
	v := f.vals[n.Outputs[0]]
	if v.Dims == nil || len(v.Dims) > 1 || (v.Type != tensor.Int64 && v.Type != tensor.Int32 && v.Type != tensor.Bool) {
		return
	}
	c, ok := f.contentRule(n)
	if !ok || len(c) > maxContents || (len(v.Dims) == 0 && len(c) != 1) || (len(v.Dims) == 1 && v.Dims[0].N != int64(len(c))) {
		return
	}
	if v.Type == tensor.Int32 {
		for i, x := range c {
			if x.known && x.v != int64(int32(x.v)) {
				c[i] = content{}
			}
		}
	}
	f.contents[n.Outputs[0]] = c
}

func (f *inferrer) contentRule(n *Node) ([]content, bool) {
	switch n.Op {
	case "Constant":
		if t := constantValue(n); t != nil && len(t.Dims) <= 1 && t.Len() <= maxContents {
			if v, ok := ints(t); ok {
				c := make([]content, len(v))
				for i, x := range v {
					c[i] = content{known: true, v: x}
				}
				return c, true
			}
		}
		return nil, false
	case "Shape", "Size":
		dims := f.in(n, 0).Dims
		if dims == nil {
			return nil, false
		}
		if n.Op == "Size" {
			dims = []Dim{product(dims)}
		} else {
			dims = shapeRange(n, dims)
		}
		c := make([]content, len(dims))
		for i, d := range dims {
			c[i] = content{known: d.N >= 0, v: d.N, name: d.Name}
		}
		return c, true
	case "Identity", "Squeeze", "Unsqueeze", "Reshape", "Cast":
		if n.Op == "Cast" {
			if to := tensor.DType(n.Int("to", 0)); to != tensor.Int64 && to != tensor.Int32 {
				return nil, false // a float could round, a bool would collapse
			}
		}
		c, ok := f.content(n.In(0))
		return slices.Clone(c), ok
	case "Concat":
		var all []content
		for _, in := range n.Inputs {
			c, ok := f.content(in)
			if v := f.of(in); !ok || len(v.Dims) != 1 || len(all)+len(c) > maxContents {
				return nil, false
			}
			all = append(all, c...)
		}
		return all, true
	case "Gather":
		c, ok := f.content(n.In(0))
		at, ok2 := f.known(n.In(1))
		if v := f.in(n, 0); !ok || !ok2 || len(v.Dims) != 1 || len(f.in(n, 1).Dims) > 1 {
			return nil, false
		}
		r := make([]content, len(at))
		for i, x := range at {
			k, ok := axis(x, len(c))
			if !ok {
				return nil, false
			}
			r[i] = c[k]
		}
		return r, true
	case "Slice":
		c, ok := f.content(n.In(0))
		if v := f.in(n, 0); !ok || len(v.Dims) != 1 {
			return nil, false
		}
		cuts, ok := f.cuts(n, 1)
		if !ok || len(cuts) != 1 {
			return nil, false
		}
		from, count := cuts[0].of(int64(len(c)))
		r := make([]content, count)
		for i := range r {
			r[i] = c[from+int64(i)*cuts[0].step]
		}
		return r, true
	case "ConstantOfShape":
		dims, ok := f.known(n.In(0))
		if !ok || len(dims) != 1 || dims[0] < 0 || dims[0] > maxContents {
			return nil, false
		}
		a := n.Attr("value")
		if a == nil || a.T == nil {
			return nil, false
		}
		t, err := TensorFromProto(a.T)
		if err != nil {
			return nil, false
		}
		v, ok := ints(t)
		if !ok || len(v) != 1 {
			return nil, false
		}
		return slices.Repeat([]content{{known: true, v: v[0]}}, int(dims[0])), true
	case "Add", "Sub", "Mul", "Div", "Equal", "Where", "Min", "Max":
		return f.contentMath(n)
	}
	return nil, false
}

// contentMath applies an element-wise operator.
func (f *inferrer) contentMath(n *Node) ([]content, bool) {
	in := make([][]content, len(n.Inputs))
	length := 1
	for i, name := range n.Inputs {
		c, ok := f.content(name)
		if !ok || (len(c) != length && len(c) != 1 && length != 1) {
			return nil, false
		}
		in[i] = c
		if len(c) != 1 {
			length = len(c)
		}
	}
	want := 2
	if n.Op == "Where" {
		want = 3
	}
	if len(in) != want {
		return nil, false
	}
	r := make([]content, length)
	for i := range r {
		at := func(k int) content { return in[k][i%len(in[k])] }
		if len(in[0]) == 0 || len(in[1]) == 0 || len(in[want-1]) == 0 {
			return nil, false
		}
		if n.Op == "Where" {
			switch c := at(0); {
			case c.known && c.v != 0:
				r[i] = at(1)
			case c.known:
				r[i] = at(2)
			}
			continue
		}
		r[i] = contentOp(n.Op, at(0), at(1))
	}
	return r, true
}

func contentOp(op string, a, b content) content {
	number := func(v int64) content { return content{known: true, v: v} }
	is := func(c content, v int64) bool { return c.known && c.v == v }
	if a.known && b.known {
		v, ok := int64(0), true
		if op == "Equal" {
			if a.v == b.v {
				v = 1
			}
		} else {
			v, ok = intOp[int64](op)(a.v, b.v)
			if op == "Mul" && a.v != 0 && (v/a.v != b.v || v == -1<<63) {
				ok = false
			}
		}
		if !ok {
			return content{}
		}
		return number(v)
	}
	switch op {
	case "Add":
		if is(a, 0) {
			return b
		}
		if is(b, 0) {
			return a
		}
	case "Sub":
		if is(b, 0) {
			return a
		}
	case "Mul":
		if is(a, 1) {
			return b
		}
		if is(b, 1) {
			return a
		}
		if d := times(a.dim(), b.dim()); d.Name != "" {
			return content{name: d.Name}
		}
	case "Div":
		if is(b, 1) {
			return a
		}
	case "Equal": // a dimension is never negative
		if (a.name != "" && b.known && b.v < 0) || (b.name != "" && a.known && a.v < 0) {
			return number(0)
		}
	}
	return content{}
}

// dim is c as a dimension: unknown when it is neither a symbol nor a number above 0.
func (c content) dim() Dim {
	switch {
	case !c.known:
		return Dim{N: -1, Name: c.name}
	case c.v <= 0:
		return unknownDim
	}
	return Dim{N: c.v}
}

// cuts reads a Slice on a value of the given rank.
func (f *inferrer) cuts(n *Node, rank int) ([]cut, bool) {
	c := &evalCall{node: n, opset: f.m.Opset(), in: make([]*tensor.Tensor, len(n.Inputs))}
	if c.opset >= 10 {
		for i := 1; i < len(n.Inputs); i++ {
			if n.Inputs[i] == "" {
				continue
			}
			v, ok := f.known(n.Inputs[i])
			if !ok {
				return nil, false
			}
			c.in[i] = tensor.From(v, int64(len(v)))
		}
	}
	return c.slices(rank)
}

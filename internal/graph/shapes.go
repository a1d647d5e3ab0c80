package graph

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/tensor"
)

// InferShapes fills Info with the types and dimensions of inner values as far
// as the operators it knows allow. Symbolic dimensions keep their names; what
// is not known stays unknown. What it infers overrules what the file says of
// an inner value; declared inputs and outputs are only completed, never changed.
func InferShapes(m *Model) {
	g := m.Graph
	f := infer(m, nil, true)
	for _, n := range g.Nodes {
		for _, o := range n.Outputs {
			v, ok := f.vals[o]
			if !ok || o == "" {
				continue
			}
			if old := g.Info[o]; old != nil && old.proto != nil {
				continue
			}
			if g.Info == nil {
				g.Info = map[string]*Value{}
			}
			g.Info[o] = &Value{Name: o, Type: v.Type, Dims: public(v.Dims)}
		}
	}
	for _, o := range g.Outputs {
		v, ok := f.vals[o.Name]
		if !ok || o.proto != nil {
			continue
		}
		if o.Type == tensor.Undefined {
			o.Type = v.Type
		}
		if o.Dims == nil && o.Type == v.Type {
			o.Dims = public(v.Dims)
		}
	}
}

// maxContents is the largest integer vector whose elements inference follows:
// the shapes and axes that exporters compute in the graph.
const maxContents = 64

// inferrer runs over the nodes once, in order.
type inferrer struct {
	m *Model
	// vals holds what is known of each value.
	vals map[string]Value
	// contents holds the elements of small integer values of rank 0 or 1.
	contents map[string][]content
	bind     map[string]int64
	symbols  int
}

// content is one element: a number, the size of a symbolic dimension, or
// neither (known false, name "").
type content struct {
	known bool
	v     int64
	name  string
}

// private marks the symbols that inference makes up for unnamed dimensions, so
// that it can tell that two of them are equal. They never leave this package.
const private = "\x00"

// infer runs inference. Dimensions named in bind get that size; a key of the
// form input[axis] binds one dimension of one graph input and goes first.
// Unless trust is set, the types of inner values that the file carries are
// ignored: a tool may have edited the model without updating them.
func infer(m *Model, bind map[string]int64, trust bool) *inferrer {
	g := m.Graph
	f := &inferrer{m: m, vals: make(map[string]Value, 2*len(g.Nodes)), contents: map[string][]content{}, bind: bind}
	for _, v := range g.Inputs {
		if v.proto != nil {
			continue
		}
		dims := v.Dims
		if len(bind) > 0 && dims != nil {
			dims = slices.Clone(dims)
			for i := range dims {
				if n, ok := bind[fmt.Sprintf("%s[%d]", v.Name, i)]; ok && n >= 0 {
					dims[i] = Dim{N: n}
				}
			}
		}
		f.set(v.Name, v.Type, dims)
	}
	for _, n := range g.Nodes {
		if !m.isLocal(n) || n.Domain == DomainFewbit {
			if rule := shapeRules[n.Domain][n.Op]; rule != nil {
				rule(f, n)
				f.contentOf(n)
			}
		}
		if !trust {
			continue
		}
		for _, o := range n.Outputs {
			if v := g.Info[o]; v != nil && v.proto == nil && o != "" {
				f.learn(o, v)
			}
		}
	}
	return f
}

// learn adds what the file says of a value to what was inferred.
func (f *inferrer) learn(name string, v *Value) {
	have := f.vals[name]
	if have.Type == tensor.Undefined {
		have.Type = v.Type
	}
	switch {
	case have.Dims == nil:
		have.Dims = v.Dims
	case len(have.Dims) == len(v.Dims):
		have.Dims = slices.Clone(have.Dims)
		for i, d := range have.Dims {
			if d.N < 0 && strings.HasPrefix(d.Name, private) && (v.Dims[i].N >= 0 || v.Dims[i].Name != "") {
				have.Dims[i] = v.Dims[i]
			}
		}
	}
	f.set(name, have.Type, have.Dims)
}

// set records a value. Every dimension gets a number or a symbol.
func (f *inferrer) set(name string, t tensor.DType, dims []Dim) {
	if name == "" {
		return
	}
	if len(dims) > tensor.MaxRank {
		dims = nil
	}
	if dims != nil {
		dims = slices.Clone(dims)
	}
	for i, d := range dims {
		switch n, bound := f.bind[d.Name]; {
		case d.N >= 0:
			dims[i].Name = ""
		case d.Name != "" && bound && n >= 0:
			dims[i] = Dim{N: n}
		case d.Name != "":
			dims[i].N = -1
		default:
			f.symbols++
			dims[i] = Dim{N: -1, Name: fmt.Sprint(private, f.symbols)}
		}
	}
	f.vals[name] = Value{Name: name, Type: t, Dims: dims}
}

// public replaces made-up symbols by unknown dimensions.
func public(dims []Dim) []Dim {
	if dims == nil {
		return nil
	}
	r := make([]Dim, len(dims))
	for i, d := range dims {
		if r[i] = d; strings.HasPrefix(d.Name, private) {
			r[i].Name = ""
		}
	}
	return r
}

// of returns what is known of a value: the zero Value when nothing is.
func (f *inferrer) of(name string) Value {
	if t := f.m.Graph.inits[name]; t != nil {
		return Value{Name: name, Type: t.Type, Dims: fixed(t.Dims)}
	}
	return f.vals[name]
}

// in returns what is known of input i.
func (f *inferrer) in(n *Node, i int) Value {
	if name := n.In(i); name != "" {
		return f.of(name)
	}
	return Value{}
}

// unknownDim is a dimension about which nothing is known.
var unknownDim = Dim{N: -1}

// unknowns returns r unknown dimensions.
func unknowns(r int) []Dim {
	d := make([]Dim, r)
	for i := range d {
		d[i] = unknownDim
	}
	return d
}

// maxSize bounds products and sums of dimensions, and counts of operations.
const maxSize = 1 << 62

// times multiplies dimensions. The product of symbols, and of one and a number, is
// a made-up symbol that tells its factors; unknown where one of them is.
func times(a, b Dim) Dim {
	switch {
	case a.N == 1:
		return b
	case b.N == 1:
		return a
	case a.N == 0 || b.N == 0:
		return Dim{N: 0}
	case a.N >= 0 && b.N >= 0:
		if a.N > maxSize/b.N {
			return unknownDim
		}
		return Dim{N: a.N * b.N}
	case a.N < 0 && a.Name == "" || b.N < 0 && b.Name == "":
		return unknownDim
	}
	x, s := a.factors()
	y, t := b.factors()
	if s = append(s, t...); len(s) > maxFactors || x > maxSize/y {
		return unknownDim
	}
	slices.Sort(s)
	return Dim{N: -1, Name: multiplied + strings.Join(append([]string{strconv.FormatInt(x*y, 10)}, s...), factorEnd)}
}

// multiplied begins the name of a product: its number and its symbols, with
// factorEnd between them.
const (
	multiplied = private + "*"
	factorEnd  = "\x01"
	maxFactors = 4 // symbols of a product
)

// factors returns what d is the product of: a number above 0 and symbols.
func (d Dim) factors() (int64, []string) {
	if d.N >= 0 {
		return d.N, nil
	}
	if rest, ok := strings.CutPrefix(d.Name, multiplied); ok {
		parts := strings.Split(rest, factorEnd)
		if n, err := strconv.ParseInt(parts[0], 10, 64); err == nil && n > 0 && len(parts) > 1 {
			return n, parts[1:]
		}
	}
	return 1, []string{d.Name}
}

// product multiplies many.
func product(dims []Dim) Dim {
	p := Dim{N: 1}
	for _, d := range dims {
		p = times(p, d)
	}
	return p
}

// plus adds dimensions.
func plus(a, b Dim) Dim {
	switch {
	case a.N == 0:
		return b
	case b.N == 0:
		return a
	case a.N < 0 || b.N < 0 || a.N > maxSize-b.N:
		return unknownDim
	}
	return Dim{N: a.N + b.N}
}

// broadcastDims is numpy's rule on dimensions; nil when either rank is unknown.
func broadcastDims(a, b []Dim) []Dim {
	if a == nil || b == nil {
		return nil
	}
	r := make([]Dim, max(len(a), len(b)))
	at := func(d []Dim, k int) Dim {
		if k > len(d) {
			return Dim{N: 1}
		}
		return d[len(d)-k]
	}
	for i := range r {
		x, y := at(a, len(r)-i), at(b, len(r)-i)
		switch {
		case x == y || y.N == 1:
			r[i] = x
		case x.N == 1:
			r[i] = y
		case x.N > 1: // y is symbolic: it must be 1 or the same
			r[i] = x
		case y.N > 1:
			r[i] = y
		default:
			r[i] = unknownDim
		}
	}
	return r
}

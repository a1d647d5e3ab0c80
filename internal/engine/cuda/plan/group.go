package plan

import (
	"bytes"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// group is several nodes that one step computes. It is emitted where its last
// node stands, when all its inputs are there; its other nodes are not emitted.
type group struct {
	product *product
	conv    *product
	norm    *norm
	embed   *embedding
	pool    *pooling
	mean    *meanPooling
	packed  *packed // of a product: it is part of a fused Q, K, V projection
}

// product is a matrix product or convolution with what its epilogue does:
//
//	product: core -> [+ bias] -> [act] -> [+ residual] -> [QuantizeLinear]
//	conv:    core -> [+ residual] -> [act] -> [QuantizeLinear]
type product struct {
	core     *graph.Node
	bias     string // a constant vector that an Add after the core reads
	act      activation
	residual string
	quant    *graph.Node
	out      string // the last value
	inner    []*graph.Node
}

// activation is an epilogue's.
type activation struct {
	act    Act
	lo, hi float32
}

// norm is [Add ->] LayerNormalization.
type norm struct {
	node        *graph.Node
	x, residual string
}

// pooling is DequantizeLinear -> pool -> QuantizeLinear.
type pooling struct{ pool, quant *graph.Node }

// findGroups looks for groups from the last node backwards, so that each is as
// long as it can be.
func (b *builder) findGroups() {
	nodes := b.g.Nodes
	for i := len(nodes) - 1; i >= 0; i-- {
		n := nodes[i]
		if b.absorbed[n] {
			continue
		}
		switch {
		case b.claim(n, b.matchMean(n)):
		case b.claim(n, b.matchConv(n)):
		case b.claim(n, b.matchProduct(n)):
		case b.claim(n, b.matchPool(n)):
		case b.claim(n, b.matchEmbed(n)):
		case b.claim(n, b.matchNorm(n)):
		}
	}
	b.findPacked()
}

// match is a group with the nodes that it takes besides its last.
type match struct {
	group
	inner []*graph.Node
}

func (b *builder) claim(n *graph.Node, m *match) bool {
	if m == nil {
		return false
	}
	for _, x := range m.inner {
		if b.absorbed[x] || b.groups[x] != nil {
			return false
		}
	}
	b.groups[n] = &m.group
	for _, x := range m.inner {
		b.absorbed[x] = true
	}
	return true
}

// sole returns the producer of a value that nothing but one node reads.
func (b *builder) sole(value string) *graph.Node {
	if b.ix.Only(value) == nil {
		return nil
	}
	n := b.ix.Producer(value)
	if n == nil || b.absorbed[n] || n.Outputs[0] != value {
		return nil
	}
	return n
}

// activationOf reports which epilogue activation a node is.
func (b *builder) activationOf(n *graph.Node) (activation, bool) {
	switch {
	case n.Is("Relu"):
		return activation{act: ActRelu}, true
	case n.Is("Clip"):
		lo, hi, ok := b.clip(n)
		return activation{ActClip, lo, hi}, ok
	case n.Op == "Gelu" && n.In(1) == "" && n.Str("approximate", "none") == "none":
		return activation{act: ActGelu}, true
	case (n.Is("Gelu") && n.Str("approximate", "none") == "tanh") || (n.Domain == graph.DomainMS && n.Op == "FastGelu" && n.In(1) == ""):
		return activation{act: ActGeluTanh}, true
	case n.Domain == graph.DomainMS && n.Op == "QuickGelu":
		switch n.Float("alpha", 1.702) {
		case 1.702:
			return activation{act: ActQuickGelu}, true
		case 1:
			return activation{act: ActSilu}, true
		}
	}
	return activation{}, false
}

// clip returns the bounds of a Clip, which must be constant.
func (b *builder) clip(n *graph.Node) (lo, hi float32, ok bool) {
	lo, hi = -math.MaxFloat32, math.MaxFloat32
	if b.m.Opset() < 11 {
		return n.Float("min", lo), n.Float("max", hi), true
	}
	for i, p := range []*float32{&lo, &hi} {
		name := n.In(i + 1)
		if name == "" {
			continue
		}
		t := b.g.Init(name)
		if t == nil || t.Type != tensor.Float32 || t.Len() != 1 {
			return 0, 0, false
		}
		*p = tensor.View[float32](t)[0]
	}
	return lo, hi, true
}

// static returns scale and zero point of a QuantizeLinear or DequantizeLinear
// that has one of each for the whole tensor, or repeats them. zero is that of s8 codes.
func (b *builder) static(n *graph.Node) (scale float32, zero int32, ok bool) {
	s := b.g.Init(n.In(1))
	if s == nil || s.Type != tensor.Float32 || !uniform(s) || n.Int("block_size", 0) != 0 {
		return 0, 0, false
	}
	scale = tensor.View[float32](s)[0]
	if !(scale > 0) || math.IsInf(float64(scale), 0) {
		return 0, 0, false
	}
	if n.In(2) == "" && n.Op == "DequantizeLinear" { // 0, of whatever the codes are
		codes, err := b.value(n.In(0))
		switch {
		case err != nil:
			return 0, 0, false
		case codes.dtype == tensor.Uint8:
			return scale, -128, true
		}
		return scale, 0, codes.dtype == tensor.Int8
	}
	if n.In(2) == "" {
		return scale, -128, tensor.DType(n.Int("output_dtype", int64(tensor.Uint8))) == tensor.Uint8
	}
	z := b.g.Init(n.In(2))
	if z == nil || !uniform(z) {
		return 0, 0, false
	}
	switch z.Type {
	case tensor.Uint8:
		return scale, int32(z.Data[0]) - 128, true
	case tensor.Int8:
		return scale, int32(int8(z.Data[0])), true
	}
	return 0, 0, false
}

// uniform reports whether t repeats one element: quant.Insert gives one scale a
// channel to what an operator reads that must stay in float.
func uniform(t *tensor.Tensor) bool {
	if t.Len() < 1 {
		return false
	}
	size := len(t.Data) / int(t.Len())
	return size > 0 && bytes.Equal(t.Data[size:], t.Data[:len(t.Data)-size])
}

// quantizer returns n when it is a QuantizeLinear with one scale.
func (b *builder) quantizer(n *graph.Node) bool {
	if n.Op != "QuantizeLinear" {
		return false
	}
	_, _, ok := b.static(n)
	return ok
}

// activationCodes reports whether value is a DequantizeLinear of codes that are
// computed, with one scale.
func (b *builder) activationCodes(value string) bool {
	d := b.ix.Producer(value)
	if d == nil || d.Op != "DequantizeLinear" || b.g.Init(d.In(0)) != nil {
		return false
	}
	_, _, ok := b.static(d)
	return ok
}

// sizes returns a value's dimensions, nil when they are not known.
func (b *builder) sizes(name string) []int64 {
	v, err := b.value(name)
	if err != nil {
		return nil
	}
	return v.dims
}

// constVector reports whether name is a constant float vector of n elements in
// its last dimension.
func (b *builder) constVector(name string, n int64) bool {
	t := b.g.Init(name)
	return t != nil && t.Type == tensor.Float32 && len(t.Dims) > 0 && t.Len() == n && t.Dims[len(t.Dims)-1] == n
}

// matchProduct finds the longest product that ends in n.
func (b *builder) matchProduct(n *graph.Node) *match {
	p := &product{out: n.Outputs[0]}
	at := n
	if b.quantizer(n) {
		if at = b.sole(n.In(0)); at == nil {
			return nil
		}
		p.quant = n
		p.inner = append(p.inner, at)
	}
	if !b.residualChain(p, at) {
		return nil
	}
	if p.quant != nil { // s8 output: rows whose padding would have to be zeroed
		w, ok := b.weightOf(p.core)
		dims := b.sizes(p.quant.In(0))
		if !ok || w.kind != weightS8 || w.n%16 != 0 || len(dims) == 4 {
			return nil
		}
	}
	return &match{group{product: p}, p.inner}
}

// residualChain matches [Add(residual)] around chain.
func (b *builder) residualChain(p *product, at *graph.Node) bool {
	if b.chain(p, at) {
		return true
	}
	if !at.Is("Add") || len(at.Inputs) != 2 || at.In(0) == at.In(1) {
		return false
	}
	for i := range 2 {
		inner := b.sole(at.In(i))
		other := at.In(1 - i)
		if inner == nil || b.g.Init(other) != nil || !sameDims(b.sizes(at.In(i)), b.sizes(other)) {
			continue
		}
		kept := p.inner
		p.inner = append(append([]*graph.Node(nil), kept...), inner)
		if b.chain(p, inner) {
			p.residual = other
			return true
		}
		p.inner = kept
	}
	return false
}

// chain matches [act] <- [Add(bias)] <- core, core last.
func (b *builder) chain(p *product, at *graph.Node) bool {
	kept := p.inner
	inner := append([]*graph.Node(nil), kept...)
	take := func(value string) *graph.Node {
		n := b.sole(value)
		if n != nil {
			inner = append(inner, n)
		}
		return n
	}
	act, ok := b.activationOf(at)
	if ok {
		if at = take(at.In(0)); at == nil {
			return false
		}
	}
	core, bias := at, ""
	if at.Is("Add") && len(at.Inputs) == 2 {
		core = nil
		for i := range 2 {
			if b.g.Init(at.In(i)) == nil && b.g.Init(at.In(1-i)) != nil {
				core, bias = take(at.In(i)), at.In(1-i)
			}
		}
		if core == nil {
			return false
		}
	}
	w, isProduct := b.weightOf(core)
	if !isProduct {
		return false
	}
	if bias != "" && (w.bias != "" || !b.constVector(bias, w.n) || len(b.g.Init(bias).Dims) > len(b.sizes(core.Outputs[0]))) {
		return false
	}
	if w.kind == weightNone && (ok || bias != "" || at != core || len(inner) > len(kept)) {
		return false // a product of two computed operands has no epilogue
	}
	if w.kind == weightNone && len(kept) > 0 {
		return false
	}
	p.core, p.bias, p.act, p.inner = core, bias, act, inner
	return true
}

func sameDims(a, b []int64) bool {
	if len(a) != len(b) || a == nil {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// matchConv finds the longest convolution that ends in n.
func (b *builder) matchConv(n *graph.Node) *match {
	p := &product{out: n.Outputs[0]}
	at := n
	step := func(value string) bool {
		next := b.sole(value)
		if next == nil {
			return false
		}
		p.inner = append(p.inner, next)
		at = next
		return true
	}
	if b.quantizer(n) {
		if !step(n.In(0)) {
			return nil
		}
		p.quant = n
	}
	if a, ok := b.activationOf(at); ok && a.act != ActNone {
		if !step(at.In(0)) {
			return nil
		}
		p.act = a
	}
	if at.Is("Add") && len(at.Inputs) == 2 {
		add := at
		for i := range 2 {
			other := add.In(1 - i)
			c := b.sole(add.In(i))
			if c != nil && c.Is("Conv") && b.activationCodes(other) && sameDims(b.sizes(add.In(i)), b.sizes(other)) && b.intConv(c) {
				p.residual = other
				p.inner = append(p.inner, c)
				at = c
				break
			}
		}
	}
	if !at.Is("Conv") {
		return nil
	}
	if !b.intConv(at) && (p.quant != nil || p.residual != "") {
		return nil
	}
	p.core = at
	return &match{group{conv: p}, p.inner}
}

// intConv reports whether a Conv reads codes: s8 weights, two spatial axes.
func (b *builder) intConv(n *graph.Node) bool {
	if !b.activationCodes(n.In(0)) || len(b.sizes(n.In(0))) != 4 {
		return false
	}
	_, ok := b.weightCodes(n.In(1), 0)
	return ok && (n.In(2) == "" || b.constFloats(n.In(2)) != nil)
}

// matchPool finds DequantizeLinear -> pool -> QuantizeLinear.
func (b *builder) matchPool(n *graph.Node) *match {
	if !b.quantizer(n) {
		return nil
	}
	pool := b.sole(n.In(0))
	if pool == nil || !(pool.Is("MaxPool") || pool.Is("AveragePool") || pool.Is("GlobalAveragePool")) || !b.activationCodes(pool.In(0)) ||
		len(b.sizes(pool.In(0))) != 4 {
		return nil
	}
	if _, err := b.poolOf(pool); err != nil {
		return nil
	}
	return &match{group{pool: &pooling{pool, n}}, []*graph.Node{pool}}
}

// matchNorm finds a LayerNormalization, with the addition before it when that
// is not the end of a product.
func (b *builder) matchNorm(n *graph.Node) *match {
	if !n.Is("LayerNormalization") {
		return nil
	}
	m := &match{group: group{norm: &norm{node: n, x: n.In(0)}}}
	add := b.ix.Producer(n.In(0))
	if add == nil || !add.Is("Add") || len(add.Inputs) != 2 || b.absorbed[add] || b.groups[add] != nil ||
		b.g.Init(add.In(0)) != nil || b.g.Init(add.In(1)) != nil || !sameDims(b.sizes(add.In(0)), b.sizes(add.In(1))) {
		return m
	}
	// Only when nothing else reads the sum: it would have to wait for the norm.
	if b.ix.Only(n.In(0)) == nil || b.matchProduct(add) != nil || b.matchEmbed(add) != nil {
		return m
	}
	m.norm.x, m.norm.residual = add.In(0), add.In(1)
	m.inner = []*graph.Node{add}
	return m
}

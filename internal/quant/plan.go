package quant

import (
	"fmt"
	"slices"
	"sort"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// minLinearOut is the smallest output width of a MatMul or Gemm that is worth
// quantizing: a classifier's few logits cost nothing in float and decide the
// answer.
const minLinearOut = 16

// maxBiasRank is the rank up to which an Add after a MatMul counts as its bias.
const maxBiasRank = 1

// Kind is how an operator takes part in a quantized graph.
type Kind int

// The kinds.
const (
	// Linear is a MatMul or Gemm with a constant weight; its output is float.
	Linear Kind = iota
	// Conv is a convolution with a constant weight; its output is quantized.
	Conv
	// Chain is an elementwise or pooling operator between quantized tensors.
	Chain
	// Through moves quantized values without arithmetic: its output has the
	// parameters of its input.
	Through
	// Recurrent is an LSTM with constant weights; its input and output are float.
	Recurrent
)

// Op is one operator that will run in integers.
type Op struct {
	Node *graph.Node
	Kind Kind
	// X lists the activation inputs (one; more for Chain operators, none for Recurrent ones).
	X []string
	// Const is the constant second input of a Chain operator, "" where it is an activation.
	Const string
	// W and Bias are initializer names, "" where absent.
	W, Bias string
	// OutAxis and InAxis are the weight's output- and input-channel axes.
	OutAxis, InAxis int
	// Add is the node that adds the bias of a MatMul, if one does.
	Add *graph.Node
	// Act is the Relu or Clip that follows and that the output's range absorbs.
	Act *graph.Node
	// Out is the tensor that holds the result: after Add and Act.
	Out string
	// Precision of its weight and, but for 4 bits, of its input.
	Precision Precision
	// QuantOut: Out gets a range and a quantized form.
	QuantOut bool
}

// Float is an operator with multiply-accumulates that stays in float.
type Float struct {
	Node *graph.Node
	// Rule is the rule that it broke, for people.
	Rule string
}

// Plan lists what will be quantized.
type Plan struct {
	Config Config
	Ops    []*Op
	Float  []Float
	// Tensors are the activations that get a range, in graph order.
	Tensors []string
	// source maps a Through output to the tensor whose parameters it shares.
	source map[string]string
	// fixed holds the tensors whose range is their operator's.
	fixed map[string]calib.Range
}

// chainOps are the operators with an integer form in ONNX Runtime's CPU
// engine that takes and gives quantized tensors.
var chainOps = map[string]bool{
	"Add": true, "Mul": true, "GlobalAveragePool": true, "AveragePool": true, "Concat": true,
	"Sigmoid": true, "LeakyRelu": true,
}

// throughOps move values; input 0 is the data.
var throughOps = map[string]bool{
	"MaxPool": true, "Reshape": true, "Flatten": true, "Transpose": true, "Squeeze": true, "Unsqueeze": true,
	"Identity": true,
}

// NewPlan decides which operators of the model run in integers. The model must
// have gone through Prepare.
func NewPlan(m *graph.Model, c Config) (*Plan, error) { return NewPlanOf(m, c, nil) }

// NewPlanOf is NewPlan without the operators for which leave, where it is not nil,
// gives a rule that they break. With ErrNothing the plan lists the rules.
func NewPlanOf(m *graph.Model, c Config, leave func(*graph.Node) string) (*Plan, error) {
	if op := m.Quantized(); op != "" {
		return nil, fmt.Errorf("%w: it contains %s; give the float model it was made from", ErrQuantized, op)
	}
	p := &Plan{Config: c, source: map[string]string{}, fixed: map[string]calib.Range{}}
	b := planner{Plan: p, g: m.Graph, ix: m.Graph.Index(), quantized: map[string]bool{}, taken: map[*graph.Node]bool{}, opset: m.Opset()}
	used := map[string]bool{}
	if c.Ports {
		for _, v := range m.Graph.Inputs {
			b.quantized[v.Name] = v.Type == tensor.Float32 && m.Graph.Init(v.Name) == nil
		}
	}
	for _, n := range m.Graph.Nodes {
		if b.taken[n] {
			continue
		}
		if why := b.excluded(n, used); why != "" {
			if hasMACs(n) {
				p.Float = append(p.Float, Float{n, why})
			}
			continue
		}
		op, rule := b.consider(n)
		if op != nil && leave != nil {
			if why := leave(n); why != "" {
				if op = nil; hasMACs(n) {
					rule = why
				}
			}
		}
		switch {
		case op != nil:
			b.accept(op)
		case rule != "":
			p.Float = append(p.Float, Float{n, rule})
		}
	}
	p.Float = append(p.Float, bodies(m.Graph)...)
	for _, e := range c.Exclude {
		if !used[e] {
			return nil, fmt.Errorf("%w: exclude %q names no operator and no operator type of the model", ErrConfig, e)
		}
	}
	b.trim()
	if err := b.checkOpset(m); err != nil {
		return nil, err
	}
	b.collect()
	if len(p.Ops) == 0 {
		return p, fmt.Errorf("%w: %s", ErrNothing, p.whyNothing(m))
	}
	return p, nil
}

// Linears returns the Linear operators grouped by their activation input, in
// graph order: consumers that share an input share its range and smoothing.
func (p *Plan) Linears() [][]*Op {
	at := map[string]int{}
	var groups [][]*Op
	for _, op := range p.Ops {
		if op.Kind != Linear {
			continue
		}
		i, ok := at[op.X[0]]
		if !ok {
			i = len(groups)
			at[op.X[0]] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], op)
	}
	return groups
}

// InChain reports whether t lies between operators that work on codes, so that
// nothing may be inserted before its quantizer.
func (p *Plan) InChain(t string) bool {
	for _, op := range p.Ops {
		if op.QuantOut && op.Out == t || op.Kind != Linear && slices.Contains(op.X, t) {
			return true
		}
	}
	return false
}

// Source returns the tensor whose quantization parameters t uses: t itself
// unless a Through operator made it.
func (p *Plan) Source(t string) string {
	for {
		s, ok := p.source[t]
		if !ok {
			return t
		}
		t = s
	}
}

type planner struct {
	*Plan
	g         *graph.Graph
	ix        *graph.Index
	quantized map[string]bool // tensors that will have a quantized form
	taken     map[*graph.Node]bool
	opset     int64
}

// hasMACs reports whether n is an operator that people expect to be quantized.
func hasMACs(n *graph.Node) bool {
	switch n.Op {
	case "MatMul", "Gemm", "Conv", "ConvTranspose", "FusedMatMul", "MultiHeadAttention", "Attention", "LSTM", "GRU", "RNN", "Einsum",
		"FusedConv", "FusedGemm":
		return true
	}
	return false
}

func (b *planner) excluded(n *graph.Node, used map[string]bool) string {
	for _, e := range b.Config.Exclude {
		if e == n.Name || e == n.Op {
			used[e] = true
			return "excluded by the user"
		}
	}
	return ""
}

func (b *planner) consider(n *graph.Node) (*Op, string) {
	switch {
	case n.Is("MatMul"):
		return b.matmul(n)
	case n.Is("Gemm"):
		return b.gemm(n)
	case n.Is("Conv"):
		return b.conv(n)
	case n.Is("LSTM"):
		return b.lstm(n)
	case b.Config.isChain(n):
		return b.chain(n), ""
	case b.Config.isThrough(n):
		return b.through(n), ""
	case n.Op == "MultiHeadAttention" || n.Op == "Attention":
		return nil, "attention scores and their product with V stay in float (softmax needs the range)"
	case hasMACs(n):
		if b.Config.Target.Native() {
			return nil, fmt.Sprintf("%s has no integer kernel", n.Op)
		}
		return nil, fmt.Sprintf("%s has no integer kernel in ONNX Runtime's CPU engine", n.Op)
	}
	return nil, ""
}

// floatWeight returns the rank-checked float initializer, or the rule it broke.
func (b *planner) floatWeight(name string, minRank, maxRank int) (*tensor.Tensor, string) {
	w := b.g.Init(name)
	switch {
	case w == nil:
		return nil, "its weight is not a constant"
	case w.Type != tensor.Float32 && w.Type != tensor.Float16 && w.Type != tensor.BFloat16 && w.Type != tensor.Float64:
		return nil, fmt.Sprintf("its weight is %v", w.Type)
	case w.Type != tensor.Float32:
		return nil, fmt.Sprintf("its weight is %v; quantize the FP32 model", w.Type)
	case len(w.Dims) < minRank || len(w.Dims) > maxRank:
		return nil, fmt.Sprintf("its weight has rank %d", len(w.Dims))
	case w.Len() == 0:
		return nil, "its weight is empty"
	}
	return w, ""
}

func (b *planner) isActivation(name string) bool { return name != "" && b.g.Init(name) == nil }

func (b *planner) matmul(n *graph.Node) (*Op, string) {
	x, w := n.In(0), n.In(1)
	if b.isActivation(x) && b.isActivation(w) {
		return nil, "both inputs are activations (attention scores stay in float)"
	}
	if !b.isActivation(x) {
		return nil, "the constant is on the left"
	}
	t, rule := b.floatWeight(w, 2, 2)
	if rule != "" {
		return nil, rule
	}
	if t.Dims[1] < minLinearOut && !b.Config.Ports {
		return nil, fmt.Sprintf("%d outputs: too few to gain (at least %d)", t.Dims[1], minLinearOut)
	}
	if b.Config.Steps() && t.Dims[0]%Int4Block != 0 {
		return nil, fmt.Sprintf("%d inputs: 4-bit weights of target %s need a multiple of %d", t.Dims[0], CPU, Int4Block)
	}
	if b.Config.rows() && t.Dims[0] > ops.MaxK {
		return nil, fmt.Sprintf("%d inputs: INT32 sums hold %d products", t.Dims[0], ops.MaxK)
	}
	op := &Op{Node: n, Kind: Linear, X: []string{x}, W: w, OutAxis: 1, InAxis: 0, Out: n.Outputs[0]}
	if b.Config.Target == QOperator { // QLinearMatMul gives codes; a bias is added after them
		op.QuantOut = !b.visible(op.Out)
		return op, ""
	}
	if add := b.ix.Only(op.Out); add != nil && add.Is("Add") && !b.addExcluded(add) {
		bias := add.In(0)
		if bias == op.Out {
			bias = add.In(1)
		}
		if t2 := b.g.Init(bias); t2 != nil && t2.Type == tensor.Float32 && len(t2.Dims) <= maxBiasRank && t2.Len() == t.Dims[1] {
			op.Add, op.Bias, op.Out = add, bias, add.Outputs[0]
		}
	}
	op.QuantOut = b.gated(op.Out)
	return op, ""
}

func (b *planner) addExcluded(n *graph.Node) bool {
	return b.excluded(n, map[string]bool{}) != ""
}

func (b *planner) gemm(n *graph.Node) (*Op, string) {
	x, w, bias := n.In(0), n.In(1), n.In(2)
	if !b.isActivation(x) {
		return nil, "the constant is on the left"
	}
	t, rule := b.floatWeight(w, 2, 2)
	if rule != "" {
		return nil, rule
	}
	op := &Op{Node: n, Kind: Linear, X: []string{x}, W: w, Bias: bias, OutAxis: 1, InAxis: 0, Out: n.Outputs[0]}
	if n.Int("transB", 0) != 0 {
		op.OutAxis, op.InAxis = 0, 1
	}
	out := t.Dims[op.OutAxis]
	switch {
	case n.Int("transA", 0) != 0:
		return nil, "its activation is transposed"
	case n.Float("alpha", 1) != 1 || (bias != "" && n.Float("beta", 1) != 1):
		return nil, "its alpha or beta is not 1"
	case out < minLinearOut && !b.Config.Ports:
		return nil, fmt.Sprintf("%d outputs: too few to gain (at least %d)", out, minLinearOut)
	}
	if bias != "" {
		bt := b.g.Init(bias)
		if bt == nil || bt.Type != tensor.Float32 || bt.Len() != out || !trailingVector(bt.Dims) {
			return nil, "its bias is not one constant a channel"
		}
	}
	op.QuantOut = b.Config.Target == QOperator && !b.visible(op.Out) || b.gated(op.Out)
	return op, ""
}

// visible reports whether a value is read from outside the main graph's nodes.
func (b *planner) visible(value string) bool {
	return b.ix.IsOutput(value) || b.ix.Captured(value)
}

// trailingVector reports whether dims is [n] or [1,...,1,n].
func trailingVector(dims []int64) bool {
	for i, d := range dims {
		if i < len(dims)-1 && d != 1 {
			return false
		}
	}
	return len(dims) > 0
}

func (b *planner) conv(n *graph.Node) (*Op, string) {
	x, w, bias := n.In(0), n.In(1), n.In(2)
	if b.Config.Scheme == INT4 {
		return b.conv4(n)
	}
	if b.Config.Scheme == INT8Dynamic {
		return nil, "convolutions need static ranges (ConvInteger is slower than float); use scheme int8 with calibration data"
	}
	if !b.isActivation(x) {
		return nil, "its input is a constant"
	}
	t, rule := b.floatWeight(w, 3, 5)
	if rule != "" {
		return nil, rule
	}
	if bias != "" {
		bt := b.g.Init(bias)
		if bt == nil || bt.Type != tensor.Float32 || bt.Len() != t.Dims[0] {
			return nil, "its bias is not one constant a channel"
		}
	}
	op := &Op{Node: n, Kind: Conv, X: []string{x}, W: w, Bias: bias, OutAxis: 0, InAxis: 1, Out: n.Outputs[0], QuantOut: true}
	op.Act = b.activation(op.Out)
	if op.Act != nil {
		op.Out = op.Act.Outputs[0]
	}
	if b.visible(op.Out) {
		return nil, "its output is the model's output and stays exact"
	}
	return op, ""
}

// activation returns the Relu or constant Clip that alone reads value and
// that a quantized output range can absorb: its lower bound is zero.
func (b *planner) activation(value string) *graph.Node {
	n := b.ix.Only(value)
	if n == nil {
		return nil
	}
	if n.Is("Relu") {
		return n
	}
	if lo, hi, ok := clipBounds(b.g, n); ok && lo == 0 && hi > 0 {
		return n
	}
	return nil
}

// clipBounds returns the constant bounds of a Clip in either of its forms
// (attributes before opset 11, inputs since).
func clipBounds(g *graph.Graph, n *graph.Node) (lo, hi float32, ok bool) {
	if !n.Is("Clip") {
		return 0, 0, false
	}
	const big = 3.4028234663852886e+38
	lo, hi = n.Float("min", -big), n.Float("max", big)
	for i, dst := range []*float32{&lo, &hi} {
		name := n.In(i + 1)
		if name == "" {
			continue
		}
		t := g.Init(name)
		if t == nil || t.Type != tensor.Float32 || t.Len() != 1 {
			return 0, 0, false
		}
		*dst = tensor.View[float32](t)[0]
	}
	return lo, hi, true
}

// chain accepts an operator all of whose activation inputs are quantized
// already, or constants that may be: it costs no new conversion.
func (b *planner) chain(n *graph.Node) *Op {
	op := &Op{Node: n, Kind: Chain, Out: n.Outputs[0], QuantOut: true}
	for i, in := range dataInputs(n) {
		switch {
		case b.quantized[in]:
			op.X = append(op.X, in)
		case b.operand(n, i):
			op.Const = in
		default:
			return nil
		}
	}
	if len(op.X) == 0 {
		return nil
	}
	if n.Op == "AveragePool" && n.Int("ceil_mode", 0) != 0 {
		return nil
	}
	op.Act = b.activation(op.Out)
	if op.Act != nil && (n.Op == "Add" || n.Op == "Mul" || n.Op == "Sub") {
		op.Out = op.Act.Outputs[0]
	} else {
		op.Act = nil
	}
	if b.visible(op.Out) {
		return nil
	}
	return op
}

func (b *planner) through(n *graph.Node) *Op {
	x, out := n.In(0), n.Outputs[0]
	if !b.quantized[x] || b.visible(out) || len(n.Outputs) != 1 || !b.movable(n) {
		return nil
	}
	return &Op{Node: n, Kind: Through, X: []string{x}, Out: out, QuantOut: true}
}

func (b *planner) accept(op *Op) {
	op.Precision = Precision(b.Config.Scheme)
	b.Ops = append(b.Ops, op)
	b.taken[op.Node] = true
	for _, n := range []*graph.Node{op.Add, op.Act} {
		if n != nil {
			b.taken[n] = true
		}
	}
	b.quantized[op.Out] = op.QuantOut
	switch op.Kind {
	case Conv:
		b.quantized[op.X[0]] = b.quantized[op.X[0]] || op.QuantOut
	case Through:
		b.source[op.Out] = op.X[0]
	case Chain:
		if r, ok := b.Config.fixedRange(op.Node); ok {
			b.fixed[op.Out] = r
		}
	}
}

// collect lists the tensors that need a range: inputs and quantized outputs of
// the operators, each once, in graph order. Dynamic schemes need none.
func (b *planner) collect() {
	if !b.Config.Scheme.Static() {
		return
	}
	seen := map[string]bool{}
	add := func(t string) {
		if t = b.Source(t); !seen[t] {
			seen[t] = true
			b.Tensors = append(b.Tensors, t)
		}
	}
	for _, op := range b.Ops {
		if !b.Config.byRow(op) {
			for _, x := range op.X {
				add(x)
			}
		}
		if op.QuantOut {
			add(op.Out)
		}
	}
}

func (p *Plan) whyNothing(m *graph.Model) string {
	if len(p.Float) == 0 {
		for _, f := range m.Functions() {
			for _, n := range f.GetNode() {
				if hasMACs(&graph.Node{Op: n.GetOpType()}) {
					return fmt.Sprintf("the model's %s is inside of a function, %s, which is not entered: export without functions, or inline them (onnx.inliner)", n.GetOpType(), f.GetName())
				}
			}
		}
		return "the model has no MatMul, Gemm or Conv"
	}
	count := map[string]int{}
	for _, f := range p.Float {
		count[f.Node.Op+": "+f.Rule]++
	}
	rules := make([]string, 0, len(count))
	for r := range count {
		rules = append(rules, r)
	}
	sort.Slice(rules, func(i, j int) bool {
		if count[rules[i]] != count[rules[j]] {
			return count[rules[i]] > count[rules[j]]
		}
		return rules[i] < rules[j]
	})
	return rules[0]
}

// Filter returns the plan of those operators that keep accepts.
func (p *Plan) Filter(keep func(*Op) bool) *Plan {
	c := *p
	c.Ops = nil
	for _, op := range p.Ops {
		if keep(op) {
			c.Ops = append(c.Ops, op)
		}
	}
	return &c
}

// On returns the same plan for a clone of the model that it was made for.
func (p *Plan) On(clone *graph.Model) *Plan {
	at := make(map[string]*graph.Node, len(clone.Graph.Nodes))
	for _, n := range clone.Graph.Nodes {
		if len(n.Outputs) > 0 {
			at[n.Outputs[0]] = n
		}
	}
	twin := func(n *graph.Node) *graph.Node {
		if n == nil {
			return nil
		}
		return at[n.Outputs[0]]
	}
	c := *p
	c.Ops = make([]*Op, len(p.Ops))
	for i, op := range p.Ops {
		o := *op
		o.Node, o.Add, o.Act = twin(op.Node), twin(op.Add), twin(op.Act)
		c.Ops[i] = &o
	}
	c.Float = nil
	return &c
}

// Has reports whether node n is planned to run in integers.
func (p *Plan) Has(n *graph.Node) bool {
	return slices.ContainsFunc(p.Ops, func(o *Op) bool { return o.Node == n })
}

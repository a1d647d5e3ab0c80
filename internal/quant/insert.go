package quant

import (
	"context"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// perAxisOpset is the first standard opset whose DequantizeLinear has an axis.
const perAxisOpset = 13

// Insert is the pass that writes the plan into the graph: QuantizeLinear and
// DequantizeLinear around every planned operator, weights as INT8, convolution
// biases as INT32. The result is the portable form; Lower makes integer
// operators of it. Dynamic plans, and matrix products that take their activation
// by row, are written in their final form at once.
type Insert struct {
	Plan    *Plan
	Choices Choices
	// Solved holds weights that are quantized already; may be nil.
	Solved *Solved

	// Dequantized and Biases are set by Run: the dequantized copy of each
	// quantized activation, and the base of the names BASE_quantized and
	// BASE_scale of each INT32 bias.
	Dequantized, Biases map[string]string
	// Renamed is set by Run too: what float values that Config.Ports has set apart from
	// the model's outputs are called in the end.
	Renamed map[string]string
}

var _ Pass = (*Insert)(nil)

// Name implements Pass.
func (p *Insert) Name() string { return "insert" }

// Run implements Pass.
func (p *Insert) Run(ctx context.Context, m *graph.Model) (Stats, error) {
	p.Dequantized, p.Biases, p.Renamed = map[string]string{}, map[string]string{}, map[string]string{}
	w := &inserter{Insert: p, m: m, g: m.Graph, ix: m.Graph.Index(), dq: p.Dequantized, rows: map[string][]string{}, weights: map[weightKey]string{}, operands: map[string]string{}, methods: methodCount{}}
	w.tag = w.freeTag()
	if err := w.tensors(); err != nil {
		return Stats{}, err
	}
	for _, op := range p.Plan.Ops {
		if err := ctx.Err(); err != nil {
			return Stats{}, err
		}
		if err := w.op(op); err != nil {
			return Stats{}, fmt.Errorf("operator %q: %w", op.Node.Name, err)
		}
	}
	if len(w.rows) > 0 {
		if err := ops.Install(m); err != nil {
			return Stats{}, err
		}
	}
	m.Graph.Nodes = append(m.Graph.Nodes, w.added...)
	w.keepFloat()
	w.outputs()
	if !p.Plan.Config.Lowered() { // else Lower does
		KeepBiases(m)
	}
	if err := m.Graph.Sort(); err != nil {
		return Stats{}, err
	}
	m.Graph.Prune()
	return Stats{Changed: len(p.Plan.Ops), Note: fmt.Sprintf("%d operators, %d activations, %d weights%s", len(p.Plan.Ops), len(w.dq)+len(w.rows), len(w.weights), w.methods)}, nil
}

type weightKey struct {
	name, smooth string // smooth is the activation whose smoothing the weight carries
	axis         int
	bias         string // the bias that the scales were raised for, see fitBias
}

type inserter struct {
	*Insert
	m       *graph.Model
	g       *graph.Graph
	ix      *graph.Index
	added   []*graph.Node
	rows    map[string][]string  // activation -> outputs of its QuantizeRows
	dq      map[string]string    // activation -> name of its dequantized copy
	tag     string               // between a name and its suffix, see freeTag
	methods methodCount          // of weights
	weights map[weightKey]string // -> base name of NAME_quantized / NAME_scale / NAME_dequantized
	// operands maps constants of Chain operators to such names.
	operands map[string]string
}

// freeTag returns "" when no name that Insert may make is in use, or the first
// of "_1", "_2", ... that makes them free: hostile and generated models do have
// values called x and x_scale.
func (w *inserter) freeTag() string {
	used := map[string]bool{}
	for _, v := range w.g.Inputs {
		used[v.Name] = true
	}
	for _, name := range w.g.Inits() {
		used[name] = true
	}
	for _, n := range w.g.Nodes {
		for _, o := range n.Outputs {
			used[o] = true
		}
	}
	suffixes := []string{"_quantized", "_dequantized", "_scale", "_zero_point", "_smooth", "_smoothed", "_weight_zero_point",
		"_rows_quantized", "_rows_scale", "_rows_zero_point", "_sum", "_channels_scale", "_channels_zero_point", "_channels_dequantized"}
	taken := func(tag string) bool {
		for _, op := range w.Plan.Ops {
			bases := append([]string{op.W, op.Bias, op.Const, op.Out}, op.X...)
			if op.Kind == Recurrent {
				bases = append(bases, op.Node.In(lstmWeight), op.Node.In(lstmRecurrent))
			}
			for _, base := range bases {
				for _, s := range suffixes {
					if used[base+tag+s] {
						return true
					}
				}
			}
		}
		return false
	}
	tag := ""
	for i := 1; taken(tag); i++ {
		tag = fmt.Sprintf("_%d", i)
	}
	return tag
}

func (w *inserter) node(domain, op, name string, in, out []string) *graph.Node {
	n := graph.NewNode(domain, op, name, in, out)
	w.added = append(w.added, n)
	return n
}

// domain returns where Q/DQ with an axis live: the standard operators since
// opset 13, com.microsoft's of the same meaning before.
func (w *inserter) domain() string {
	if w.m.Opset() >= perAxisOpset {
		return graph.DomainONNX
	}
	w.m.Require(graph.DomainMS, 1)
	return graph.DomainMS
}

// tensors adds the quantized copies of all activations and points readers at them.
func (w *inserter) tensors() error {
	planned := map[*graph.Node]*Op{}
	for _, op := range w.Plan.Ops {
		planned[op.Node] = op
	}
	// A tensor made by a convolution or chain operator must be read through its
	// quantized copy by everybody: another reader would keep the float alive
	// and the operator in float.
	exclusive := map[string]bool{}
	for _, op := range w.Plan.Ops {
		exclusive[op.Out] = op.QuantOut
	}
	var names []string
	seen := map[string]bool{}
	for _, op := range w.Plan.Ops {
		for _, t := range op.X {
			if !seen[t] && !w.Plan.Config.byRow(op) {
				seen[t] = true
				names = append(names, t)
			}
		}
		if exclusive[op.Out] && !seen[op.Out] {
			seen[op.Out] = true
			names = append(names, op.Out)
		}
	}
	for _, t := range names {
		var out string
		var err error
		if w.Plan.Config.Scheme == INT8Dynamic {
			out, err = w.dynamic(t)
		} else {
			out, err = w.static(t)
		}
		if err != nil {
			return err
		}
		w.dq[t] = out
		for _, u := range w.ix.Uses(t) {
			op := planned[u.Node]
			if exclusive[t] || (op != nil && u.Input < len(op.X) && !w.Plan.Config.byRow(op)) {
				if w.Plan.Config.Scheme != INT8Dynamic {
					u.Node.Inputs[u.Input] = out
				}
			}
		}
	}
	return nil
}

// smoothed inserts x / s and returns its name, or x when there is no smoothing.
func (w *inserter) smoothed(x string, c *Choice) string {
	if c == nil || c.Smooth == nil {
		return x
	}
	inv := make([]float32, len(c.Smooth))
	for i, s := range c.Smooth {
		inv[i] = 1 / s
	}
	b := x + w.tag
	w.g.SetInit(b+"_smooth", tensor.From(inv, int64(len(inv))))
	w.node(graph.DomainONNX, "Mul", x+"_Smooth", []string{x, b + "_smooth"}, []string{b + "_smoothed"})
	return b + "_smoothed"
}

func (w *inserter) static(t string) (string, error) {
	c, err := w.Choices.get(w.Plan, t)
	if err != nil {
		return "", err
	}
	x := t
	if w.Plan.Source(t) == t {
		x = w.smoothed(t, c)
	}
	b := t + w.tag
	scale, zero := b+"_scale", b+"_zero_point"
	w.g.SetInit(scale, tensor.From([]float32{c.Params.Scale}))
	w.g.SetInit(zero, zeroTensor(c.Scheme.Type, c.Params.Zero))
	domain := w.actDomain()
	w.node(domain, "QuantizeLinear", t+"_QuantizeLinear", []string{x, scale, zero}, []string{b + "_quantized"})
	w.node(domain, "DequantizeLinear", t+"_DequantizeLinear", []string{b + "_quantized", scale, zero}, []string{b + "_dequantized"})
	return b + "_dequantized", nil
}

// wideOpset is the first standard opset whose QuantizeLinear gives 16 bits.
const wideOpset = 21

// actDomain is where the operators that quantize activations live: com.microsoft has
// 16 bits for models of any opset.
func (w *inserter) actDomain() string {
	if !w.Plan.Config.Wide || w.m.Opset() >= wideOpset {
		return graph.DomainONNX
	}
	w.m.Require(graph.DomainMS, 1)
	return graph.DomainMS
}

func zeroTensor(t tensor.DType, z int32) *tensor.Tensor {
	switch t {
	case tensor.Int8:
		return tensor.From([]int8{int8(z)})
	case tensor.Uint16:
		return tensor.From([]uint16{uint16(z)})
	}
	return tensor.From([]uint8{uint8(z)})
}

func (w *inserter) dynamic(t string) (string, error) {
	x := w.smoothed(t, w.Choices[t])
	b := t + w.tag
	w.node(graph.DomainONNX, "DynamicQuantizeLinear", t+"_DynamicQuantizeLinear", []string{x},
		[]string{b + "_quantized", b + "_scale", b + "_zero_point"})
	return t, nil
}

func (w *inserter) op(op *Op) error {
	switch op.Kind {
	case Recurrent:
		return w.recurrent(op)
	case Linear:
		if w.Plan.Config.byRow(op) {
			return w.nativeLinear(op)
		}
		if w.Plan.Config.Scheme == INT8Dynamic {
			return w.dynamicLinear(op)
		}
		base, err := w.weight(op)
		if err != nil {
			return err
		}
		op.Node.Inputs[1] = base + "_dequantized"
		if op.Node.Is("Gemm") && op.Bias != "" {
			return w.bias(op, base)
		}
	case Conv:
		base, err := w.weight(op)
		if err != nil {
			return err
		}
		op.Node.Inputs[1] = base + "_dequantized"
		if op.Bias != "" {
			return w.bias(op, base)
		}
	case Chain:
		if op.Const != "" {
			return w.operand(op)
		}
	}
	return nil
}

// dynamicLinear replaces a MatMul (and its bias Add) by MatMulIntegerToFloat
// over the activation's measured scale.
func (w *inserter) dynamicLinear(op *Op) error {
	base, err := w.weight(op)
	if err != nil {
		return err
	}
	x := op.X[0] + w.tag
	in := []string{x + "_quantized", base + "_quantized", x + "_scale", base + "_scale", x + "_zero_point"}
	if op.Bias != "" {
		in = append(in, "", op.Bias)
	}
	w.m.Require(graph.DomainMS, 1)
	drop := map[*graph.Node]bool{op.Node: true}
	if op.Add != nil {
		drop[op.Add] = true
	}
	w.g.Nodes = without(w.g.Nodes, drop)
	w.node(graph.DomainMS, "MatMulIntegerToFloat", op.Node.Name, in, []string{op.Out})
	return nil
}

func without(nodes []*graph.Node, drop map[*graph.Node]bool) []*graph.Node {
	kept := nodes[:0]
	for _, n := range nodes {
		if !drop[n] {
			kept = append(kept, n)
		}
	}
	return kept
}

// weight quantizes op's weight once for each way it is used (tied weights share
// one copy) and returns the base of the names it added.
func (w *inserter) weight(op *Op) (string, error) {
	key := weightKey{name: op.W, axis: op.OutAxis}
	var smooth []float32
	if op.Kind == Linear {
		if c := w.Choices[w.Plan.Source(op.X[0])]; c != nil && c.Smooth != nil {
			smooth, key.smooth = c.Smooth, op.X[0]
		}
	}
	if base, ok := w.weights[key]; ok && w.biasFits(op, base) {
		return base, nil
	}
	t := w.g.Init(op.W)
	vals, err := t.F32()
	if err != nil {
		return "", err
	}
	if smooth != nil {
		vals = scaleInputs(vals, t.Dims, op.InAxis, smooth)
	}
	q, by, err := w.Plan.Config.weight8(w.Solved, op, vals, t.Dims)
	if err != nil {
		return "", err
	}
	if w.fitBias(op, q, vals) {
		key.bias = op.Bias
		if base, ok := w.weights[key]; ok && w.biasFits(op, base) {
			return base, nil
		}
	}
	base := w.freeBase(op.W)
	w.weights[key] = base
	w.methods[by]++
	w.g.SetInit(base+"_quantized", q.Tensor())
	if w.Plan.Config.byRow(op) {
		return base, w.nativeWeight(base, q)
	}
	w.g.SetInit(base+"_scale", q.ScaleTensor())
	if w.Plan.Config.Scheme != INT8Dynamic {
		in := []string{base + "_quantized", base + "_scale", base + "_weight_zero_point"}
		zeros := &tensor.Tensor{Type: tensor.Int8, Dims: w.g.Init(base + "_scale").Dims, Data: make([]byte, len(q.Scales))}
		w.g.SetInit(in[2], zeros)
		n := w.node(w.weightDomain(q), "DequantizeLinear", base+"_DequantizeLinear", in, []string{base + "_dequantized"})
		if len(q.Scales) > 1 {
			n.Attrs = append(n.Attrs, graph.AttrInt("axis", int64(op.OutAxis)))
		}
	}
	return base, nil
}

// freeBase returns name with the tag, and a number when an earlier operator
// has quantized the same initializer differently.
func (w *inserter) freeBase(name string) string {
	base := name + w.tag
	for i := 1; w.g.Init(base+"_quantized") != nil; i++ {
		base = fmt.Sprintf("%s%s_copy%d", name, w.tag, i)
	}
	return base
}

func (w *inserter) weightDomain(q *Weight) string {
	if len(q.Scales) == 1 {
		return graph.DomainONNX
	}
	return w.domain()
}

// scaleInputs multiplies the weight's input channels by s (a 2-D weight).
func scaleInputs(w []float32, dims []int64, inAxis int, s []float32) []float32 {
	out := make([]float32, len(w))
	cols := int(dims[1])
	parallel(int(dims[0]), cols, func(from, to int) {
		for r := from; r < to; r++ {
			row := out[r*cols : (r+1)*cols]
			for c, v := range w[r*cols : (r+1)*cols] {
				k := r
				if inAxis == 1 {
					k = c
				}
				row[c] = v * s[k]
			}
		}
	})
	return out
}

// bias quantizes a bias to INT32 with scale = input scale * weight scale, so
// that it adds to the accumulators as it is (Jacob et al. 2018, section 2.4).
func (w *inserter) bias(op *Op, base string) error {
	c, err := w.Choices.get(w.Plan, op.X[0])
	if err != nil {
		return err
	}
	b, err := w.g.Init(op.Bias).F32()
	if err != nil {
		return err
	}
	ws, err := w.g.Init(base + "_scale").F32()
	if err != nil {
		return err
	}
	codes := make([]int32, len(b))
	scales := make([]float32, len(ws))
	for i := range ws {
		scales[i] = c.Params.Scale * ws[i]
	}
	for i, v := range b {
		codes[i] = biasCode(v, scales[min(i, len(scales)-1)])
	}
	name := w.freeBase(op.Bias) // a bias shared by two operators has two scales
	w.Biases[op.Bias] = name
	w.g.SetInit(name+"_quantized", tensor.From(codes, int64(len(codes))))
	if len(scales) == 1 {
		w.g.SetInit(name+"_scale", tensor.From(scales))
	} else {
		w.g.SetInit(name+"_scale", tensor.From(scales, int64(len(scales))))
	}
	domain := graph.DomainONNX
	if len(scales) > 1 {
		domain = w.domain()
	}
	n := w.node(domain, "DequantizeLinear", name+"_DequantizeLinear", []string{name + "_quantized", name + "_scale"}, []string{name + "_dequantized"})
	if len(scales) > 1 {
		n.Attrs = append(n.Attrs, graph.AttrInt("axis", 0))
	}
	op.Node.Inputs[2] = name + "_dequantized"
	return nil
}

// Rebias replaces the INT32 codes of the bias called name, in the graph that
// Run has written, by those of new values.
func (p *Insert) Rebias(g *graph.Graph, name string, values []float32) {
	name = p.Biases[name]
	st := g.Init(name + "_scale")
	if st == nil || g.Init(name+"_quantized") == nil {
		return
	}
	scales := tensor.View[float32](st)
	codes := make([]int32, len(values))
	for i, v := range values {
		codes[i] = biasCode(v, scales[min(i, len(scales)-1)])
	}
	g.SetInit(name+"_quantized", tensor.From(codes, int64(len(codes))))
}

// fitBias raises the scales of channels whose weights are so small beside their
// bias that the bias would not fit into INT32 (a dead channel after batch
// normalization was folded: weights 0, bias not), and quantizes those channels
// anew. It reports whether it raised any. What such weights lose is below
// 2^-30 of the bias for each code of the input.
func (w *inserter) fitBias(op *Op, q *Weight, vals []float32) bool {
	raised := map[int]bool{}
	for i, need := range w.leastScales(op, len(q.Scales)) {
		if need > q.Scales[i] {
			q.Scales[i] = need
			raised[i] = true
		}
	}
	if len(raised) == 0 {
		return false
	}
	_, top := w.Plan.Config.weightScheme().Codes()
	q.each(func(i, ch int) {
		if _, ok := raised[ch]; ok { // the codes of the others may have been solved for
			q.Codes[i] = roundCode(float64(vals[i])/float64(q.Scales[ch]), top)
		}
	})
	return true
}

// leastScales returns the scales, of n for the weight of op, below which its bias would
// not fit into INT32; nil when it has none in INT32.
func (w *inserter) leastScales(op *Op, n int) []float32 {
	c := w.Choices[w.Plan.Source(op.X[0])]
	if op.Bias == "" || c == nil || (op.Kind != Conv && !op.Node.Is("Gemm")) {
		return nil
	}
	b, err := w.g.Init(op.Bias).F32()
	if err != nil {
		return nil
	}
	least := make([]float32, n)
	for i, v := range b {
		i = min(i, n-1)
		least[i] = max(least[i], float32(math.Abs(float64(v))/(float64(c.Params.Scale)*biasCodes)))
	}
	return least
}

// biasFits reports whether the bias of op fits beside the weight called base, which was
// quantized for another operator.
func (w *inserter) biasFits(op *Op, base string) bool {
	t := w.g.Init(base + "_scale")
	if t == nil || t.Type != tensor.Float32 {
		return true
	}
	scales := tensor.View[float32](t)
	for i, least := range w.leastScales(op, len(scales)) {
		if least > scales[i] {
			return false
		}
	}
	return true
}

// biasCodes is the largest INT32 code that a bias may get: half the range,
// so that the accumulated products still fit beside it.
const biasCodes = 1 << 30

// biasCode rounds half to even; the bounds guard against biases that a pass
// changed after the scales were fixed.
func biasCode(v, scale float32) int32 {
	r := math.RoundToEven(float64(v) / float64(scale))
	return int32(max(min(r, math.MaxInt32), math.MinInt32))
}

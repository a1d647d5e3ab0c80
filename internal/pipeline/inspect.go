package pipeline

import (
	"context"
	"fmt"
	"path/filepath"
	"sort"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
)

// Inspection describes a model file and what quantizing it would change.
type Inspection struct {
	Model   report.Model     `json:"model"`
	IR      int64            `json:"ir_version"`
	Opsets  map[string]int64 `json:"opsets"` // "ai.onnx": 17, "com.microsoft": 1
	Inputs  []ValueInfo      `json:"inputs"`
	Outputs []ValueInfo      `json:"outputs"`
	// Operators counts the nodes by type, most first.
	Operators []OperatorCount `json:"operators"`
	// Quantized names the operator that shows the model to be quantized
	// already; "" for a float model.
	Quantized string            `json:"quantized,omitempty"`
	Metadata  map[string]string `json:"metadata,omitempty"`
	// Plan lists every operator with multiply-accumulates: for a float model
	// what would run in integers, for a quantized one what does.
	Plan    []report.Operator `json:"plan"`
	Integer report.Integer    `json:"integer"`
	// Nothing says why no operator can be quantized, when none can.
	Nothing string `json:"nothing_to_quantize,omitempty"`
}

// ValueInfo describes an input or output. Dims holds sizes, symbolic names,
// and "?" where a dimension is not even named; it is null for an unknown rank.
type ValueInfo struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Dims []any  `json:"dims"`
}

// OperatorCount is how often one type of operator occurs.
type OperatorCount struct {
	Op    string `json:"op"` // domain-qualified outside the standard domain
	Count int    `json:"count"`
}

// Inspect reads the model at path and plans its quantization by c without
// running anything.
func Inspect(ctx context.Context, path string, c quant.Config) (*Inspection, error) {
	c, err := c.WithDefaults()
	if err != nil {
		return nil, err
	}
	m, err := graph.Open(path)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	sum, err := fileSHA256(ctx, path)
	if err != nil {
		return nil, err
	}
	in := &Inspection{
		Model: modelFacts(m, filepath.Base(path)), IR: m.IR, Opsets: map[string]int64{}, Quantized: m.Quantized(),
		Metadata: m.Metadata, Inputs: valueInfos(m.Graph.Inputs), Outputs: valueInfos(m.Graph.Outputs), Operators: countOperators(m),
	}
	in.Model.SHA256 = sum
	for d, v := range m.Opsets {
		in.Opsets[domainName(d)] = v
	}
	if in.Quantized != "" {
		graph.InferShapes(m)
		in.Plan = integerWork(m, typicalShapes(m))
	} else if err := in.plan(ctx, m, c); err != nil {
		return nil, err
	}
	in.Integer = report.CountMACs(in.Plan)
	return in, nil
}

func (in *Inspection) plan(ctx context.Context, m *graph.Model, c quant.Config) error {
	if _, err := quant.Run(ctx, m, quant.Prepare(c), quant.Dump{}); err != nil {
		return err
	}
	if c.Scheme.HalfWeights() {
		in.Nothing = "scheme " + string(c.Scheme) + " stores weights in 16 bits; nothing runs in integers"
		in.Plan = integerWork(m, typicalShapes(m))
		return nil
	}
	p, err := quant.NewPlan(m, c)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// A model without work for integers is a finding, not a failure.
		in.Nothing = entered(err.Error())
		in.Plan = integerWork(m, typicalShapes(m))
		return nil
	}
	for _, w := range p.Cover(m, typicalShapes(m)) {
		op := operatorFacts(w.Node, w.MACs, w.Integer, entered(w.Rule))
		if w.Integer && c.Scheme == quant.INT4 {
			op.Precision = "int4"
		}
		in.Plan = append(in.Plan, op)
	}
	return nil
}

// entered words the rule of an operator in a body for who looks at the model alone.
func entered(rule string) string {
	if of, ok := strings.CutSuffix(rule, quant.Unobserved); ok {
		return of + ": quantize, which has data, looks inside"
	}
	return rule
}

func operatorFacts(n *graph.Node, macs int64, integer bool, rule string) report.Operator {
	op := report.Operator{Name: operatorName(n), Op: n.Op, Precision: "fp32", Integer: integer, Rule: rule, MACs: macs, SQNR: report.Num(nan), Cosine: report.Num(nan)}
	if integer {
		op.Precision = "int8"
	}
	return op
}

// operatorName is what reports call a node: its name, or its first output where it has none.
func operatorName(n *graph.Node) string {
	if n.Name == "" && len(n.Outputs) > 0 {
		return n.Outputs[0]
	}
	return n.Name
}

// integerOps multiply integers by definition.
var integerOps = map[string]bool{
	"QLinearConv": true, "QLinearMatMul": true, "MatMulInteger": true, "ConvInteger": true, "MatMulIntegerToFloat": true,
	"DynamicQuantizeMatMul": true, "QGemm": true, "QAttention": true, "MatMulQuantized": true,
	"DynamicQuantizeLSTM": true,
}

// fusedToInteger are the float operators that engines run in integers when
// both their operands come from DequantizeLinear.
var fusedToInteger = map[string]bool{"MatMul": true, "Gemm": true, "Conv": true}

// accuracyInt8 is the accuracy_level at which MatMulNBits quantizes its
// activation and multiplies integers.
const accuracyInt8 = 4

// integerWork lists the operators with multiply-accumulates of a model as it
// stands, the largest first: integer operators, float ones between Q/DQ, and
// the rest.
func integerWork(m *graph.Model, shapes map[string][]int64) []report.Operator {
	ix := m.Graph.Index()
	dequantized := func(v string) bool {
		p := ix.Producer(v)
		return p != nil && p.Op == "DequantizeLinear"
	}
	macs, scores := graph.MACsApart(m, bindings(shapes))
	var out []report.Operator
	for _, n := range m.Graph.Nodes {
		if macs[n] == 0 && !integerOps[n.Op] {
			continue
		}
		switch {
		case integerOps[n.Op]:
			op := operatorFacts(n, macs[n], true, "")
			if inFloat := scores[n]; inFloat > 0 { // QAttention has integers for its projections only
				op.MACs -= inFloat
				rest := operatorFacts(n, inFloat, false, "attention scores and their product with V stay in float (softmax needs the range)")
				rest.Name += " (scores)"
				out = append(out, rest)
			}
			if w := ix.Producer(n.In(3)); w != nil && w.Op == ops.OpExpandBlocks {
				op.Precision = "int4"
			}
			out = append(out, op)
		case fusedToInteger[n.Op] && dequantized(n.In(0)) && dequantized(n.In(1)):
			out = append(out, operatorFacts(n, macs[n], true, ""))
		case n.Op == "MatMulNBits":
			integer := n.Int("accuracy_level", 0) == accuracyInt8
			op := operatorFacts(n, macs[n], integer, "")
			if !integer {
				op.Rule = "its weights are unpacked and multiplied in float (accuracy_level is not 4)"
			}
			op.Precision = fmt.Sprintf("int%d", n.Int("bits", 4))
			out = append(out, op)
		default:
			out = append(out, operatorFacts(n, macs[n], false, "its operands are float"))
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].MACs > out[j].MACs })
	return out
}

func valueInfos(vs []*graph.Value) []ValueInfo {
	out := make([]ValueInfo, len(vs))
	for i, v := range vs {
		out[i] = ValueInfo{Name: v.Name, Type: v.Type.String()}
		if v.Dims != nil {
			out[i].Dims = make([]any, 0, len(v.Dims))
		}
		for _, d := range v.Dims {
			switch {
			case d.N >= 0:
				out[i].Dims = append(out[i].Dims, d.N)
			case d.Name != "":
				out[i].Dims = append(out[i].Dims, d.Name)
			default:
				out[i].Dims = append(out[i].Dims, "?")
			}
		}
	}
	return out
}

func countOperators(m *graph.Model) []OperatorCount {
	count := map[string]int{}
	for _, n := range m.Graph.Nodes {
		op := n.Op
		if n.Domain != graph.DomainONNX {
			op = n.Domain + "." + op
		}
		count[op]++
	}
	out := make([]OperatorCount, 0, len(count))
	for op, n := range count {
		out = append(out, OperatorCount{op, n})
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Count != out[j].Count {
			return out[i].Count > out[j].Count
		}
		return out[i].Op < out[j].Op
	})
	return out
}

func domainName(d string) string {
	if d == graph.DomainONNX {
		return "ai.onnx"
	}
	return d
}

// typicalShapes gives every input the shape that a synthetic input of one
// sample would have.
func typicalShapes(m *graph.Model) map[string][]int64 {
	shapes := map[string][]int64{}
	for _, in := range SpecOf(m).Inputs {
		if in.Dims != nil {
			shapes[in.Name] = (Shape{}).of(in)
		}
	}
	return shapes
}

// bindings is shapes by input in the form of graph.MACs.
func bindings(shapes map[string][]int64) map[string]int64 {
	bind := map[string]int64{}
	for name, dims := range shapes {
		for i, n := range dims {
			bind[fmt.Sprintf("%s[%d]", name, i)] = n
		}
	}
	return bind
}

// Summary returns a line such as "12 MatMul, 4 Conv" of the most frequent
// operators, at most n of them.
func (in *Inspection) Summary(n int) string {
	parts := make([]string, 0, n+1)
	for i, o := range in.Operators {
		if i == n {
			parts = append(parts, fmt.Sprintf("%d more types", len(in.Operators)-n))
			break
		}
		parts = append(parts, fmt.Sprintf("%d %s", o.Count, o.Op))
	}
	return strings.Join(parts, ", ")
}

// PassNames lists the passes that a quantization by c, which has its defaults,
// may run, in order.
func PassNames(c quant.Config) []string {
	table := quant.Prepare(c)
	if c.Equalize {
		table = append(table, &equalizePass{}, &absorbPass{})
	}
	plan := &quant.Plan{Config: c}
	var solve []quant.Pass
	switch plan.Solves() {
	case "":
	case quant.AWQ:
		solve = append(solve, &awqPass{})
	default:
		solve = append(solve, &weightsPass{plan: plan})
	}
	switch {
	case c.Scheme.HalfWeights():
		table = append(table, quant.Half{BF16: c.Scheme == quant.BF16})
	case c.Scheme == quant.INT4:
		if c.Steps() && plan.Solves() != quant.AWQ {
			table = append(table, &quant.Ranges{})
		}
		table = append(append(table, solve...), quant.Embeddings{}, &quant.BlockWeights{})
	case c.Scheme.Static():
		table = append(append(append(table, &quant.Ranges{}, &autoPass{}), solve...), &biasPass{}, quant.Embeddings{}, &quant.Insert{})
		if c.Lowered() {
			table = append(table, quant.Lower{})
		}
	default:
		table = append(append(append(table, &quant.Ranges{}), solve...), quant.Embeddings{}, &quant.Insert{})
	}
	if c.Target == quant.ORTCPU && (c.Scheme == quant.INT8 || c.Scheme == quant.INT8Dynamic) {
		table = append(table, quant.FoldDivisors{}, quant.MergeAttention{})
	}
	names := make([]string, len(table))
	for i, p := range table {
		names[i] = p.Name()
	}
	return names
}

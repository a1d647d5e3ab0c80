package pipeline

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/tensor"
)

// CompareRequest asks what a quantized model lost and gained against the float
// model it was made from. The quantized model may come from any tool.
type CompareRequest struct {
	// Float and Quant are paths of models; tokenizer.json and its like are
	// looked for beside the first.
	Float, Quant string
	Data         string
	// Samples are compared; 0 is all.
	Samples   int
	MaxTokens int
	// Output is the one that users take; "" is the first that both have.
	Output string
	// MaxLoss and SLO are those of Request: they decide the verdict.
	MaxLoss float64
	SLO     time.Duration
	// NoLatency skips the latency measurement.
	NoLatency bool
	Command   []string
}

// Compare measures fidelity per operator and at the output, the task's metric
// where there are labels, interleaved latency, size and peak memory.
func (p *Pipeline) Compare(ctx context.Context, req CompareRequest, progress Progress) (*report.Report, error) {
	progress.say("open", 0)
	c := &comparing{Pipeline: p, req: req, progress: progress, rep: &report.Report{Created: time.Now().UTC(), Command: req.Command, Machine: p.machine(ctx)}}
	var err error
	if c.float, err = graph.Open(req.Float); err != nil {
		return nil, fmt.Errorf("float model: %w", err)
	}
	defer c.float.Close()
	if c.quant, err = graph.Open(req.Quant); err != nil {
		return nil, fmt.Errorf("quantized model: %w", err)
	}
	defer c.quant.Close()
	if err := c.describe(ctx); err != nil {
		return nil, err
	}
	if err := c.operators(ctx); err != nil {
		return nil, fmt.Errorf("compare operators: %w", err)
	}
	if err := c.judge(ctx); err != nil {
		return nil, err
	}
	c.rep.Judge(false)
	return c.rep, nil
}

type comparing struct {
	*Pipeline
	req          CompareRequest
	progress     Progress
	float, quant *graph.Model
	rep          *report.Report
}

func (c *comparing) describe(ctx context.Context) error {
	for _, side := range []struct {
		m    *graph.Model
		path string
		to   *report.Model
	}{{c.float, c.req.Float, &c.rep.Model}, {c.quant, c.req.Quant, &c.rep.Quantized}} {
		sum, err := fileSHA256(ctx, side.path)
		if err != nil {
			return err
		}
		*side.to = modelFacts(side.m, filepath.Base(side.path))
		side.to.SHA256 = sum
	}
	if c.quant.Quantized() == "" {
		c.rep.Warnings = append(c.rep.Warnings, fmt.Sprintf("%s holds no quantized operator", filepath.Base(c.req.Quant)))
	}
	c.rep.Recipe = report.Recipe{Scheme: c.quant.Metadata["fewbit.scheme"], Target: c.quant.Metadata["fewbit.target"]}
	return nil
}

// work counts the quantized model's integer operators on inputs of shapes.
func (c *comparing) work(shapes map[string][]int64) {
	c.rep.Operators = integerWork(c.quant, shapes)
	c.rep.Integer = report.CountMACs(c.rep.Operators)
}

func (c *comparing) open() (data.Dataset, error) {
	ds, err := data.Open(c.req.Data, data.Options{Spec: SpecOf(c.float), ModelDir: filepath.Dir(c.req.Float), MaxTokens: c.req.MaxTokens, Samples: c.req.Samples})
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	return ds, nil
}

// operators measures the error of every operator's output that both models
// hold, on inputs that carry the error of all operators before it.
func (c *comparing) operators(ctx context.Context) error {
	tapped, pairs := pairOperators(c.float, c.quant)
	if len(pairs) == 0 {
		c.rep.Warnings = append(c.rep.Warnings, "the models share no inner tensor: no error by operator")
		c.work(typicalShapes(c.quant))
		return nil
	}
	lab, err := NewLab(c.Engine, c.Threads, c.Scratch)
	if err != nil {
		return err
	}
	defer lab.Close()
	taps := make([]eval.Tap, len(pairs))
	var refs, quants []string
	for i, p := range pairs {
		taps[i] = eval.Tap{Name: p.op.Outputs[0], Ref: p.ref, Quant: p.quant}
		refs, quants = append(refs, p.ref), append(quants, p.quant)
	}
	ref, err := lab.Open(ctx, c.float, refs, engine.Options{})
	if err != nil {
		return err
	}
	defer ref.Close()
	q, err := lab.Open(ctx, tapped, quants, engine.Options{})
	if err != nil {
		return err
	}
	defer q.Close()
	ds, err := c.open()
	if err != nil {
		return err
	}
	defer ds.Close()
	seen := &sizing{Dataset: ds}
	res, err := eval.Compare(ctx, ref, q, seen, eval.Options{Taps: taps, MaxSamples: operatorSamples, Output: c.output(),
		Progress: func(done int) {
			c.progress.say("compare operators", float64(done)/float64(min(max(ds.Len(), done), operatorSamples)))
		}})
	if err != nil {
		return err
	}
	c.work(seen.mean())
	at := map[string]eval.TensorFidelity{}
	for _, t := range res.Tensors {
		at[t.Name] = t
	}
	for _, p := range pairs {
		t, ok := at[p.op.Outputs[0]]
		if !ok {
			continue
		}
		name := operatorName(p.by)
		for i := range c.rep.Operators {
			if o := &c.rep.Operators[i]; o.Name == name && o.Op == p.by.Op {
				o.SQNR, o.Cosine = report.Num(t.SQNR), report.Num(t.Cosine)
			}
		}
	}
	return nil
}

// output names the output that is judged: what is asked for, or else the first that both
// models have, which is among the taps where a product gives it. "" leaves them in pairs by
// position.
func (c *comparing) output() string {
	if c.req.Output != "" {
		return c.req.Output
	}
	for _, v := range c.float.Graph.Outputs {
		if v.Type != tensor.String && slices.ContainsFunc(c.quant.Graph.Outputs, func(q *graph.Value) bool { return q.Name == v.Name }) {
			return v.Name
		}
	}
	return ""
}

// sizing notes the mean shapes of the samples that pass.
type sizing struct {
	data.Dataset
	sums map[string][]int64
	n    int64
}

func (s *sizing) Next(ctx context.Context) (data.Sample, error) {
	x, err := s.Dataset.Next(ctx)
	if err != nil {
		return x, err
	}
	if s.sums == nil {
		s.sums = map[string][]int64{}
	}
	s.n++
	for name, t := range x.Feeds {
		if s.sums[name] == nil {
			s.sums[name] = make([]int64, len(t.Dims))
		}
		for i, d := range t.Dims {
			if i < len(s.sums[name]) {
				s.sums[name][i] += d
			}
		}
	}
	return x, nil
}

func (s *sizing) mean() map[string][]int64 {
	for _, dims := range s.sums {
		for i := range dims {
			dims[i] = max(1, dims[i]/max(s.n, 1))
		}
	}
	return s.sums
}

// pair is one operator of the float model and its twin: tensor ref of the
// float model and tensor quant of the quantized one are to be equal.
type pair struct {
	op, by     *graph.Node // in the float and in the quantized model
	ref, quant string
}

// maxSteps is how many absorbed nodes may lie between an operator and the
// tensor that the quantized model still has.
const maxSteps = 3

// absorbed are the operators that quantization folds into the product before
// them. A Mul is a scale of channels (graph.FoldChannelScales).
var absorbed = map[string]bool{"Add": true, "Mul": true, "BatchNormalization": true, "Relu": true, "Clip": true}

// pairOperators matches the operators with multiply-accumulates of the two
// models by the names of their outputs. It returns a view of the quantized
// model in which tensors that exist only as codes have a dequantized copy.
func pairOperators(f, q *graph.Model) (*graph.Model, []pair) {
	fx, qx := f.Graph.Index(), q.Graph.Index()
	view := *q
	g := *q.Graph
	g.Nodes = append([]*graph.Node(nil), q.Graph.Nodes...)
	view.Graph = &g
	t := tapper{view: &view, ix: qx}
	macs := graph.MACs(f, bindings(typicalShapes(f)))
	var pairs []pair
	taken := map[string]bool{}
	for _, n := range f.Graph.Nodes {
		if macs[n] == 0 || len(n.Outputs) == 0 || n.Outputs[0] == "" {
			continue
		}
		// The value after what the quantized operator absorbed, if it gives
		// codes; else the operator's own.
		values := []string{n.Outputs[0]}
		for step := 0; step < maxSteps; step++ {
			next := fx.Only(values[step])
			if next == nil || len(next.Outputs) != 1 || !absorbed[next.Op] {
				break
			}
			values = append(values, next.Outputs[0])
		}
	search:
		for _, find := range []func(string, bool) (*graph.Node, string){t.codes, t.plain, t.requantized} {
			for _, v := range values {
				if taken[v] {
					continue
				}
				if by, name := find(v, n.Op == "Conv"); by != nil {
					taken[v] = true
					pairs = append(pairs, pair{op: n, by: by, ref: v, quant: name})
					break search
				}
			}
		}
	}
	return &view, pairs
}

type tapper struct {
	view *graph.Model
	ix   *graph.Index
}

// dequantizedNames are what tools call the dequantized copy of a tensor and
// codeNames what they call its codes (fewbit, onnxruntime.quantization).
var (
	dequantizedNames = []string{"_dequantized", "_channels_dequantized", "_DequantizeLinear_Output", "_output_quantized_DequantizeLinear_Output"}
	codeNames        = []string{"_quantized", "_QuantizeLinear_Output", "_output_quantized"}
)

// outputParams are the positions of the output's scale and zero point among
// the inputs of operators that give codes.
var outputParams = map[string][2]int{
	"QLinearConv": {6, 7}, "QLinearMatMul": {6, 7}, "QGemm": {7, 8}, "QLinearAdd": {6, 7}, "QLinearMul": {6, 7},
}

// codes looks for v where only its codes exist: it returns the operator that
// makes them and the name under which the real values can be read. A
// convolution before a quantizer counts: engines fuse the two.
func (t *tapper) codes(v string, conv bool) (*graph.Node, string) {
	for _, suffix := range dequantizedNames {
		if dq := t.ix.Producer(v + suffix); dq != nil && dq.Op == "DequantizeLinear" {
			if p := t.ix.Producer(dq.In(0)); p != nil && integerOps[p.Op] {
				return p, v + suffix
			}
		}
	}
	for _, suffix := range append([]string{""}, codeNames...) {
		p := t.ix.Producer(v + suffix)
		if p == nil {
			continue
		}
		if at, ok := outputParams[p.Op]; ok && p.In(at[0]) != "" && p.In(at[1]) != "" {
			name := v + "_fewbit_tap"
			t.view.Graph.Nodes = append(t.view.Graph.Nodes, graph.NewNode("", "DequantizeLinear", name, []string{v + suffix, p.In(at[0]), p.In(at[1])}, []string{name}))
			return p, name
		}
	}
	if conv {
		return t.requantized(v, conv)
	}
	return nil, ""
}

// plain looks for v as a float tensor of the same name.
func (t *tapper) plain(v string, _ bool) (*graph.Node, string) {
	p := t.ix.Producer(v)
	if p == nil || p.Op == "QuantizeLinear" {
		return nil, ""
	}
	if at, ok := outputParams[p.Op]; ok && p.In(at[0]) != "" {
		return nil, "" // codes
	}
	return t.behind(p), v
}

// requantized looks for v behind a quantizer and its inverse.
func (t *tapper) requantized(v string, _ bool) (*graph.Node, string) {
	for _, suffix := range dequantizedNames {
		dq := t.ix.Producer(v + suffix)
		if dq == nil || dq.Op != "DequantizeLinear" {
			continue
		}
		// With smoothing it is v divided by a vector that is quantized.
		if q := t.ix.Producer(dq.In(0)); q != nil && q.Op == "QuantizeLinear" && q.In(0) == v && t.ix.Producer(v) != nil {
			return t.behind(t.ix.Producer(v)), v + suffix
		}
	}
	return nil, ""
}

// behind returns the product whose bias or activation n applies, or n.
func (t *tapper) behind(n *graph.Node) *graph.Node {
	for p, step := n, 0; p != nil && step <= maxSteps; step++ {
		if integerOps[p.Op] || fusedToInteger[p.Op] {
			return p
		}
		if !absorbed[p.Op] {
			break
		}
		in := p.In(0)
		if t.view.Graph.Init(in) != nil {
			in = p.In(1)
		}
		p = t.ix.Producer(in)
	}
	return n
}

func (c *comparing) judge(ctx context.Context) error {
	ref, err := c.Engine.OpenFile(ctx, c.req.Float, engine.Options{Threads: c.Threads})
	if err != nil {
		return fmt.Errorf("float model: %w", err)
	}
	defer ref.Close()
	q, err := c.Engine.OpenFile(ctx, c.req.Quant, engine.Options{Threads: c.Threads})
	if err == nil {
		c.rep.Warnings = append(c.rep.Warnings, hampered(c.req.Quant, q)...)
	}
	if err != nil {
		return fmt.Errorf("quantized model: %w", err)
	}
	defer q.Close()
	ds, err := c.open()
	if err != nil {
		return err
	}
	defer ds.Close()
	if !ds.Labelled() {
		c.rep.Warnings = append(c.rep.Warnings, "the data has no labels: judged by fidelity to the float model")
	}
	o := eval.Options{Output: c.req.Output, Progress: evalProgress(ds, c.progress)}
	if !c.req.NoLatency {
		o.Latency = &eval.InterleaveOptions{Warmup: 3, MinTime: minLatencyTime, MaxTime: maxLatencyTime}
	}
	res, err := eval.Compare(ctx, ref, q, ds, o)
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	c.rep.Evaluation = res
	c.rep.Warnings = append(c.rep.Warnings, res.Warnings...)
	r := run{Pipeline: c.Pipeline, req: Request{Model: c.req.Float, MaxLoss: c.req.MaxLoss, SLO: c.req.SLO}, rep: c.rep, progress: c.progress}
	c.rep.Gate = r.gate(ds.Labelled() && res.Difference != nil)
	fp32 := r.beginPeak(ctx, c.req.Float)
	defer fp32.end()
	return r.peaks(ctx, c.req.Quant, fp32, nil)
}

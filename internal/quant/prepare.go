package quant

import (
	"context"
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Prepare returns the passes that bring an exported model into the form that
// planning expects. None changes what the model computes beyond float rounding.
func Prepare(c Config) []Pass {
	count := func(name, unit string, f func(*graph.Model) int) Pass {
		return passFunc{name, func(_ context.Context, m *graph.Model) (Stats, error) {
			n := f(m)
			return Stats{Changed: n, Note: fmt.Sprintf("%d %s", n, unit)}, nil
		}}
	}
	table := []Pass{
		count("lift-constants", "constants lifted", graph.LiftConstants),
		count("fold-constants", "nodes folded", graph.FoldConstants),
		count("drop-identities", "identities dropped", graph.DropIdentities),
		count("fold-batchnorm", "batch normalizations folded", graph.FoldBatchNorm),
		count("fold-channel-scales", "scales of channels folded", graph.FoldChannelScales),
	}
	if c.Target.Encoder() {
		table = append(table, count("gemm-to-matmul", "Gemms rewritten", gemmToMatMul), count("expand-fused", "fused operators expanded", expandFused))
	}
	table = append(table, count("own-biases", "biases separated or added", ownBiases), count("infer-shapes", "", func(m *graph.Model) int {
		graph.InferShapes(m)
		return 0
	}))
	if c.Target.Encoder() {
		table = append(table, FuseAttention{})
	}
	if c.onCodes() {
		table = append(table, count("split-to-slices", "Splits rewritten", func(m *graph.Model) int {
			return graph.SplitToSlices(m, func(n *graph.Node) bool {
				return slices.Contains(c.Exclude, n.Name) || slices.Contains(c.Exclude, n.Op)
			})
		}))
	}
	if c.Ports {
		table = append(table, count("own-outputs", "outputs set apart", ownOutputs))
	}
	return table
}

// gemmToMatMul rewrites Gemm with a constant weight as MatMul and Add, the form
// that MatMulIntegerToFloat takes with its bias in float: on 2-D inputs both
// are the same product.
func gemmToMatMul(m *graph.Model) int {
	g := m.Graph
	ix := g.Index()
	names, nodeNames := g.Namer(), g.NodeNamer()
	var nodes []*graph.Node
	count := 0
	for _, n := range g.Nodes {
		w := g.Init(n.In(1))
		bias := g.Init(n.In(2))
		plain := n.Is("Gemm") && w != nil && w.Type == tensor.Float32 && len(w.Dims) == 2 && g.Init(n.In(0)) == nil &&
			n.Int("transA", 0) == 0 && n.Float("alpha", 1) == 1 && (n.In(2) == "" || n.Float("beta", 1) == 1)
		if plain && n.In(2) != "" {
			plain = bias != nil && bias.Type == tensor.Float32 && trailingVector(bias.Dims)
		}
		if !plain {
			nodes = append(nodes, n)
			continue
		}
		count++
		wname := n.In(1)
		if n.Int("transB", 0) != 0 {
			v, err := w.F32()
			if err != nil {
				nodes = append(nodes, n)
				continue
			}
			r, c := int(w.Dims[0]), int(w.Dims[1])
			// In place of the original when nobody else reads it, so that the
			// names in the report stay those of the model.
			if len(ix.Uses(wname)) > 1 || ix.Captured(wname) || ix.IsOutput(wname) {
				wname = names.Name(n.Outputs[0] + "_weight")
			}
			g.SetInit(wname, tensor.From(transpose2D(v, r, c), int64(c), int64(r)))
		}
		out := n.Outputs[0]
		if n.In(2) == "" {
			nodes = append(nodes, graph.NewNode("", "MatMul", n.Name, []string{n.In(0), wname}, []string{out}))
			continue
		}
		bname := n.In(2)
		if len(bias.Dims) > 1 {
			bname = names.Name(out + "_bias")
			g.SetInit(bname, &tensor.Tensor{Type: bias.Type, Dims: []int64{bias.Len()}, Data: bias.Data})
		}
		product := names.Name(out + "_product")
		nodes = append(nodes,
			graph.NewNode("", "MatMul", n.Name, []string{n.In(0), wname}, []string{product}),
			graph.NewNode("", "Add", nodeNames.After(n, "_Add"), []string{product, bname}, []string{out}))
	}
	g.Nodes = nodes
	g.Prune()
	return count
}

// ownBiases gives every convolution with a constant weight a bias of its own:
// its INT32 scale depends on the convolution's input and weights, and bias
// correction needs one to correct.
func ownBiases(m *graph.Model) int {
	g := m.Graph
	ix := g.Index()
	names := g.Namer()
	count := 0
	for _, n := range g.Nodes {
		w := g.Init(n.In(1))
		if !n.Is("Conv") || w == nil || w.Type != tensor.Float32 || len(w.Dims) < 3 || w.Dims[0] == 0 {
			continue
		}
		base := n.Outputs[0] + "_bias"
		switch b := g.Init(n.In(2)); {
		case n.In(2) == "":
			name := names.Name(base)
			g.SetInit(name, tensor.From(make([]float32, w.Dims[0]), w.Dims[0]))
			n.Inputs = append(n.Inputs[:2:2], name)
			count++
		case b != nil && (len(ix.Uses(n.In(2))) > 1 || ix.Captured(n.In(2)) || ix.IsOutput(n.In(2))):
			name := names.Name(base)
			g.SetInit(name, b)
			n.Inputs[2] = name
			count++
		}
	}
	return count
}

// minTableRows is the size from which a lookup table is worth storing in INT8.
const minTableRows = 1024

// Embeddings is the pass that stores large float lookup tables (Gather on axis
// 0) as INT8 with one scale a row: rows are looked up as codes and multiplied
// by their scale afterwards, so neither file nor memory holds the float table.
//
//	Gather(table, ids)  ->  Cast(Gather(codes, ids)) * Gather(scales, ids)
//
// In 4 bits (Precision) a table whose width is a multiple of Int4Block becomes
// com.microsoft's GatherBlockQuantized instead.
type Embeddings struct {
	Config Config
	// Precision of the Gather nodes that are not to be INT8; may be nil.
	Precision map[*graph.Node]Precision
}

var _ Pass = Embeddings{}

// Name implements Pass.
func (Embeddings) Name() string { return "embeddings" }

// Run implements Pass.
func (e Embeddings) Run(_ context.Context, m *graph.Model) (Stats, error) {
	g := m.Graph
	ix := g.Index()
	names, nodeNames := g.Namer(), g.NodeNamer()
	var nodes []*graph.Node
	count, small, saved := 0, 0, int64(0)
	for _, n := range g.Nodes {
		if !e.takes(g, ix, n) {
			nodes = append(nodes, n)
			continue
		}
		name := n.In(0)
		t := g.Init(name)
		v, err := t.F32()
		if err != nil {
			return Stats{}, err
		}
		if e.Precision[n] == PrecisionINT4 {
			q, err := gatherInt4(m, names, n, v, t.Dims)
			if err != nil {
				return Stats{}, fmt.Errorf("table %q: %w", name, err)
			}
			nodes = append(nodes, q)
			small++
			saved += int64(len(t.Data)) - int64(len(g.Init(q.Inputs[0]).Data)+len(g.Init(q.Inputs[2]).Data))
			continue
		}
		s := e.Config.weightScheme()
		s.ReduceRange = false // nothing accumulates
		q, err := QuantizeWeight(v, t.Dims, 0, PerChannel, s)
		if err != nil {
			return Stats{}, fmt.Errorf("table %q: %w", name, err)
		}
		codes, scales := names.Name(name+"_rows"), names.Name(name+"_row_scales")
		g.SetInit(codes, q.Tensor())
		g.SetInit(scales, tensor.From(q.Scales, int64(len(q.Scales)), 1))
		out := n.Outputs[0]
		row, scale, float := names.Name(out+"_row"), names.Name(out+"_row_scale"), names.Name(out+"_row_float")
		nodes = append(nodes,
			graph.NewNode("", "Gather", n.Name, []string{codes, n.In(1)}, []string{row}, graph.AttrInt("axis", 0)),
			graph.NewNode("", "Gather", nodeNames.After(n, "_scale"), []string{scales, n.In(1)}, []string{scale}, graph.AttrInt("axis", 0)),
			graph.NewNode("", "Cast", nodeNames.After(n, "_Cast"), []string{row}, []string{float}, graph.AttrInt("to", int64(tensor.Float32))),
			graph.NewNode("", "Mul", nodeNames.After(n, "_Mul"), []string{float, scale}, []string{out}))
		count++
		saved += int64(len(t.Data)) - int64(len(q.Codes)+4*len(q.Scales))
	}
	g.Nodes = nodes
	g.Prune()
	note := fmt.Sprintf("%d tables in INT8 by row", count)
	if small > 0 {
		note += fmt.Sprintf(", %d in 4 bits", small)
	}
	return Stats{Changed: count + small, Note: fmt.Sprintf("%s, %.1f MB saved", note, float64(saved)/1e6)}, nil
}

// table reports whether n looks up rows of a large float table that nobody else reads.
func (e Embeddings) table(g *graph.Graph, ix *graph.Index, n *graph.Node) bool {
	t := g.Init(n.In(0))
	return n.Is("Gather") && n.Int("axis", 0) == 0 && t != nil && t.Type == tensor.Float32 && len(t.Dims) == 2 && t.Dims[0] >= minTableRows &&
		len(ix.Uses(n.In(0))) == 1 && !ix.Captured(n.In(0)) && g.Init(n.In(1)) == nil && !e.excluded(n)
}

// takes reports whether the pass quantizes the table that n reads.
func (e Embeddings) takes(g *graph.Graph, ix *graph.Index, n *graph.Node) bool {
	switch e.Precision[n] {
	case PrecisionFP16, PrecisionBF16, PrecisionFP32:
		return false
	}
	return e.table(g, ix, n)
}

// Any reports whether the pass would change m.
func (e Embeddings) Any(m *graph.Model) bool {
	ix := m.Graph.Index()
	return slices.ContainsFunc(m.Graph.Nodes, func(n *graph.Node) bool { return e.takes(m.Graph, ix, n) })
}

// HasTables reports whether the model has embedding tables, all of which 4-bit
// blocks fit.
func HasTables(m *graph.Model, c Config) bool {
	e, ix, found := Embeddings{Config: c}, m.Graph.Index(), false
	for _, n := range m.Graph.Nodes {
		if e.table(m.Graph, ix, n) {
			if m.Graph.Init(n.In(0)).Dims[1]%Int4Block != 0 {
				return false
			}
			found = true
		}
	}
	return found
}

// gatherInt4 returns the lookup of n in a table of 4-bit blocks. The scale of
// each block has the least squared error.
func gatherInt4(m *graph.Model, names graph.Namer, n *graph.Node, v []float32, dims []int64) (*graph.Node, error) {
	rows, width := int(dims[0]), int(dims[1])
	if width%Int4Block != 0 {
		return nil, fmt.Errorf("%w: rows of %d do not divide into blocks of %d; use int8", ErrConfig, width, Int4Block)
	}
	q, err := QuantizeInt4(transpose2D(v, rows, width), width, rows, nil)
	if err != nil {
		return nil, err
	}
	codes, scales := names.Name(n.In(0)+"_int4"), names.Name(n.In(0)+"_int4_scale")
	m.Graph.SetInit(codes, tensor.From(q.Codes, dims[0], dims[1]/2))
	m.Graph.SetInit(scales, tensor.From(q.Scales, dims[0], dims[1]/Int4Block))
	m.Require(graph.DomainMS, 1)
	return graph.NewNode(graph.DomainMS, "GatherBlockQuantized", n.Name, []string{codes, n.In(1), scales}, []string{n.Outputs[0]},
		graph.AttrInt("gather_axis", 0), graph.AttrInt("quantize_axis", 1), graph.AttrInt("block_size", Int4Block), graph.AttrInt("bits", 4)), nil
}

func (e Embeddings) excluded(n *graph.Node) bool {
	for _, x := range e.Config.Exclude {
		if x == n.Name || x == n.Op {
			return true
		}
	}
	return false
}

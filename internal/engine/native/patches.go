package native

import (
	"context"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// opPatches is the operator of libfewbit_cpu (cpu/matmul_bf16.cpp).
const opPatches = "PatchesBF16"

// patches makes one operator of each convolution that cuts an image into patches
// beside each other, with what makes rows of its result:
//
//	x -> Conv -> Reshape [batch, n, patches] -> Transpose [batch, patches, n]
//
// ONNX Runtime computes such a convolution in FP32, which takes a ninth of the time of
// a ViT whose encoder is ours.
func (l *lowering) patches(ctx context.Context) error {
	if !l.e.Kernels().BF16 {
		return nil
	}
	g := l.m.Graph
	names := g.Namer()
	for _, conv := range slices.Clone(g.Nodes) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p, ok := l.patchesOf(conv)
		if !ok {
			continue
		}
		w := g.Init(conv.In(1))
		n := w.Dims[0]
		packed, err := l.packPatches(w, names.Name(conv.In(1)+"_packed"))
		if err != nil {
			return err
		}
		if packed == "" {
			continue
		}
		in := []string{conv.In(0), packed}
		if b := conv.In(2); b != "" {
			in = append(in, b)
		}
		attrs := []*pb.AttributeProto{graph.AttrInt("N", n), graph.AttrInt("height", w.Dims[2]), graph.AttrInt("width", w.Dims[3])}
		g.Nodes = append(g.Nodes, graph.NewNode(ops.Domain, opPatches, p.y+"_"+opPatches, in, []string{p.y}, attrs...))
		for _, o := range p.nodes {
			l.gone[o] = true
		}
	}
	return nil
}

// patching is a convolution that patches makes an operator of.
type patching struct {
	y     string
	nodes []*graph.Node // that go
}

// patchesOf returns the pattern that conv begins.
func (l *lowering) patchesOf(conv *graph.Node) (p patching, ok bool) {
	if !conv.Is("Conv") || len(conv.Outputs) != 1 || !l.besideEachOther(conv) {
		return p, false
	}
	n, x := l.m.Graph.Init(conv.In(1)).Dims[0], conv.Outputs[0]
	var flat *graph.Node
	for _, u := range l.ix.Uses(x) {
		if u.Node.Is("Reshape") && u.Input == 0 {
			flat = u.Node
		}
	}
	if flat == nil || !l.keepsColumns(x, flat.Outputs[0], n) {
		return p, false
	}
	rows := l.only(flat.Outputs[0], "Transpose")
	if rows == nil || !slices.Equal(rows.Ints("perm"), []int64{0, 2, 1}) {
		return p, false
	}
	p.y, p.nodes = rows.Outputs[0], []*graph.Node{conv, flat, rows}
	return p, l.readFor(x, flat, &p.nodes, maxSteps)
}

// besideEachOther reports whether conv has a constant weight, and its steps are the
// weight's size, without padding.
func (l *lowering) besideEachOther(conv *graph.Node) bool {
	w := l.m.Graph.Init(conv.In(1))
	if w == nil || w.Type != tensor.Float32 || len(w.Dims) != 4 || w.Len() == 0 || conv.In(2) != "" && !l.vector(conv.In(2), w.Dims[0]) {
		return false
	}
	all := func(attr string, want int64) bool {
		return !slices.ContainsFunc(conv.Ints(attr), func(v int64) bool { return v != want })
	}
	size, kernel := w.Dims[2:], conv.Ints("kernel_shape")
	if auto := conv.Str("auto_pad", "NOTSET"); auto != "VALID" && (auto != "NOTSET" || !all("pads", 0)) {
		return false
	}
	return conv.Int("group", 1) == 1 && all("dilations", 1) && slices.Equal(conv.Ints("strides"), size) && (kernel == nil || slices.Equal(kernel, size))
}

// readFor reports whether value is read by n alone, or for the shape that n, a Reshape,
// takes: by the nodes that it adds.
func (l *lowering) readFor(value string, n *graph.Node, nodes *[]*graph.Node, steps int) bool {
	if steps == 0 || l.ix.IsOutput(value) || l.ix.Captured(value) {
		return false
	}
	for _, u := range l.ix.Uses(value) {
		if u.Node == n || slices.Contains(*nodes, u.Node) {
			continue
		}
		switch u.Node.Op {
		case "Shape", "Slice", "Gather", "Concat", "Unsqueeze", "Squeeze", "Cast":
		default:
			return false
		}
		*nodes = append(*nodes, u.Node)
		for _, o := range u.Node.Outputs {
			if !l.readFor(o, n, nodes, steps-1) {
				return false
			}
		}
	}
	return true
}

// keepsColumns reports whether flat is image, [batch, n, height, width], with the two
// last dimensions in one.
func (l *lowering) keepsColumns(image, flat string, n int64) bool {
	x, y := l.m.Graph.Dims(image), l.m.Graph.Dims(flat)
	if len(x) != 4 || len(y) != 3 || y[1].N != n {
		return false
	}
	batch := x[0].N >= 0 && x[0].N == y[0].N || x[0].N < 0 && x[0].Name != "" && x[0].Name == y[0].Name
	return batch || x[2].N > 0 && x[3].N > 0 && x[2].N*x[3].N == y[2].N
}

// packPatches packs the weight [n, channels, height, width] of a convolution as the
// matrix that patches are multiplied by, "" where it has no such form.
func (l *lowering) packPatches(w *tensor.Tensor, name string) (string, error) {
	n, k := int(w.Dims[0]), int(w.Len()/w.Dims[0])
	size := l.e.BF16Size(k, n)
	if size == 0 {
		return "", nil
	}
	v := tensor.View[float32](w)
	turned := make([]float32, len(v))
	for c := range n {
		for i := range k {
			turned[i*n+c] = v[c*k+i]
		}
	}
	b, err := alloc(size)
	if err != nil {
		return "", err
	}
	l.maps = append(l.maps, b)
	if err := l.e.PackBF16(turned, k, n, b, l.threads); err != nil {
		return "", err
	}
	l.m.Graph.SetInit(name, &tensor.Tensor{Type: tensor.Uint8, Dims: []int64{int64(size)}, Data: b})
	return name, nil
}

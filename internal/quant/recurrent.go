package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// The inputs of DynamicQuantizeLSTM of com.microsoft: those of LSTM, then scale
// and zero point of W and of R.
const (
	lstmInputs    = 8
	lstmGates     = 4
	lstmWeight    = 1
	lstmRecurrent = 2
)

// lstm plans an LSTM: its two products take weights in INT8, and rows whose range
// is measured at each step, as ONNX Runtime's operator for it has it. So it needs
// no calibration, in static plans either, where nothing else is known.
func (b *planner) lstm(n *graph.Node) (*Op, string) {
	if b.Config.Scheme != INT8 && b.Config.Scheme != INT8Dynamic || b.Config.Wide {
		return nil, fmt.Sprintf("it has no form with scheme %s; %s and %s have one", b.Config.Name(), INT8, INT8Dynamic)
	}
	if b.Config.Target != ORTCPU && b.Config.Target != CPU {
		return nil, fmt.Sprintf("it has no integer form with target %s; %s and %s have one", b.Config.Target, ORTCPU, CPU)
	}
	w, rule := b.floatWeight(n.In(lstmWeight), 3, 3)
	if rule != "" {
		return nil, rule
	}
	r, rule := b.floatWeight(n.In(lstmRecurrent), 3, 3)
	if rule != "" {
		return nil, rule
	}
	switch {
	case n.Outputs[0] == "":
		return nil, "its first output has no name"
	case w.Dims[1]%lstmGates != 0 || r.Dims[0] != w.Dims[0] || r.Dims[1] != w.Dims[1] || r.Dims[2]*lstmGates != w.Dims[1]:
		return nil, fmt.Sprintf("its weights of %v and %v do not fit together", w.Dims, r.Dims)
	case n.Int("layout", 0) != 0:
		return nil, "it has the batch first (layout 1)"
	}
	return &Op{Node: n, Kind: Recurrent, Out: n.Outputs[0]}, ""
}

// recurrent makes a DynamicQuantizeLSTM of op in place. Its weights are [directions,
// inputs, 4 hidden], the transposes of LSTM's, with one scale a column and direction.
func (w *inserter) recurrent(op *Op) error {
	n := op.Node
	for len(n.Inputs) < lstmInputs {
		n.Inputs = append(n.Inputs, "")
	}
	for _, at := range []int{lstmWeight, lstmRecurrent} {
		base, err := w.directions(n.Inputs[at])
		if err != nil {
			return err
		}
		n.Inputs[at] = base + "_quantized"
		n.Inputs = append(n.Inputs, base+"_scale", base+"_weight_zero_point")
	}
	attrs := n.Attrs[:0]
	for _, a := range n.Attrs {
		if a.GetName() != "layout" {
			attrs = append(attrs, a)
		}
	}
	n.Op, n.Domain, n.Attrs = "DynamicQuantizeLSTM", graph.DomainMS, attrs
	w.m.Require(graph.DomainMS, 1)
	w.methods[RTN]++
	return nil
}

// directions quantizes name, [directions, 4 hidden, inputs], once for all that
// read it and returns the base of the names it added.
func (w *inserter) directions(name string) (string, error) {
	key := weightKey{name: name, axis: 1}
	if base, ok := w.weights[key]; ok {
		return base, nil
	}
	t := w.g.Init(name)
	v, err := t.F32()
	if err != nil {
		return "", err
	}
	dirs, cols, rows := int(t.Dims[0]), int(t.Dims[1]), int(t.Dims[2])
	codes := make([]int8, 0, len(v))
	var scales []float32
	for d := range dirs {
		part := transpose2D(v[d*cols*rows:(d+1)*cols*rows], cols, rows)
		q, err := QuantizeWeight(part, []int64{int64(rows), int64(cols)}, 1, w.Plan.Config.Granularity, w.Plan.Config.weightScheme())
		if err != nil {
			return "", fmt.Errorf("weight %q: %w", name, err)
		}
		codes, scales = append(codes, q.Codes...), append(scales, q.Scales...)
	}
	base := name + w.tag
	dims := []int64{int64(dirs)}
	if len(scales) != dirs {
		dims = append(dims, int64(cols))
	}
	w.g.SetInit(base+"_quantized", tensor.From(codes, int64(dirs), int64(rows), int64(cols)))
	w.g.SetInit(base+"_scale", tensor.From(scales, dims...))
	w.g.SetInit(base+"_weight_zero_point", tensor.From(make([]int8, len(scales)), dims...))
	w.weights[key] = base
	return base, nil
}

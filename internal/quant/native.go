package quant

import (
	"fmt"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// rows reports whether matrix products are written as the operators of
// docs/ops.md, whose activations get a scale for each row when they run. Then
// the static scheme fixes ranges for convolutions only.
func (c Config) rows() bool {
	return c.Target.Native() && (c.Scheme == INT8 || c.Scheme == INT8Dynamic) || c.Steps()
}

// byRow reports whether op takes its activation by row.
func (c Config) byRow(op *Op) bool { return c.rows() && op.Kind == Linear }

// Static reports whether op, an operator of p, reads activations by a range that
// calibration gave them.
func (p *Plan) Static(op *Op) bool { return p.Config.Scheme.Static() && !p.Config.byRow(op) }

// quantizeOpset and dynamicOpset are the first standard opsets with QuantizeLinear
// and with DynamicQuantizeLinear.
const (
	quantizeOpset = 10
	dynamicOpset  = 11
)

// checkOpset refuses models whose standard operators are too old for those that
// quantize activations, or for the operators' bodies.
func (b *planner) checkOpset(m *graph.Model) error {
	for _, op := range b.Ops {
		need, what, instead := int64(0), "scheme "+string(b.Config.Scheme), "scheme int4 or fp16"
		switch {
		case op.Kind == Recurrent:
		case b.Config.rows() && op.Kind == Linear:
			need, what, instead = ops.MinOpset, "target "+string(b.Config.Target), "another target"
		case b.Config.Scheme == INT8Dynamic:
			need = dynamicOpset
		case b.Config.Scheme == INT8 && !b.Config.Wide:
			need = quantizeOpset
		}
		if m.Opset() < need {
			return fmt.Errorf("%w: %s needs a model of opset %d or above, this one has %d; export it anew, or use %s", ErrConfig, what, need, m.Opset(), instead)
		}
	}
	return nil
}

// trim takes poolings and moving operators out of the plan whose result nobody
// reads as codes: matrix products quantize their rows themselves, and each
// quantization more would lose something.
func (b *planner) trim() {
	if !b.Config.rows() {
		return
	}
	for before := -1; before != len(b.Ops); {
		before = len(b.Ops)
		codes := map[string]bool{}
		for _, op := range b.Ops {
			if op.Kind != Linear {
				for _, x := range op.X {
					codes[x] = true
				}
			}
		}
		kept := b.Ops[:0]
		for _, op := range b.Ops {
			ends := op.Kind == Through || op.Node.Op == "GlobalAveragePool" || op.Node.Op == "AveragePool"
			if ends && !codes[op.Out] {
				delete(b.source, op.Out)
				continue
			}
			kept = append(kept, op)
		}
		b.Ops = kept
	}
}

// nativeLinear turns a MatMul into MatMulQuantized. Its bias stays an Add.
//
//	x -> [Div smooth] -> QuantizeRows -> MatMulQuantized -> [Add bias]
//
// Readers of the same activation share the QuantizeRows.
func (w *inserter) nativeLinear(op *Op) error {
	if !op.Node.Is("MatMul") {
		return fmt.Errorf("%w: a %s has no native form", ErrConfig, op.Node.Op)
	}
	base, err := w.weight(op)
	if err != nil {
		return err
	}
	x := op.X[0]
	rows, ok := w.rows[x]
	if !ok {
		b := x + w.tag
		rows = []string{b + "_rows_quantized", b + "_rows_scale", b + "_rows_zero_point"}
		w.rows[x] = rows
		w.node(ops.Domain, ops.OpQuantizeRows, x+"_QuantizeRows", []string{w.divided(x, op.Node.Inputs[0])}, rows)
	}
	n := op.Node
	n.Domain, n.Op, n.Attrs = ops.Domain, ops.OpMatMulQuantized, nil
	n.Inputs = append(append([]string(nil), rows...), base+"_quantized", base+"_scale", base+"_sum")
	return nil
}

// divided inserts value / s, where value is x or its dequantized copy. A
// division, not the product with the inverse: kernels fuse it and round alike.
func (w *inserter) divided(x, value string) string {
	c := w.Choices[w.Plan.Source(x)]
	if c == nil || c.Smooth == nil {
		return value
	}
	b := x + w.tag
	w.g.SetInit(b+"_smooth", tensor.From(c.Smooth, int64(len(c.Smooth))))
	w.node(graph.DomainONNX, "Div", x+"_Smooth", []string{value, b + "_smooth"}, []string{b + "_smoothed"})
	return b + "_smoothed"
}

// nativeWeight adds scale and column sums of q [k,n], one a column.
func (w *inserter) nativeWeight(base string, q *Weight) error {
	k, n := int(q.Dims[0]), int(q.Dims[1])
	sums, err := ops.ColumnSums(q.Codes, k, n)
	if err != nil {
		return err
	}
	scales := q.Scales
	if len(scales) == 1 {
		scales = make([]float32, n)
		for i := range scales {
			scales[i] = q.Scales[0]
		}
	}
	w.g.SetInit(base+"_scale", tensor.From(scales, int64(n)))
	w.g.SetInit(base+"_sum", tensor.From(sums, int64(n)))
	return nil
}

// fakeQuantRows returns dequantize(QuantizeRows(x)) for rows of k values.
func fakeQuantRows(x []float32, k int) ([]float32, error) {
	out := make([]float32, len(x))
	errs := make([]error, len(x)/max(k, 1)+1)
	parallel(len(x)/max(k, 1), k, func(from, to int) {
		q, err := ops.QuantizeRows(x[from*k:to*k], to-from, k)
		if err != nil {
			errs[from] = err
			return
		}
		copy(out[from*k:], q.Dequantize())
	})
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

package plan_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan/reference"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// grid makes constants NAME_s and NAME_z: scale and u8 zero point.
func (s *small) grid(name string, scale float32, zero uint8) *small {
	return s.init(name+"_s", tensor.From([]float32{scale})).init(name+"_z", tensor.From([]uint8{zero}))
}

// qdq quantizes x to x_q and dequantizes it to x_d on its grid.
func (s *small) qdq(x string, scale float32, zero uint8) *small {
	return s.grid(x, scale, zero).node("QuantizeLinear", fmt.Sprintf("%s %s_s %s_z", x, x, x), x+"_q").
		node("DequantizeLinear", fmt.Sprintf("%s_q %s_s %s_z", x, x, x), x+"_d")
}

// weight makes s8 codes with a scale for each index of axis, dequantized to
// NAME_d.
func (s *small) weight(name string, axis int64, dims ...int64) *small {
	scales := s.random(tensor.Float32, dims[axis])
	for i, v := range tensor.View[float32](scales) {
		tensor.View[float32](scales)[i] = .002 + .003*float32(math.Abs(float64(v)))
	}
	zeros := &tensor.Tensor{Type: tensor.Int8, Dims: scales.Dims, Data: make([]byte, dims[axis])}
	return s.init(name, s.random(tensor.Int8, dims...)).init(name+"_ws", scales).init(name+"_wz", zeros).
		node("DequantizeLinear", fmt.Sprintf("%s %s_ws %s_wz", name, name, name), name+"_d", attrInt("axis", axis))
}

// count is how many steps of each entry a plan has.
func count(p *plan.Plan) string {
	n := map[string]int{}
	var order []string
	for _, s := range p.Steps {
		e := strings.TrimSuffix(strings.TrimPrefix(s.Entry(), "fb_"), "_run")
		if n[e]++; n[e] == 1 {
			order = append(order, e)
		}
	}
	var list []string
	for _, e := range order {
		list = append(list, fmt.Sprintf("%s %d", e, n[e]))
	}
	return strings.Join(list, ", ")
}

// TestQuantized: patterns around codes become the steps that they should, and
// compute what ONNX Runtime does.
func TestQuantized(t *testing.T) {
	e := opstest.Engine(t)
	n := func() *small { return newSmall(17) }
	conv := attrInts("pads", 1, 1, 1, 1)
	for name, c := range map[string]struct {
		s    *small
		want string
		tol  float64
	}{
		"conv-residual-relu": {n().input("x", f32, 2, 3, 6, 5).qdq("x", .03, 120).input("r", f32, 2, 4, 6, 5).qdq("r", .02, 100).weight("w", 0, 4, 3, 3, 3).f("b", 4).
			node("Conv", "x_d w_d b", "c", conv).node("Add", "r_d c", "s").node("Relu", "s", "y").qdq("y", .02, 0).out("y_d"),
			"nchw_to_nhwc_s8 2, conv_s8 1, nhwc_s8_to_nchw 1", 1e-2},
		"conv-float-out": {n().input("x", f32, 2, 3, 6, 5).qdq("x", .03, 120).weight("w", 0, 4, 3, 1, 1).node("Conv", "x_d w_d", "y").out("y"),
			"nchw_to_nhwc_s8 1, conv_s8 1, copy 1", floatTolerance},
		"conv-depthwise": {n().input("x", f32, 1, 6, 7, 7).qdq("x", .03, 128).weight("w", 0, 6, 1, 3, 3).node("Conv", "x_d w_d", "c", attrInt("group", 6), attrInts("strides", 2, 2), conv).node("Relu", "c", "y").out("y"),
			"nchw_to_nhwc_s8 1, conv_s8 1, copy 1", floatTolerance},
		"conv-weight-float": {n().input("x", f32, 1, 2, 5, 5).qdq("x", .03, 120).f("w", 3, 2, 3, 3).node("Conv", "x_d w", "y").out("y"),
			"nchw_to_nhwc_s8 1, nhwc_s8_to_nchw 1, conv_float 1", floatTolerance},
		"conv-weight-float-between": {n().input("x", f32, 1, 2, 5, 5).qdq("x", .03, 120).init("xc_s", tensor.From([]float32{.03, .03}, 2)).init("xc_z", tensor.From([]uint8{120, 120}, 2)).
			node("DequantizeLinear", "x_q xc_s xc_z", "xc", attrInt("axis", 1)).f("w", 3, 2, 3, 3).node("Conv", "xc w", "y").qdq("y", .02, 100).node("Relu", "y_d", "o").out("o"),
			"nchw_to_nhwc_s8 2, nhwc_s8_to_nchw 1, conv_float 1, dequantize_tensor 1, unary 1, copy 1", 1e-2},
		"conv-int8-activation": {n().input("x", f32, 1, 2, 5, 5).init("s", tensor.From([]float32{.03})).init("z", tensor.From([]int8{-3})).
			node("QuantizeLinear", "x s z", "q").node("DequantizeLinear", "q s z", "d").weight("w", 0, 3, 2, 3, 3).node("Conv", "d w_d", "y").out("y"),
			"nchw_to_nhwc_s8 1, conv_s8 1, copy 1", floatTolerance},
		"codes-without-zero-point": {n().input("x", f32, 1, 2, 5, 5).init("s", tensor.From([]float32{.03})).init("z", tensor.From([]int8{0})).
			node("QuantizeLinear", "x s z", "q").node("DequantizeLinear", "q s", "d").weight("w", 0, 3, 2, 3, 3).node("Conv", "d w_d", "y").out("y"),
			"nchw_to_nhwc_s8 1, conv_s8 1, copy 1", floatTolerance},
		"matmul-static": {n().input("x", f32, 2, 3, 24).qdq("x", .03, 120).weight("w", 1, 24, 10).f("b", 10).node("MatMul", "x_d w_d", "m").node("Add", "m b", "y").out("y"),
			"quantize_tensor 1, gemm_s8 1", floatTolerance},
		"matmul-chain": {n().input("x", f32, 5, 24).qdq("x", .03, 120).weight("w", 1, 24, 32).weight("v", 1, 32, 8).node("MatMul", "x_d w_d", "m").node("Relu", "m", "h").qdq("h", .03, 0).node("MatMul", "h_d v_d", "y").out("y"),
			"quantize_tensor 1, gemm_s8 2", 1e-2},
		"matmul-chain-ragged": {n().input("x", f32, 5, 24).qdq("x", .03, 120).weight("w", 1, 24, 20).weight("v", 1, 20, 8).node("MatMul", "x_d w_d", "m").qdq("m", .03, 99).node("MatMul", "m_d v_d", "y").out("y"),
			"quantize_tensor 2, gemm_s8 2", 1e-2},
		"gemm-static": {n().input("x", f32, 5, 24).qdq("x", .03, 120).weight("w", 0, 10, 24).f("b", 10).node("Gemm", "x_d w_d b", "y", attrInt("transB", 1)).out("y"),
			"quantize_tensor 1, gemm_s8 1", floatTolerance},
		"matmul-asymmetric-weight": {n().input("x", f32, 5, 24).qdq("x", .03, 120).init("w", n().random(tensor.Uint8, 24, 8)).grid("w", .01, 77).node("DequantizeLinear", "w w_s w_z", "w_d").node("MatMul", "x_d w_d", "y").out("y"),
			"quantize_tensor 1, dequantize_tensor 1, copy 1, gemm_float 1", floatTolerance},
		"pools": {n().input("x", f32, 1, 3, 6, 6).qdq("x", .03, 120).node("MaxPool", "x_d", "m", attrInts("kernel_shape", 2, 2), attrInts("strides", 2, 2)).qdq("m", .03, 120).
			node("AveragePool", "m_d", "a", attrInts("kernel_shape", 2, 2)).qdq("a", .02, 110).node("GlobalAveragePool", "a_d", "g").qdq("g", .01, 128).node("Flatten", "g_d", "y").out("y"),
			"nchw_to_nhwc_s8 1, pool_s8 3, nhwc_s8_to_nchw 1", 2e-2},
		"add-codes": {n().input("x", f32, 1, 3, 4, 4).qdq("x", .03, 120).input("r", f32, 1, 3, 4, 4).qdq("r", .02, 100).node("Add", "x_d r_d", "s").node("Relu", "s", "t").qdq("t", .02, 0).node("GlobalAveragePool", "t_d", "y").out("y"),
			"nchw_to_nhwc_s8 2, dequantize_tensor 3, binary 1, unary 1, quantize_tensor 1, global_average_f32 1", 1e-2},
		"concat-codes": {n().input("x", f32, 1, 3, 4, 4).qdq("x", .03, 120).input("r", f32, 1, 2, 4, 4).qdq("r", .02, 100).node("Concat", "x_d r_d", "s", attrInt("axis", 1)).qdq("s", .03, 120).weight("w", 0, 4, 5, 1, 1).node("Conv", "s_d w_d", "y").out("y"),
			"nchw_to_nhwc_s8 3, nhwc_s8_to_nchw 2, copy 3, conv_s8 1", 1e-2},
		"read-twice": {n().input("x", f32, 1, 3, 4, 4).qdq("x", .03, 120).weight("w", 0, 3, 3, 1, 1).node("Conv", "x_d w_d", "c").qdq("c", .02, 128).node("Mul", "c c_d", "y").out("y"),
			"nchw_to_nhwc_s8 1, conv_s8 1, quantize_tensor 1, dequantize_tensor 1, binary 1, copy 1", 1e-2},
	} {
		t.Run(name, func(t *testing.T) {
			p := compare(t, e, c.s, c.tol)
			if got := count(p); got != c.want {
				t.Errorf("steps\n%s, want\n%s\n%v", got, c.want, p)
			}
		})
	}
}

// form writes m for any target, as opstest.Native does for this one.
func form(t *testing.T, m *graph.Model, target quant.Target) *graph.Model {
	t.Helper()
	c, err := quant.Config{Scheme: quant.INT8, Target: target}.WithDefaults()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	m = m.Clone()
	if _, err := quant.Run(ctx, m, quant.Prepare(c), quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	p, err := quant.NewPlan(m, c)
	if err != nil {
		t.Fatal(err)
	}
	ch := quant.Choices{}
	for _, name := range p.Tensors {
		r := calib.Range{Lo: -6, Hi: 6}
		ch[name] = &quant.Choice{Tensor: name, Method: "fixed", Range: r, Params: calib.ParamsFor(r, calib.U8), Scheme: calib.U8}
	}
	table := []quant.Pass{quant.Embeddings{Config: c}, quant.Residuals{}, &quant.Insert{Plan: p, Choices: ch}}
	if target != quant.QDQ {
		table = append(table, quant.Lower{})
	}
	if _, err := quant.Run(ctx, m, table, quant.Dump{}); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestForms: the forms that are made for other engines run too.
func TestForms(t *testing.T) {
	e := opstest.Engine(t)
	bert := opstest.BERT{Vocab: 1100}
	cnn := opstest.CNN{MaxPool: true}
	for _, target := range []quant.Target{quant.QDQ, quant.ORTCPU, quant.QOperator} {
		for _, c := range []struct {
			m     *graph.Model
			feeds map[string]*tensor.Tensor
			tol   float64
		}{{bert.Model(), bert.Feeds(5, 2, 7), 2e-2}, {cnn.Model(), cnn.Feeds(5, 2), 3e-2}} {
			t.Run(fmt.Sprint(c.m.Graph.Name, " ", target), func(t *testing.T) {
				m := form(t, c.m, target)
				p := planned(t, m, c.feeds)
				want := opstest.Run(t, e, opstest.Save(t, m), c.feeds)
				got, err := reference.Run(p, c.feeds)
				if err != nil {
					t.Fatal(err)
				}
				for name, w := range want {
					d := difference(got[name], w)
					t.Logf("%s: %d steps: %s; difference %.2g", name, len(p.Steps), count(p), d)
					if d > c.tol {
						t.Errorf("%s differs by %.2g", name, d)
					}
				}
			})
		}
	}
}

// native is QuantizeRows(x [/ d]) -> MatMulQuantized.
func native(divide bool) *small {
	s := newSmall(17).input("x", f32, 2, 3, 20).init("w", newSmall(17).random(tensor.Int8, 20, 6)).f("w_scale", 6)
	w := tensor.View[int8](s.m.Graph.Init("w"))
	sums := make([]int32, 6)
	for i, v := range w {
		sums[i%6] += int32(v)
	}
	s.init("w_sum", tensor.From(sums, 6))
	in := "x"
	if divide {
		d := s.random(tensor.Float32, 20)
		for i := range tensor.View[float32](d) {
			tensor.View[float32](d)[i] = 1 + float32(i)/7
		}
		s.init("d", d).node("Div", "x d", "x_smoothed")
		in = "x_smoothed"
	}
	s.node("fewbit:QuantizeRows", in, "q sc z").node("fewbit:MatMulQuantized", "q sc z w w_scale w_sum", "y").out("y")
	if err := ops.Install(s.m); err != nil {
		panic(err)
	}
	return s
}

// TestNative: codes are those of docs/ops.md bit for bit, the division is part
// of the quantization, and files that say something else are refused.
func TestNative(t *testing.T) {
	e := opstest.Engine(t)
	for _, divide := range []bool{false, true} {
		p := compare(t, e, native(divide), 1e-6)
		if got := count(p); got != "quantize_rows 1, gemm_s8 1" {
			t.Errorf("%v: %s", divide, got)
		}
	}
	refused := func(name string, s *small) {
		t.Helper()
		src, err := plan.New(s.m)
		if err == nil {
			_, err = src.Plan(dimsOf(s.feeds), plan.Options{})
		}
		if !errors.Is(err, plan.ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := native(false)
	s.init("w_sum", tensor.From([]int32{0, 0, 0, 0, 0, 0}, 6))
	refused("wrong sums", s)
	s = native(false)
	s.m.Graph.Nodes[1].Inputs[1] = "w_scale"
	refused("scales of something else", s)
	s = native(false)
	f := s.m.Function(ops.Domain, ops.OpMatMulQuantized)
	f.Node = f.Node[:len(f.Node)-1]
	refused("another body", s)
}

// TestBlocks: MatMulNBits with blocks, types and zero points that the kernel
// has, and on floats with those that it has not.
func TestBlocks(t *testing.T) {
	e := opstest.Engine(t)
	for _, c := range []struct {
		k, block, accuracy int64
		zero               bool
		want               string
		tol                float64
	}{
		{64, 32, 0, false, "cast 1, gemm_w4 1", 2e-3},
		{128, 64, 4, false, "quantize_rows 1, gemm_w4 1", 3e-2},
		{64, 16, 0, false, "gemm_float 1", floatTolerance},
		{40, 32, 0, false, "gemm_float 1", floatTolerance},
		{96, 32, 0, true, "gemm_float 1", floatTolerance},
	} {
		t.Run(fmt.Sprint(c.k, "/", c.block, " level ", c.accuracy), func(t *testing.T) {
			const n = 6
			blocks := (c.k + c.block - 1) / c.block
			s := newSmall(17).input("x", f32, 3, c.k).f("b", n).input("r", f32, 3, n)
			s.init("w", s.random(tensor.Uint8, n, blocks, c.block/2)).f("s", n, blocks)
			in := "x w s"
			if c.zero {
				s.init("z", s.random(tensor.Uint8, n, (blocks+1)/2))
				in += " z"
			}
			s.node("com.microsoft:MatMulNBits", in, "m", attrInt("K", c.k), attrInt("N", n), attrInt("bits", 4), attrInt("block_size", c.block), attrInt("accuracy_level", c.accuracy)).
				node("Add", "m b", "a").node("Add", "a r", "y").out("y")
			p := compare(t, e, s, c.tol)
			if got := count(p); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

package plan_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan/reference"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/tensor"
)

// small is a graph of a few nodes under test.
type small struct {
	m     *graph.Model
	feeds map[string]*tensor.Tensor
	r     *rand.Rand
}

func newSmall(opset int64) *small {
	return &small{r: rand.New(rand.NewPCG(7, 0)), feeds: map[string]*tensor.Tensor{}, m: &graph.Model{IR: 8,
		Opsets: map[string]int64{"": opset, graph.DomainMS: 1}, Metadata: map[string]string{},
		Graph: &graph.Graph{Name: "g", Info: map[string]*graph.Value{}}}}
}

func elems(dims []int64) int {
	n := 1
	for _, d := range dims {
		n *= int(d)
	}
	return n
}

// random values of a type: floats are normal, integers small.
func (s *small) random(d tensor.DType, dims ...int64) *tensor.Tensor {
	n := elems(dims)
	switch d {
	case tensor.Int64:
		v := make([]int64, n)
		for i := range v {
			v[i] = s.r.Int64N(7) - 3
		}
		return tensor.From(v, dims...)
	case tensor.Int32:
		v := make([]int32, n)
		for i := range v {
			v[i] = s.r.Int32N(7) - 3
		}
		return tensor.From(v, dims...)
	case tensor.Bool:
		v := make([]bool, n)
		for i := range v {
			v[i] = s.r.IntN(2) == 1
		}
		return tensor.From(v, dims...)
	case tensor.Int8:
		v := make([]int8, n)
		for i := range v {
			v[i] = int8(s.r.IntN(255) - 127)
		}
		return tensor.From(v, dims...)
	case tensor.Uint8:
		v := make([]uint8, n)
		for i := range v {
			v[i] = uint8(s.r.IntN(256))
		}
		return tensor.From(v, dims...)
	}
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(s.r.NormFloat64())
	}
	return tensor.From(v, dims...)
}

func (s *small) input(name string, d tensor.DType, dims ...int64) *small {
	t := s.random(d, dims...)
	s.feeds[name] = t
	v := &graph.Value{Name: name, Type: d, Dims: []graph.Dim{}}
	for range dims {
		v.Dims = append(v.Dims, graph.Dim{N: -1})
	}
	s.m.Graph.Inputs = append(s.m.Graph.Inputs, v)
	return s
}

func (s *small) init(name string, t *tensor.Tensor) *small {
	s.m.Graph.SetInit(name, t)
	return s
}

func (s *small) ints(name string, v ...int64) *small {
	return s.init(name, tensor.From(v, int64(len(v))))
}

func (s *small) f(name string, dims ...int64) *small {
	return s.init(name, s.random(tensor.Float32, dims...))
}

func (s *small) scalar(name string, v float32) *small { return s.init(name, tensor.From([]float32{v})) }

// node adds one; an input "_" is omitted.
func (s *small) node(op, in, out string, attrs ...*pb.AttributeProto) *small {
	domain := ""
	if d, o, ok := strings.Cut(op, ":"); ok {
		domain, op = d, o
	}
	ins := strings.Fields(in)
	for i := range ins {
		if ins[i] == "_" {
			ins[i] = ""
		}
	}
	s.m.Graph.Nodes = append(s.m.Graph.Nodes, graph.NewNode(domain, op, out, ins, strings.Fields(out), attrs...))
	return s
}

func (s *small) output(name string, d tensor.DType) *small {
	s.m.Graph.Outputs = append(s.m.Graph.Outputs, &graph.Value{Name: name, Type: d})
	return s
}

func (s *small) out(names ...string) *small {
	for _, n := range names {
		s.output(n, tensor.Float32)
	}
	return s
}

var (
	attrInts = graph.AttrInts
	attrInt  = graph.AttrInt
	attrF    = graph.AttrFloat
	attrS    = graph.AttrString
)

const f32, s64, s32, boolean = tensor.Float32, tensor.Int64, tensor.Int32, tensor.Bool

// operators are graphs of what stays in float and of what moves values.
func operators() map[string]*small {
	n := func() *small { return newSmall(17) }
	c := map[string]*small{
		"add-broadcast":  n().input("a", f32, 2, 3, 4).input("b", f32, 3, 1).node("Add", "a b", "y").out("y"),
		"sub-scalar":     n().input("a", f32, 2, 3).scalar("c", 3).node("Sub", "c a", "y").out("y"),
		"div-int":        n().input("a", s64, 4).init("c", tensor.From([]int64{2})).node("Div", "a c", "y").output("y", s64),
		"mul-int32":      n().input("a", s32, 4).input("b", s32, 3, 1).node("Mul", "a b", "y").output("y", s32),
		"pow":            n().input("a", f32, 5).node("Abs", "a", "p").init("e", tensor.From([]int64{3})).node("Pow", "p e", "y").out("y"),
		"min-max":        n().input("a", f32, 5).input("b", f32, 2, 1).f("w", 5).node("Min", "a b w", "l").node("Max", "l a", "y").out("y"),
		"sum3":           n().input("a", f32, 5).input("b", f32, 2, 1).f("w", 5).node("Sum", "a b w", "y").out("y"),
		"neg-abs-int":    n().input("a", s64, 6).node("Neg", "a", "b").node("Abs", "a", "c").node("Add", "b c", "y").output("y", s64),
		"compare":        n().input("a", s64, 8).input("b", s64, 8).node("LessOrEqual", "a b", "y").node("Greater", "a b", "z").node("Not", "z", "u").node("Xor", "y u", "v").output("y", boolean).output("v", boolean),
		"logic":          n().input("a", boolean, 8).input("b", boolean, 2, 1).node("And", "a b", "y").node("Or", "a b", "z").node("Equal", "a b", "e").output("y", boolean).output("z", boolean).output("e", boolean),
		"where":          n().input("a", boolean, 4, 1).input("b", f32, 3).scalar("c", -5).node("Where", "a b c", "y").out("y"),
		"where-int":      n().input("a", boolean, 4).input("b", s64, 4).input("c", s64, 2, 1).node("Where", "a b c", "y").output("y", s64),
		"cast":           n().input("a", f32, 9).scalar("k", 3).node("Mul", "a k", "b").node("Cast", "b", "y", attrInt("to", 7)).node("Cast", "b", "z", attrInt("to", 9)).node("Cast", "z", "w", attrInt("to", 1)).output("y", s64).output("z", boolean).out("w"),
		"cast-int":       n().input("a", s64, 9).node("Cast", "a", "b", attrInt("to", 6)).node("Cast", "b", "y", attrInt("to", 1)).node("Cast", "a", "z", attrInt("to", 9)).out("y").output("z", boolean),
		"clip":           n().input("a", f32, 9).scalar("lo", -.5).node("Clip", "a lo", "y").out("y"),
		"unary":          n().input("a", f32, 9).node("Exp", "a", "b").node("Log", "b", "c").node("Sqrt", "b", "d").node("Reciprocal", "d", "e").node("Erf", "a", "f").node("Tanh", "a", "g").node("Sigmoid", "a", "h").node("Floor", "a", "i").node("Ceil", "a", "j").node("Sin", "a", "k").node("Cos", "a", "l").node("HardSigmoid", "a", "m").node("HardSwish", "a", "n").node("LeakyRelu", "a", "o", attrF("alpha", .2)).node("Neg", "a", "p").out("c", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"),
		"silu":           n().input("a", f32, 9).node("Sigmoid", "a", "s").node("Mul", "a s", "y").node("com.microsoft:FastGelu", "a", "z").node("com.microsoft:QuickGelu", "a", "q").out("y", "z", "q"),
		"matmul-batch":   n().input("a", f32, 2, 3, 4, 5).input("b", f32, 3, 5, 2).node("MatMul", "a b", "y").out("y"),
		"matmul-shared":  n().input("a", f32, 2, 3, 4, 5).input("b", f32, 5, 6).node("MatMul", "a b", "y").out("y"),
		"matmul-left":    n().input("a", f32, 4, 5).input("b", f32, 3, 5, 2).node("MatMul", "a b", "y").out("y"),
		"matmul-cross":   n().input("a", f32, 2, 1, 4, 5).input("b", f32, 1, 3, 5, 2).node("MatMul", "a b", "y").out("y"),
		"matmul-vector":  n().input("a", f32, 5).input("b", f32, 3, 5, 2).node("MatMul", "a b", "y").out("y"),
		"matmul-column":  n().input("a", f32, 3, 4, 5).input("b", f32, 5).node("MatMul", "a b", "y").out("y"),
		"matmul-bias":    n().input("a", f32, 3, 4, 5).f("w", 5, 6).f("b", 6).input("r", f32, 3, 4, 6).node("MatMul", "a w", "m").node("Add", "b m", "s").node("Relu", "s", "t").node("Add", "r t", "y").out("y"),
		"gemm":           n().input("a", f32, 5, 3).input("b", f32, 4, 5).input("c", f32, 4).node("Gemm", "a b c", "y", attrInt("transA", 1), attrInt("transB", 1), attrF("alpha", .5), attrF("beta", 2)).out("y"),
		"gemm-weight":    n().input("a", f32, 3, 5).f("w", 4, 5).f("c", 4).node("Gemm", "a w c", "g", attrInt("transB", 1)).node("Relu", "g", "y").out("y"),
		"softmax":        n().input("a", f32, 3, 4, 5).node("Softmax", "a", "y").node("Softmax", "a", "z", attrInt("axis", 1)).out("y", "z"),
		"softmax-old":    newSmall(12).input("a", f32, 3, 4, 5).node("Softmax", "a", "y").out("y"),
		"layernorm":      n().input("a", f32, 3, 4, 5).input("b", f32, 3, 4, 5).f("g", 5).node("Add", "a b", "s").node("LayerNormalization", "s g", "y").out("y"),
		"layernorm-axes": n().input("a", f32, 3, 4, 5).f("g", 4, 5).f("b", 4, 5).node("LayerNormalization", "a g b", "y", attrInt("axis", 1)).out("y"),
		"layernorm-read": n().input("a", f32, 3, 4, 5).input("b", f32, 3, 4, 5).f("g", 5).node("Add", "a b", "s").node("LayerNormalization", "s g", "y").node("Mul", "s y", "z").out("z"),
		"batchnorm":      n().input("a", f32, 2, 3, 4, 4).f("s", 3).f("b", 3).f("m", 3).init("v", tensor.From([]float32{.5, 1, 2}, 3)).node("Relu", "a", "r").node("BatchNormalization", "r s b m v", "y").out("y"),
		"transpose":      n().input("a", f32, 2, 3, 4, 5).node("Transpose", "a", "y", attrInts("perm", 0, 2, 1, 3)).node("Transpose", "a", "z").out("y", "z"),
		"reshape":        n().input("a", f32, 2, 3, 4).ints("s", 0, -1).node("Reshape", "a s", "b").node("Relu", "b", "y").node("Flatten", "a", "f").node("Neg", "f", "z").out("y", "z"),
		"identity":       n().input("a", f32, 2, 3).node("Identity", "a", "y").out("y"),
		"slice":          n().input("a", f32, 4, 5, 6).ints("s", 1, -5).ints("e", 4, 100).ints("x", 0, 2).ints("t", 1, 2).node("Slice", "a s e x t", "y").out("y"),
		"slice-back":     n().input("a", f32, 4, 5, 6).ints("s", -1, 3).ints("e", -100, 0).ints("x", 0, 2).ints("t", -1, -2).node("Slice", "a s e x t", "y").out("y"),
		"concat":         n().input("a", f32, 2, 3, 4).input("b", f32, 2, 1, 4).f("w", 2, 2, 4).node("Concat", "a b w", "y", attrInt("axis", -2)).out("y"),
		"concat-int":     n().input("a", s64, 2, 3).input("b", s64, 2, 1).node("Concat", "a b", "y", attrInt("axis", 1)).output("y", s64),
		"split":          n().input("a", f32, 2, 6, 3).ints("s", 2, 4).node("Split", "a s", "y z", attrInt("axis", 1)).out("y", "z"),
		"expand":         n().input("a", f32, 3, 1).ints("s", 2, 3, 4).node("Expand", "a s", "y").out("y"),
		"tile":           n().input("a", f32, 3, 2).ints("s", 2, 3).node("Tile", "a s", "y").out("y"),
		"pad":            n().input("a", f32, 2, 3, 4).ints("p", 0, 1, 2, 1, 0, 3).scalar("v", 7).node("Pad", "a p v", "y").out("y"),
		"gather":         n().input("a", f32, 3, 7, 2).input("i", s64, 2, 2).node("Gather", "a i", "y", attrInt("axis", 1)).out("y"),
		"gather-int":     n().input("a", s64, 7, 2).input("i", s32, 3).node("Gather", "a i", "y").output("y", s64),
		"gather-scalar":  n().input("a", f32, 3, 7, 2).init("i", tensor.From([]int64{-1})).node("Gather", "a i", "y", attrInt("axis", 1)).out("y"),
		"reduce":         newSmall(13).input("a", f32, 2, 3, 4, 5).ints("x", 1, 2).node("ReduceSum", "a x", "y", attrInt("keepdims", 0)).node("ReduceMean", "a", "z", attrInts("axes", 1, 3)).node("ReduceMax", "a", "u", attrInts("axes", 0)).node("ReduceMin", "a", "v").node("ReduceL2", "a", "w", attrInts("axes", -1)).out("y", "z", "u", "v", "w"),
		"pools":          n().input("a", f32, 2, 3, 7, 6).node("MaxPool", "a", "y", attrInts("kernel_shape", 3, 2), attrInts("strides", 2, 1), attrInts("pads", 1, 0, 1, 1)).node("AveragePool", "a", "z", attrInts("kernel_shape", 3, 3), attrInts("pads", 1, 1, 1, 1)).node("AveragePool", "a", "u", attrInts("kernel_shape", 2, 2), attrInt("count_include_pad", 1), attrInts("pads", 1, 0, 0, 1)).node("MaxPool", "a", "v", attrInts("kernel_shape", 3, 3), attrInts("strides", 2, 2), attrInt("ceil_mode", 1)).node("AveragePool", "a", "t", attrInts("kernel_shape", 3, 3), attrInts("strides", 2, 2), attrInt("ceil_mode", 1), attrInt("count_include_pad", 1), attrInts("pads", 1, 1, 0, 0)).node("GlobalAveragePool", "a", "w").node("GlobalMaxPool", "a", "x").out("y", "z", "u", "v", "w", "x", "t"),
		"conv":           n().input("a", f32, 2, 4, 7, 6).f("w", 6, 2, 3, 3).f("b", 6).node("Conv", "a w b", "c", attrInt("group", 2), attrInts("strides", 2, 1), attrInts("pads", 1, 0, 2, 1), attrInts("dilations", 1, 2)).node("Relu", "c", "y").out("y"),
		"conv-same":      n().input("a", f32, 1, 3, 8, 7).f("w", 2, 3, 3, 2).f("v", 2, 3, 2, 3).node("Conv", "a w", "y", attrS("auto_pad", "SAME_UPPER"), attrInts("strides", 2, 2)).node("Conv", "a v", "z", attrS("auto_pad", "SAME_LOWER"), attrInts("strides", 2, 2)).out("y", "z"),
		"conv-1d":        n().input("a", f32, 2, 3, 9).f("w", 4, 3, 3).node("Conv", "a w", "y", attrInts("pads", 1, 1)).out("y"),
		"conv-computed":  n().input("a", f32, 1, 2, 5, 5).input("w", f32, 3, 2, 3, 3).node("Conv", "a w", "y").out("y"),
		"constant-shape": n().input("a", f32, 300, 300).node("Shape", "a", "s").node("ConstantOfShape", "s", "c").node("Add", "a c", "y").out("y"),
		"shape-math":     n().input("a", f32, 2, 3, 4).node("Shape", "a", "s").ints("i", 1).ints("m", -1).node("Gather", "s i", "d").node("Concat", "d m", "t", attrInt("axis", 0)).node("Reshape", "a t", "r").node("Relu", "r", "y").node("Cast", "d", "f", attrInt("to", 1)).node("Mul", "y f", "z").out("z"),
		"mask-mean":      n().input("a", f32, 2, 5, 4).input("m", s64, 2, 5).ints("l", -1).ints("one", 1).scalar("tiny", 1e-9).node("Abs", "m", "ma").node("Unsqueeze", "ma l", "u").node("Shape", "a", "s").node("Expand", "u s", "e").node("Cast", "e", "f", attrInt("to", 1)).node("Mul", "a f", "p").node("ReduceSum", "p one", "t", attrInt("keepdims", 0)).node("ReduceSum", "f one", "k", attrInt("keepdims", 0)).node("Clip", "k tiny", "k1").node("Div", "t k1", "y").out("y"),
		"attention-causal": n().input("q", f32, 2, 3, 32).input("k", f32, 2, 3, 32).input("v", f32, 2, 3, 16).
			node("com.microsoft:MultiHeadAttention", "q k v", "y", attrInt("num_heads", 2), attrInt("unidirectional", 1)).out("y"),
		"attention-mask": n().input("q", f32, 2, 3, 32).input("k", f32, 2, 5, 32).input("v", f32, 2, 5, 16).input("b", f32, 1, 2, 3, 5).
			node("com.microsoft:MultiHeadAttention", "q k v _ _ b", "y", attrInt("num_heads", 2), attrF("scale", .3)).out("y"),
		"biasgelu":    n().input("a", f32, 3, 4).f("b", 4).node("com.microsoft:Gelu", "a", "y").out("y"),
		"reduce-one":  newSmall(13).input("a", f32, 3, 1, 4).node("ReduceMean", "a", "y", attrInts("axes", 1), attrInt("keepdims", 0)).out("y"),
		"two-outputs": n().input("a", f32, 3, 4).node("Relu", "a", "y").ints("s", 4, 3).node("Reshape", "y s", "z").out("y", "z"),
	}
	return c
}

// TestOperators: each agrees with ONNX Runtime.
func TestOperators(t *testing.T) {
	e := opstest.Engine(t)
	for name, s := range operators() {
		t.Run(name, func(t *testing.T) { compare(t, e, s, floatTolerance) })
	}
}

func compare(t *testing.T, e engine.Engine, s *small, tol float64) *plan.Plan {
	t.Helper()
	if err := s.m.Check(); err != nil {
		t.Fatal(err)
	}
	p := planned(t, s.m, s.feeds)
	want := opstest.Run(t, e, opstest.Save(t, s.m), s.feeds)
	got, err := reference.Run(p, s.feeds)
	if err != nil {
		t.Fatalf("%v\n%v", err, p)
	}
	for name, w := range want {
		if g := got[name]; g == nil || fmt.Sprint(g.Dims) != fmt.Sprint(w.Dims) {
			t.Errorf("%s has dimensions %v, want %v", name, g, w.Dims)
		}
		if d := difference(got[name], w); d > tol {
			t.Errorf("%s differs by %.2g\n%v", name, d, p)
		}
	}
	return p
}

// TestIndex: an index outside its table is reported, not read.
func TestIndex(t *testing.T) {
	s := newSmall(17).input("a", f32, 3, 2).input("i", s64, 1).node("Gather", "a i", "y").out("y")
	s.feeds["i"] = tensor.From([]int64{3}, 1)
	if _, err := reference.Run(planned(t, s.m, s.feeds), s.feeds); !errors.Is(err, reference.ErrIndex) {
		t.Errorf("got %v", err)
	}
}

// TestUnsupported: what no kernel computes is refused by operator and name.
func TestUnsupported(t *testing.T) {
	n := func() *small { return newSmall(17) }
	for want, s := range map[string]*small{
		`CumSum "y"`:              n().input("a", f32, 3).ints("x", 0).node("CumSum", "a x", "y").out("y"),
		`Mod "y"`:                 n().input("a", s64, 3).input("b", s64, 3).node("Mod", "a b", "y").output("y", s64),
		`input "a" has type FP64`: n().input("a", tensor.Float64, 3).node("Add", "a a", "y").output("y", tensor.Float64),
		`the size of "y"`:         n().input("a", f32, 3, 2).input("s", s64, 2).node("Reshape", "a s", "y").out("y"),
		`has dimensions [3 0]`:    n().input("a", f32, 3, 2).ints("s", 1).ints("e", 1).ints("x", 1).node("Slice", "a s e x", "z").node("Relu", "z", "y").out("y"),
		`heads of 12`:             n().input("q", f32, 1, 3, 12).node("com.microsoft:MultiHeadAttention", "q q q", "y", attrInt("num_heads", 1)).out("y"),
		`(made by Slice "z")`:     n().input("a", f32, 4).input("s", s64, 1).ints("e", 4).node("Slice", "a s e", "z").node("Relu", "z", "y").out("y"),
	} {
		src, err := plan.New(s.m)
		if err == nil {
			_, err = src.Plan(dimsOf(s.feeds), plan.Options{})
		}
		if !errors.Is(err, plan.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

package graph

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"sync"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
	"google.golang.org/protobuf/proto"
)

// program builds a model from bytes: each instruction adds a node of any known
// operator with any inputs made so far and any attributes, sensible or not.
type program struct {
	data   []byte
	values []string
}

func (p *program) next() int {
	if len(p.data) == 0 {
		return 0
	}
	b := p.data[0]
	p.data = p.data[1:]
	return int(b)
}

// integer is mostly small, sometimes extreme.
func (p *program) integer() int64 {
	switch b := p.next(); {
	case b < 200:
		return int64(b%9) - 2
	case b < 210:
		return int64(b)
	default:
		return []int64{math.MaxInt64, math.MinInt64, math.MaxInt32, math.MinInt32, 1 << 38, -1 << 38, 1 << 20, 1 << 62}[b%8]
	}
}

func (p *program) integers() []int64 {
	v := make([]int64, p.next()%6)
	for i := range v {
		v[i] = p.integer()
	}
	return v
}

var (
	fuzzOps   = sync.OnceValue(allOps) // the tables are filled by init
	fuzzAttrs = []string{"axis", "axes", "perm", "to", "keepdims", "kernel_shape", "pads", "strides", "dilations", "group", "start", "end",
		"allowzero", "num_heads", "qkv_hidden_sizes", "transA", "transB", "transBatchA", "transBatchB", "blocksize", "split", "starts", "ends",
		"ceil_mode", "output_padding", "output_shape", "batch_dims", "noop_with_empty_axes", "training_mode", "spatial", "q_num_heads",
		"kv_num_heads", "N", "K", "dtype", "output_dtype", "shape", "layout", "channels_last", "value_int", "value_ints", "value", "auto_pad"}
)

func allOps() []string {
	var ops []string
	for d, rules := range shapeRules {
		if d == DomainFewbit {
			continue // a model must define these itself; see rules_fewbit_test.go
		}
		for op := range rules {
			ops = append(ops, d+":"+op)
		}
	}
	for op := range evaluators {
		ops = append(ops, ":"+op)
	}
	sort.Strings(ops)
	return slices.Compact(ops)
}

func (p *program) attr() *pb.AttributeProto {
	name := fuzzAttrs[p.next()%len(fuzzAttrs)]
	switch k := p.next(); {
	case name == "value":
		t := tensor.From([]int64{p.integer()}, 1)
		if k%2 == 0 {
			t = tensor.From([]float32{float32(p.integer())}, 1)
		}
		a, err := tensorProto("", t)
		if err != nil {
			return AttrInt(name, 1)
		}
		return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_TENSOR.Enum(), T: a}
	case name == "auto_pad":
		return AttrString(name, []string{"SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET", "other"}[k%5])
	case slices.Contains([]string{"axes", "perm", "kernel_shape", "pads", "strides", "dilations", "qkv_hidden_sizes", "split", "starts",
		"ends", "output_padding", "output_shape", "shape", "value_ints"}, name) != (k%16 == 0):
		return AttrInts(name, p.integers()...)
	}
	return AttrInt(name, p.integer())
}

func (p *program) model() *Model {
	m := &Model{IR: 8, Opsets: map[string]int64{"": int64(7 + p.next()%20), DomainMS: 1}, Graph: &Graph{
		Inputs: []*Value{
			{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: -1, Name: "n"}, {N: -1, Name: "s"}, {N: 4}}},
			{Name: "ids", Type: tensor.Int64, Dims: []Dim{{N: -1, Name: "n"}, {N: -1}}},
			{Name: "image", Type: tensor.Float32, Dims: []Dim{{N: 1}, {N: 3}, {N: 8}, {N: 8}}},
			{Name: "any", Type: tensor.Float32},
		},
		Info: map[string]*Value{},
	}}
	g := m.Graph
	set := func(name string, t *tensor.Tensor) { g.SetInit(name, t) }
	f := []float32{1, -2, .5, 4, 0, 6, -7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24}
	set("w", tensor.From(f, 4, 6))
	set("kernel", tensor.From(f, 2, 3, 2, 2))
	set("row", tensor.From(f[:4], 4))
	set("pair", tensor.From(f[:2], 2))
	set("scalar", tensor.From(f[:1]))
	set("none", tensor.From([]float32{}, 0, 3))
	set("yes", tensor.From([]bool{true, false}, 2))
	set("i0", tensor.From([]int64{p.integer()}))
	set("i1", tensor.From([]int64{p.integer()}, 1))
	v := p.integers()
	set("iv", tensor.From(v, int64(len(v))))
	v = p.integers()
	set("iw", tensor.From(v, int64(len(v))))
	set("i32", tensor.From([]int32{1, -1}, 2))
	set("half", &tensor.Tensor{Type: tensor.Float16, Dims: []int64{2}, Data: []byte{0, 0x3c, 1, 0x7c}})
	p.values = []string{"x", "ids", "image", "any"}
	p.values = append(p.values, g.Inits()...)
	for i := 0; len(p.data) > 3 && i < 40; i++ {
		ops := fuzzOps()
		op := ops[(p.next()<<8|p.next())%len(ops)]
		n := &Node{Name: fmt.Sprint("n", i)}
		for k := range op {
			if op[k] == ':' {
				n.Domain, n.Op = op[:k], op[k+1:]
			}
		}
		for range 1 + p.next()%5 {
			if b := p.next(); b%23 == 22 {
				n.Inputs = append(n.Inputs, "")
			} else {
				n.Inputs = append(n.Inputs, p.values[b%len(p.values)])
			}
		}
		for range p.next() % 4 {
			n.Attrs = append(n.Attrs, p.attr())
		}
		outs := 1
		if b := p.next(); b%4 == 0 {
			outs = 1 + b%3
		}
		for k := range outs {
			o := fmt.Sprint("v", i, "_", k)
			n.Outputs = append(n.Outputs, o)
			p.values = append(p.values, o)
		}
		g.Nodes = append(g.Nodes, n)
	}
	g.Outputs = []*Value{{Name: p.values[len(p.values)-1]}}
	return m
}

// FuzzPasses: no operator, attribute or shape makes a pass fail, grow the model
// without bound or contradict itself.
func FuzzPasses(f *testing.F) {
	f.Add([]byte{10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30})
	for s := range byte(8) {
		b := make([]byte, 400)
		x := uint32(s) + 1
		for i := range b {
			x = x*1664525 + 1013904223
			b[i] = byte(x >> 24)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := &program{data: data}
		m := p.model()
		if err := m.Check(); err != nil {
			t.Fatal(err)
		}
		weights := m.weightBytes()
		MACs(m, map[string]int64{"n": 2, "s": 5, "ids[1]": 5, "x[2]": math.MaxInt64})
		LiftConstants(m)
		DropIdentities(m)
		inferred := infer(m, nil, false)
		dims := map[string]Value{}
		for k, v := range inferred.vals {
			dims[k] = v
		}
		FoldConstants(m)
		for _, name := range m.Graph.Inits() {
			v, ok := dims[name]
			if got := m.Graph.Init(name); ok && !agrees(v, got) {
				t.Fatalf("%s folded to %v%v, inferred %s", name, got.Type, got.Dims, (&v).String())
			}
		}
		FoldBatchNorm(m)
		FoldChannelScales(m)
		InferShapes(m)
		if err := m.Check(); err != nil {
			t.Fatalf("%v\n%s", err, m.Text())
		}
		if got := m.weightBytes(); got > foldSlackBytes+(1+foldGrowth)*weights {
			t.Fatalf("%d bytes of weights became %d", weights, got)
		}
		reread(t, m)
	})
}

// agrees reports whether a tensor is what was inferred, as far as it was.
func agrees(v Value, t *tensor.Tensor) bool {
	if v.Type != tensor.Undefined && v.Type != t.Type {
		return false
	}
	if v.Dims == nil {
		return true
	}
	if len(v.Dims) != len(t.Dims) {
		return false
	}
	for i, d := range v.Dims {
		if d.N >= 0 && d.N != t.Dims[i] {
			return false
		}
	}
	return true
}

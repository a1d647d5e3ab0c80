// Package opstest generates small models for tests of quantization and of the
// executor: encoders and convolutional networks as exporters write them, in
// FP32 and in the native form of docs/ops.md, with inputs to feed them. Equal
// settings give equal models, weight by weight.
package opstest

import (
	"math"
	"math/rand/v2"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// The versions that the models declare: LayerNormalization exists since opset
// 17, functions of the model's own since IR 8.
const (
	opset = 17
	ir    = 8
)

// builder appends nodes and initializers to one model.
type builder struct {
	m *graph.Model
	r *rand.Rand
}

func newBuilder(name string, seed uint64) *builder {
	return &builder{
		m: &graph.Model{IR: ir, Opsets: map[string]int64{graph.DomainONNX: opset}, Metadata: map[string]string{},
			Graph: &graph.Graph{Name: name, Info: map[string]*graph.Value{}}},
		r: rand.New(rand.NewPCG(seed, 0)),
	}
}

// dim is a size, or a symbolic name.
type dim any

func value(name string, t tensor.DType, dims ...dim) *graph.Value {
	v := &graph.Value{Name: name, Type: t, Dims: []graph.Dim{}}
	for _, d := range dims {
		if s, ok := d.(string); ok {
			v.Dims = append(v.Dims, graph.Dim{N: -1, Name: s})
		} else {
			v.Dims = append(v.Dims, graph.Dim{N: int64(d.(int))})
		}
	}
	return v
}

func (b *builder) input(name string, t tensor.DType, dims ...dim) {
	b.m.Graph.Inputs = append(b.m.Graph.Inputs, value(name, t, dims...))
}

func (b *builder) output(name string, dims ...dim) {
	b.m.Graph.Outputs = append(b.m.Graph.Outputs, value(name, tensor.Float32, dims...))
}

// op appends a standard operator with one output, which gets the node's name,
// and returns that. in holds value names separated by spaces.
func (b *builder) op(op, name, in string, attrs ...*pb.AttributeProto) string {
	b.m.Graph.Nodes = append(b.m.Graph.Nodes, graph.NewNode(graph.DomainONNX, op, name, strings.Fields(in), []string{name}, attrs...))
	return name
}

// ints adds an INT64 vector, scalar a scalar.
func (b *builder) ints(name string, v ...int64) string {
	b.m.Graph.SetInit(name, tensor.From(v, int64(len(v))))
	return name
}

func (b *builder) scalar(name string, v float32) string {
	b.m.Graph.SetInit(name, tensor.From([]float32{v}))
	return name
}

// normal adds an FP32 tensor of independent N(mean, std^2) values.
func (b *builder) normal(name string, mean, std float64, dims ...int64) string {
	n := int64(1)
	for _, d := range dims {
		n *= d
	}
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(mean + std*b.r.NormFloat64())
	}
	b.m.Graph.SetInit(name, tensor.From(x, dims...))
	return name
}

// fanIn is the standard deviation of weights whose products with unit inputs
// have unit variance.
func fanIn(k int) float64 { return 1 / math.Sqrt(float64(k)) }

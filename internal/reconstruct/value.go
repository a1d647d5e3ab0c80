package reconstruct

import (
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// value declares an input of a graph.
func value(name string, dims []int64) *graph.Value {
	v := &graph.Value{Name: name, Type: tensor.Float32, Dims: []graph.Dim{}}
	for _, d := range dims {
		v.Dims = append(v.Dims, graph.Dim{N: d})
	}
	return v
}

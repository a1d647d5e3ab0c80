package graph

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestUnload: weights read the same after their pages were let go, in a clone
// too, and unloading a closed model does nothing.
func TestUnload(t *testing.T) {
	w := make([]float32, 1<<16)
	for i := range w {
		w[i] = float32(i)
	}
	in := []*Value{{Name: "x", Type: tensor.Float32, Dims: []Dim{{N: 1 << 16}}}}
	out := []*Value{{Name: "y", Type: tensor.Float32, Dims: []Dim{{N: 1 << 16}}}}
	m := &Model{IR: 8, Opsets: map[string]int64{"": 17}, Graph: &Graph{Name: "g", Inputs: in, Outputs: out, Nodes: []*Node{NewNode("", "Add", "a", []string{"x", "w"}, []string{"y"})}}}
	m.Graph.SetInit("w", tensor.From(w, 1<<16))
	m.Unload() // not from a file
	path := filepath.Join(t.TempDir(), "m.onnx")
	for _, external := range []bool{false, true} {
		if err := m.Save(path, onnx.SaveOptions{External: external}); err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		c := f.Clone()
		for _, v := range []*Model{f, c, f} {
			v.Unload()
			if !bytes.Equal(v.Graph.Init("w").Data, m.Graph.Init("w").Data) {
				t.Fatal("the weights changed")
			}
		}
		f.Close()
		f.Unload()
		c.Unload()
	}
}

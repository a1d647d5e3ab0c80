package reconstruct

import (
	"fmt"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Blocks end where one value carries everything that quantization changes; chains are
// cut into runs of three; masks do not count.
func TestSegments(t *testing.T) {
	g := &graph.Graph{Inputs: []*graph.Value{value("x", nil), value("ids", nil)}, Outputs: []*graph.Value{{Name: "y"}}}
	add := func(op, in, out string) {
		g.Nodes = append(g.Nodes, graph.NewNode("", op, out, strings.Fields(in), []string{out}))
	}
	for _, c := range "abcdefgh" {
		g.SetInit("w"+string(c), tensor.From([]float32{1}, 1))
	}
	add("Cast", "ids", "mask")
	add("Conv", "x wa", "a")
	add("Relu", "a", "ar")
	add("Conv", "ar wb", "b")
	add("Conv", "b wc", "c")
	add("Conv", "c wd", "d") // begins a new run
	add("Conv", "d we", "e")
	add("Relu", "e", "er")
	add("Conv", "er wf", "f")
	add("Add", "f d", "s")
	add("Relu", "s", "sr")
	add("Shape", "sr", "size")
	add("Conv", "sr wg", "g")
	add("Mul", "g mask", "m")
	add("Reshape", "m size", "n")
	add("MatMul", "n wh", "y")
	var got []string
	for _, s := range Segments(g, func(n *graph.Node) bool { return n.Op == "Conv" || n.Op == "MatMul" }, func(string) bool { return false }) {
		names := ""
		for _, n := range s.Nodes {
			names += n.Name + " "
		}
		got = append(got, fmt.Sprintf("%s| %v -> %v carry %v", names, s.In, s.Outs, s.Carry))
	}
	want := []string{
		"mask a ar b c | [ids x] -> [c] carry [mask]",
		"d | [c] -> [d] carry []",
		"e er f s sr size | [d] -> [sr] carry [size]",
		"g m n y | [sr mask size] -> [y] carry []",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("segments\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

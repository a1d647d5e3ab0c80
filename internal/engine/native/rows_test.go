package native

import (
	"fmt"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
)

// TestRowsOfManyPaths: what a value is made of is looked at once, however many paths
// lead there.
func TestRowsOfManyPaths(t *testing.T) {
	g, v := &graph.Graph{}, "x"
	for i := range maxSteps - 1 {
		y := fmt.Sprint("y", i)
		g.Nodes = append(g.Nodes, graph.NewNode("", "Add", y, []string{v, v}, []string{y}))
		v = y
	}
	l := &lowering{m: &graph.Model{Graph: g}, ix: g.Index()}
	done := make(chan bool, 1)
	go func() { done <- l.hasRowsOf(v, "x") && !l.hasRowsOf(v, "z") }()
	select {
	case ok := <-done:
		if !ok {
			t.Fatal("sums of x have the rows of x, and of nothing else")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("walks all paths")
	}
}

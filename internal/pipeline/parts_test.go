package pipeline

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// deep is a network of layers with a skip connection over all of them.
func deep(layers int) *graph.Model {
	const width = 64
	m := newModel([]*graph.Value{value("x", -1, width)}, []*graph.Value{value("y", -1, width)})
	r := rand.New(rand.NewPCG(3, 0))
	at := "x"
	for i := range layers {
		w, h, a := fmt.Sprint("w", i), fmt.Sprint("h", i), fmt.Sprint("a", i)
		m.Graph.SetInit(w, tensor.From(gauss(r, width*width, .2), width, width))
		m.Graph.Nodes = append(m.Graph.Nodes, node("MatMul", h, at+" "+w, h), node("Relu", a, h, a))
		at = a
	}
	m.Graph.Nodes = append(m.Graph.Nodes, node("Add", "skip", at+" h0", "y"))
	return m
}

// TestParted: a model in parts gives what the whole gives, to several callers at once,
// and lets go of weights before a part would make them more than fits.
func TestParted(t *testing.T) {
	const layers, layer = 6, 64 * 64 * 4
	p := testPipeline(t)
	lab, err := NewLab(p.Engine, 1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	m, taps, ctx := deep(layers), []string{"h2", "a5"}, t.Context()
	whole, err := lab.Open(ctx, m, taps, engine.Options{Lean: true}) // as parts are: the same sums
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	released := 0
	lab.limits = &limits{room: &mappedRoom{part: layer, bytes: 2 * layer, release: func() { released++ }}}
	s, err := lab.Open(ctx, m, taps, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := s.(*parted); !ok || len(k.parts) != layers {
		t.Fatalf("opened as %T, want %d parts", s, layers)
	}
	if got, want := fmt.Sprint(s.Spec()), fmt.Sprint(whole.Spec()); got != want {
		t.Errorf("it has\n%s, the whole\n%s", got, want)
	}
	feeds := engine.Feeds{"x": tensor.From(gauss(rand.New(rand.NewPCG(4, 0)), 3*64, 1), 3, 64)}
	run := func(s engine.Session, outs ...string) string {
		r, err := s.Run(ctx, feeds, outs)
		if err != nil {
			t.Error(err)
			return ""
		}
		defer r.Close()
		var b strings.Builder
		for _, name := range sortedKeys(r.Tensors()) {
			v, _ := r.Tensors()[name].F32()
			fmt.Fprintln(&b, name, v)
		}
		return b.String()
	}
	want := run(whole)
	if got := run(s); got != want || strings.Count(got, "\n") != 3 {
		t.Errorf("in parts:\n%swant\n%s", got, want)
	}
	if released != layers/2-1 {
		t.Errorf("weights were let go of %d times in a run, want %d", released, layers/2-1)
	}
	if got, want := run(s, "h2"), run(whole, "h2"); got != want {
		t.Errorf("one output:\n%swant\n%s", got, want)
	}
	lab.limits.room.release = func() {}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if got := run(s); got != want {
				t.Errorf("beside others:\n%swant\n%s", got, want)
			}
		})
	}
	wg.Wait()
	if _, err := s.Run(ctx, engine.Feeds{"x": tensor.From([]float32{1}, 1)}, nil); !errors.Is(err, engine.ErrInput) {
		t.Errorf("an input of another shape: %v", err)
	}
	if _, err := s.Run(ctx, feeds, []string{"none"}); !errors.Is(err, engine.ErrInput) {
		t.Errorf("an output that there is not: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Run(ctx, feeds, nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	// What the engine refuses in parts it may take as a whole.
	odd := deep(layers)
	i := slices.IndexFunc(odd.Graph.Nodes, func(n *graph.Node) bool { return n.Name == "h3" })
	odd.Graph.Nodes[i] = graph.NewNode("nobody", "Knows", "h3", odd.Graph.Nodes[i].Inputs, []string{"h3"})
	if _, err := lab.Open(ctx, odd, nil, engine.Options{}); !errors.Is(err, engine.ErrModel) || strings.Contains(err.Error(), "part") {
		t.Errorf("an operator that the engine does not know: %v", err)
	}
}

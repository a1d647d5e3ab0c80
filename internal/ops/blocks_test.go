package ops

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

func randomBlocks(r *rand.Rand, k, n int) (codes []uint8, steps []int8) {
	codes, steps = make([]uint8, k/2*n), make([]int8, k/BlockRows*n)
	for i := range codes {
		codes[i] = uint8(r.Uint32())
	}
	for i := range steps {
		steps[i] = int8(r.IntN(2*MaxStep+1) - MaxStep)
	}
	return codes, steps
}

// expandModel is an ExpandBlocks with its operands as constants, or as inputs where
// the runtime is not to fold it.
func expandModel(t *testing.T, opset int64, codes []uint8, steps []int8, k, n int64, constant bool) *graph.Model {
	t.Helper()
	v := func(name string, ty tensor.DType) *graph.Value { return &graph.Value{Name: name, Type: ty} }
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": opset}, Metadata: map[string]string{}, Graph: &graph.Graph{Name: "blocks", Info: map[string]*graph.Value{},
		Outputs: []*graph.Value{v("w", tensor.Int8)},
		Nodes:   []*graph.Node{graph.NewNode(Domain, OpExpandBlocks, "expand", []string{"codes", "steps"}, []string{"w"})}}}
	if constant {
		m.Graph.SetInit("codes", tensor.From(codes, k/BlockRows, BlockRows/2, n))
		m.Graph.SetInit("steps", tensor.From(steps, k/BlockRows, 1, n))
	} else {
		m.Graph.Inputs = []*graph.Value{v("codes", tensor.Uint8), v("steps", tensor.Int8)}
	}
	if err := Install(m, OpExpandBlocks); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestExpandBlocks by hand: which nibble is which row, and a negative step.
func TestExpandBlocks(t *testing.T) {
	codes, steps := make([]uint8, 2*16*2), []int8{1, -15, 2, 0}
	for i := range codes {
		codes[i] = 0x88 // zeros
	}
	codes[0*2+0] = 0x0f  // block 0: row 0 is 15, row 16 is 0, of column 0
	codes[15*2+1] = 0xf0 // row 15 is 0, row 31 is 15, of column 1
	codes[16*2+0] = 0x9a // block 1: row 32 is 10, row 48 is 9, of column 0
	codes[31*2+1] = 0x0f // of column 1, whose step is 0
	w, err := ExpandBlocks(codes, steps, 64, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]int8, 64*2)
	want[0], want[16*2], want[15*2+1], want[31*2+1], want[32*2], want[48*2] = 7, -8, 120, -105, 4, 2
	if !slices.Equal(w, want) {
		t.Errorf("%v, want %v", w, want)
	}
}

// TestPackBlocks: packed codes with steps of 1 expand to themselves.
func TestPackBlocks(t *testing.T) {
	const k, n = 96, 5
	r := rand.New(rand.NewPCG(1, 1))
	q := make([]int8, k*n)
	for i := range q {
		q[i] = int8(r.IntN(16) - 8)
	}
	codes, err := PackBlocks(q, k, n)
	if err != nil {
		t.Fatal(err)
	}
	w, err := ExpandBlocks(codes, slices.Repeat([]int8{1}, k/BlockRows*n), k, n)
	if err != nil || !slices.Equal(w, q) {
		t.Errorf("%v: the codes are others", err)
	}
	for _, bad := range []int8{-9, 8} {
		q[7] = bad
		if _, err := PackBlocks(q, k, n); !errors.Is(err, ErrValue) {
			t.Errorf("code %d: %v", bad, err)
		}
	}
	if _, err := PackBlocks(q, k+1, n); !errors.Is(err, ErrShape) {
		t.Errorf("rows that are no blocks: %v", err)
	}
}

// TestExpandBody: over every opset the body gives the reference's weight, folded and
// not.
func TestExpandBody(t *testing.T) {
	e := ortEngine(t)
	r := rand.New(rand.NewPCG(3, 3))
	for opset := int64(MinOpset); opset <= 22; opset++ {
		k, n := BlockRows*(1+r.IntN(3)), 1+r.IntN(20)
		codes, steps := randomBlocks(r, k, n)
		want, err := ExpandBlocks(codes, steps, k, n)
		if err != nil {
			t.Fatal(err)
		}
		for _, constant := range []bool{false, true} {
			feeds := engine.Feeds{}
			if !constant {
				feeds["codes"], feeds["steps"] = tensor.From(codes, int64(k/BlockRows), BlockRows/2, int64(n)), tensor.From(steps, int64(k/BlockRows), 1, int64(n))
			}
			res, err := open(t, e, expandModel(t, opset, codes, steps, int64(k), int64(n), constant)).Run(context.Background(), feeds, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := res.Tensors()["w"]
			if !slices.Equal(got.Dims, []int64{int64(k), int64(n)}) || !slices.Equal(tensor.View[int8](got), want) {
				t.Errorf("opset %d, constant %v: %v and other weights", opset, constant, got.Dims)
			}
			res.Close()
		}
	}
}

// TestExpandWeights: the node becomes its result; operands that do not fit are
// refused.
func TestExpandWeights(t *testing.T) {
	const k, n = 64, 3
	codes, steps := randomBlocks(rand.New(rand.NewPCG(4, 4)), k, n)
	want, err := ExpandBlocks(codes, steps, k, n)
	if err != nil {
		t.Fatal(err)
	}
	m := expandModel(t, 17, codes, steps, k, n, true)
	if err := ExpandWeights(m); err != nil {
		t.Fatal(err)
	}
	if w := m.Graph.Init("w"); len(m.Graph.Nodes) != 0 || w == nil || !slices.Equal(w.Dims, []int64{k, n}) || !slices.Equal(tensor.View[int8](w), want) {
		t.Errorf("%d nodes, %v", len(m.Graph.Nodes), w)
	}
	set := func(name string, v *tensor.Tensor) func(m *graph.Model) {
		return func(m *graph.Model) { m.Graph.SetInit(name, v) }
	}
	for what, tc := range map[string]struct {
		edit func(m *graph.Model)
		want error
	}{
		"codes of other rows":    {set("codes", tensor.From(codes, 1, 2*BlockRows/2, n)), ErrShape},
		"codes of rank 2":        {set("codes", tensor.From(codes, k/2, n)), ErrShape},
		"codes of another type":  {set("codes", tensor.From(make([]int8, len(codes)), k/BlockRows, BlockRows/2, n)), ErrShape},
		"steps of other columns": {set("steps", tensor.From(make([]int8, 2), k/BlockRows, 1, 1)), ErrShape},
		"no block": {func(m *graph.Model) {
			set("codes", tensor.From([]uint8{}, 0, BlockRows/2, n))(m)
			set("steps", tensor.From([]int8{}, 0, 1, n))(m)
		}, ErrShape},
		"a step out of range": {set("steps", tensor.From(slices.Repeat([]int8{MaxStep + 1}, k/BlockRows*n), k/BlockRows, 1, n)), ErrValue},
		"no constant":         {func(m *graph.Model) { m.Graph.Nodes[0].Inputs[1] = "fed" }, ErrShape},
		"one operand":         {func(m *graph.Model) { m.Graph.Nodes[0].Inputs = m.Graph.Nodes[0].Inputs[:1] }, ErrShape},
	} {
		m := expandModel(t, 17, codes, steps, k, n, true)
		tc.edit(m)
		if err := ExpandWeights(m); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, rows := range []int{0, 31, 33, MaxK + BlockRows} {
		if _, err := ExpandBlocks(codes, steps, rows, n); !errors.Is(err, ErrShape) {
			t.Errorf("%d rows: %v", rows, err)
		}
	}
}

// TestInstallBlocks: the function is there where it was asked for, and is verified.
func TestInstallBlocks(t *testing.T) {
	m := expandModel(t, 17, make([]uint8, 16), make([]int8, 1), BlockRows, 1, true)
	if err := Verify(m); err != nil || len(m.Functions()) != 3 {
		t.Errorf("%d functions, %v", len(m.Functions()), err)
	}
	m.Function(Domain, OpExpandBlocks).Node[0].OpType = new(string)
	if err := Verify(m); !errors.Is(err, ErrBody) {
		t.Errorf("another body: %v", err)
	}
}

package plan_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan/reference"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// fuzzWork bounds the multiplications that the fuzz test interprets.
const fuzzWork = 1 << 20

// FuzzPlan: whatever the file says, planning does not panic, and a plan that it
// makes stays within its buffers (the interpreter checks every access).
func FuzzPlan(f *testing.F) {
	add := func(m *graph.Model) {
		p, err := m.Proto()
		if err != nil {
			f.Fatal(err)
		}
		data, err := proto.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, byte(2), byte(5))
	}
	bert := opstest.BERT{Layers: 1, Hidden: 16, Heads: 2, FFN: 16, Vocab: 12, Positions: 8, Head: opstest.MeanPool}
	add(opstest.Native(f, bert.Model(), quant.INT8Dynamic))
	add(opstest.Native(f, opstest.CNN{Size: 8, Channels: 4, Blocks: 1, Classes: 3}.Model(), quant.INT8))
	for _, s := range operators() {
		add(s.m)
	}
	add(newSmall(17).input("i", s64, 2, 5).blocks("w", 7, 32, 16, "i", "a").coded("v", 5, 32, "i", "b").node("Add", "a b", "y").out("y").m)
	f.Fuzz(func(t *testing.T, data []byte, n, k byte) { fuzzOne(t, data, n, k) })
}

// fuzzOne reports whether a plan was made, and whether it was run.
func fuzzOne(t *testing.T, data []byte, n, k byte) (planned, ran bool) {
	var p pb.ModelProto
	if proto.Unmarshal(data, &p) != nil {
		return planned, ran
	}
	m, err := graph.FromProto(&p)
	if err != nil || m.Check() != nil {
		return planned, ran
	}
	src, err := plan.New(m)
	if err != nil {
		return planned, ran
	}
	feeds := map[string]*tensor.Tensor{}
	for i, v := range m.Graph.Inputs {
		dims := []int64{}
		for k2, d := range v.Dims {
			if d.N < 0 {
				d.N = 1 + int64([]byte{n, k}[(i+k2)&1]%8)
			}
			dims = append(dims, d.N)
		}
		if c, err := tensor.Elems(dims); err != nil || c > 1<<12 || v.Type == tensor.String {
			return planned, ran
		}
		x, err := tensor.New(v.Type, dims...)
		if err != nil {
			return planned, ran
		}
		feeds[v.Name] = x
	}
	pl, err := src.Plan(dimsOf(feeds), plan.Options{MaxArena: 1 << 22})
	if err != nil {
		if !errors.Is(err, plan.ErrUnsupported) && !errors.Is(err, plan.ErrLimit) && !errors.Is(err, graph.ErrInvalid) {
			t.Errorf("%v", err)
		}
		return planned, ran
	}
	check(t, pl)
	planned = true
	work := int64(0)
	for _, s := range pl.Steps {
		work += reference.Work(s)
	}
	for _, b := range pl.Buffers {
		work += b.Bytes
	}
	if work > fuzzWork {
		return planned, ran
	}
	if _, err := reference.Run(pl, feeds); err != nil && !errors.Is(err, reference.ErrIndex) && !strings.Contains(err.Error(), "type") {
		t.Errorf("%v\n%v", err, pl)
	}
	return planned, true
}

// TestLimits: a model cannot ask for more than the limits.
func TestLimits(t *testing.T) {
	s := newSmall(17).input("a", f32, 300).node("Relu", "a", "y").out("y")
	src, err := plan.New(s.m)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.Plan(dimsOf(s.feeds), plan.Options{MaxArena: 2048}); !errors.Is(err, plan.ErrLimit) {
		t.Errorf("arena: %v", err)
	}
	if _, err := src.Plan(map[string][]int64{"a": {1 << 37}}, plan.Options{}); !errors.Is(err, plan.ErrUnsupported) {
		t.Errorf("dimension: %v", err)
	}
	for _, dims := range []map[string][]int64{{}, {"a": {2, 3}}, {"a": {0}}, {"a": {-1}}} {
		if _, err := src.Plan(dims, plan.Options{}); !errors.Is(err, plan.ErrUnsupported) {
			t.Errorf("%v: %v", dims, err)
		}
	}
	long := newSmall(17).input("a", f32, 3)
	last := "a"
	for i := range plan.MaxSteps + 1 {
		next := fmt.Sprint("n", i)
		long.node("Neg", last, next)
		last = next
	}
	long.m.Graph.Nodes[len(long.m.Graph.Nodes)-1].Outputs[0] = "y"
	long.out("y")
	if src, err = plan.New(long.m); err == nil {
		_, err = src.Plan(dimsOf(long.feeds), plan.Options{})
	}
	if !errors.Is(err, plan.ErrLimit) {
		t.Errorf("steps: %v", err)
	}
}

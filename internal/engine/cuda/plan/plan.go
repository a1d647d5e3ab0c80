// Package plan turns a model and the sizes of its inputs into a list of kernel
// calls: which entries of cuda/fewbit_cuda.h run, in which order, on which
// bytes of one arena. It needs no GPU and no cgo; the engine above executes
// plans, package reference interprets them in plain Go.
//
// Planning has five parts. Source brings the model into one form once (constants
// folded, decomposed operators recognised). For each set of input shapes the
// graph's dimensions become numbers and what it computes from them alone is
// evaluated on the host (rewrite.go). Groups of nodes that one kernel computes
// are found from their last node backwards (group.go). The nodes left are
// emitted in order, each value in the layout its readers want (build.go and the
// files by family). Unread steps are dropped and buffers get offsets by their
// lifetimes (arena.go).
package plan

import (
	"errors"
	"fmt"
	"sync"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Errors of this package.
var (
	// ErrUnsupported: the model holds an operator, or a form of one, that no
	// kernel computes. The text names operator and node.
	ErrUnsupported = errors.New("not supported by the CUDA executor")
	// ErrLimit: the plan would pass a limit below.
	ErrLimit = errors.New("model exceeds a limit of the CUDA executor")
)

// Limits on what a model can ask for.
const (
	// MaxSteps bounds the kernel calls of a plan. BERT-large needs 250.
	MaxSteps = 8192
	// MaxNodes bounds the graph that is planned.
	MaxNodes = 65536
	// MaxArena is the default bound on the arena, in bytes.
	MaxArena = 16 << 30
	// MaxWeights bounds the bytes of all weights of a plan.
	MaxWeights = 64 << 30
	// MaxDim bounds one dimension: kernels count rows in 32 bits.
	MaxDim = 1<<31 - 1
)

// Align is the alignment of every buffer in bytes: what TMA descriptors and
// 128-byte lines want.
const Align = 256

// Options choose among equivalent plans.
type Options struct {
	// Scores is how attention multiplies: F32 (plain fma), F16 or S8.
	Scores Type
	// Products is how float products and convolutions multiply, those with INT8 or
	// INT4 weights excepted, and groups of fewer than tensorFilters filters.
	Products Arithmetic
	// KeepInputs leaves the inputs in memory to the end, for somebody who reads
	// them besides the steps.
	KeepInputs bool
	// Workspace returns the scratch bytes that a step needs on the device; nil
	// means none.
	Workspace func(Step) int64
	// MaxArena bounds the arena; 0 is the package's default.
	MaxArena int64
}

// Kind says where a buffer lies.
type Kind uint8

// The kinds.
const (
	// Null is buffer 0 only.
	Null Kind = iota
	// Arena: in the arena, at Offset.
	Arena
	// Weight: uploaded, or made by an Init step, once for all plans of a Source.
	Weight
	// Staging: a weight that only Init steps read.
	Staging
	// Workspace: scratch memory of the entry Key, which all plans that run one
	// after the other may share and nothing else. Zeros at first: some entries
	// keep counters there, which each run leaves as zeros.
	Workspace
)

// Buffer is device memory of a plan.
type Buffer struct {
	Kind  Kind
	Bytes int64
	Name  string // the graph's value, for people
	// Offset into the arena; First and Last are the steps that write it first
	// and use it last (inputs: -1, outputs: len(Steps)).
	Offset      int64
	First, Last int
	// Key names the contents of a weight: equal keys mean equal bytes, in every
	// plan of the Source. Of a workspace it is the entry.
	Key string
	// Fill returns a weight's bytes, nil where an Init step makes them. The
	// slice may alias the model's file.
	Fill func() []byte
}

// Binding is an input or output of the model.
type Binding struct {
	Name  string
	Type  tensor.DType
	Dims  []int64
	Ref   Ref
	Bytes int64
}

// Plan is what one model does for one set of input shapes. It is immutable and
// may be shared.
type Plan struct {
	Buffers         []Buffer // [0] is NULL
	Inputs, Outputs []Binding
	// Init makes weights from staged ones; each step once per Source.
	Init []Step
	// Steps run in order on one stream.
	Steps []Step
	// Arena is its size in bytes.
	Arena int64
	// Fault is an int32 that the engine zeroes before the steps: 1 afterwards
	// means an index outside its table. NULL when no step can set it.
	Fault Ref
	// Nodes of the graph, and how many of them needed no kernel: evaluated on the
	// host, or recognised as part of another operator.
	Nodes, Folded int
}

// Source is a model prepared for planning. Plan may be called from many
// goroutines; the model must stay open.
type Source struct {
	m *graph.Model
	// checked holds the weights (*tensor.Tensor) whose w_sum is right: looking
	// at each takes longer than all the rest of planning.
	checked sync.Map
}

// New prepares m, which is not changed.
func New(m *graph.Model) (*Source, error) {
	if len(m.Graph.Nodes) > MaxNodes {
		return nil, fmt.Errorf("%w: %d nodes, at most %d", ErrLimit, len(m.Graph.Nodes), MaxNodes)
	}
	if err := ops.Verify(m); err != nil { // kernels stand for the specified bodies only
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	m = m.Clone()
	graph.LiftConstants(m)
	if err := ops.ExpandWeights(m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnsupported, err)
	}
	graph.DropIdentities(m)
	expand(m)
	graph.FoldConstants(m)
	m.Graph.Prune()
	if err := m.Check(); err != nil {
		return nil, err
	}
	return &Source{m: m}, nil
}

// Plan plans the model for inputs of the given dimensions.
func (s *Source) Plan(inputs map[string][]int64, o Options) (*Plan, error) {
	if o.MaxArena == 0 {
		o.MaxArena = MaxArena
	}
	m, err := concrete(s.m, inputs)
	if err != nil {
		return nil, err
	}
	b := newBuilder(m, o)
	b.checked = &s.checked
	b.plan.Nodes, b.plan.Folded = len(s.m.Graph.Nodes), len(s.m.Graph.Nodes)-len(m.Graph.Nodes)
	for _, name := range s.m.Graph.Inits() {
		b.original[s.m.Graph.Init(name)] = name
	}
	if err := b.run(); err != nil {
		return nil, err
	}
	return b.plan, nil
}

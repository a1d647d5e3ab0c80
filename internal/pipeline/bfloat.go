package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Precision of the float model's products while it is observed.
type Precision string

// The precisions. BF16 rounds both operands of a product with a constant weight
// to 8 significant bits and sums in FP32 (operator fewbit.MatMulBF16): half the
// instructions of FP32. Everything else stays FP32.
const (
	AutoPrecision Precision = "auto" // BF16 where the processor has it
	FP32          Precision = "fp32"
	BF16          Precision = "bf16" // or fail
)

// Check returns ErrPrecision unless p is one of the above or empty.
func (p Precision) Check() error {
	switch p {
	case "", AutoPrecision, FP32, BF16:
		return nil
	}
	return fmt.Errorf("%w: %q: expected %s, %s or %s", ErrPrecision, p, AutoPrecision, FP32, BF16)
}

// ErrPrecision: no such precision, or not on this machine.
var ErrPrecision = errors.New("precision not available")

// bf16Engine is an engine with products in BF16.
type bf16Engine interface {
	// BF16 reports whether this processor has them, and if not, why.
	BF16() (ok bool, why string)
	// BF16Size is the size in bytes of a packed weight [k,n], 0 when it cannot be.
	BF16Size(k, n int) int
	PackBF16(w []float32, k, n int, to []byte, threads int) error
	// AddGramBF16 is quant.Algebra's AddGram of x rounded to BF16; packed is memory
	// for it, of BF16Size(rows of x, k) bytes.
	AddGramBF16(sum, x []float32, k int, packed []byte, threads int) error
}

// resolve returns FP32 or BF16, and the engine that has the latter.
func (p Precision) resolve(e engine.Engine) (Precision, bf16Engine, error) {
	if err := p.Check(); err != nil {
		return "", nil, err
	}
	if p == FP32 {
		return FP32, nil, nil
	}
	b, ok := e.(bf16Engine)
	why := "the engine " + e.Name() + " has no such products"
	if ok {
		ok, why = b.BF16()
	}
	switch {
	case ok:
		return BF16, b, nil
	case p == BF16:
		return "", nil, fmt.Errorf("%w: %s: %s", ErrPrecision, p, why)
	}
	return FP32, nil, nil
}

// The operator of libfewbit_cpu that rewritten products become.
const (
	domainFewbit = "fewbit"
	opMatMulBF16 = "MatMulBF16"
)

// minProduct is the number of weights from which a product is worth it.
const minProduct = 4096

// openBF16 is Open for a model whose outputs are observed: products with a
// constant weight run in BF16, with the bias and the GELU behind them where
// nobody else reads what lies between. Weights are packed outside Go's heap and
// given back as soon as the engine has them.
func (l *Lab) openBF16(ctx context.Context, e bf16Engine, m *graph.Model, taps []string, o engine.Options) (engine.Session, error) {
	w := bf16Writer{m: Tapped(m.Clone(), taps), e: e, threads: cmp.Or(l.Threads, engine.AvailableCPUs())}
	defer w.free()
	if err := w.rewrite(ctx); err != nil {
		return nil, err
	}
	return l.Open(ctx, w.m, nil, o)
}

type bf16Writer struct {
	m       *graph.Model
	e       bf16Engine
	threads int
	packed  map[string]string // weight -> its packed form
	names   graph.Namer
	maps    [][]byte
}

func (w *bf16Writer) free() {
	for _, b := range w.maps {
		_ = unix.Munmap(b) // our own mapping
	}
	w.maps = nil
}

func (w *bf16Writer) rewrite(ctx context.Context) error {
	g := w.m.Graph
	ix := g.Index()
	w.packed, w.names = map[string]string{}, g.Namer()
	gone := map[*graph.Node]bool{}
	for _, n := range g.Nodes {
		t := g.Init(n.In(1))
		if !n.Is("MatMul") || t == nil || t.Type != tensor.Float32 || len(t.Dims) != 2 || t.Len() < minProduct || g.Init(n.In(0)) != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		k, cols := int(t.Dims[0]), int(t.Dims[1])
		packed, err := w.pack(n.In(1), t, k, cols)
		if err != nil {
			return err
		}
		if packed == "" {
			continue
		}
		n.Domain, n.Op, n.Attrs = domainFewbit, opMatMulBF16, nil
		n.Attrs = append(n.Attrs, graph.AttrInt("N", int64(cols)))
		n.Inputs[1] = packed
		w.epilogue(n, int64(cols), ix, gone)
	}
	g.Nodes = slices.DeleteFunc(g.Nodes, func(n *graph.Node) bool { return gone[n] })
	w.m.Require(domainFewbit, 1)
	if err := g.Sort(); err != nil {
		return err
	}
	g.Prune()
	return nil
}

// pack returns the name of the packed weight, "" when it has no packed form.
func (w *bf16Writer) pack(name string, t *tensor.Tensor, k, n int) (string, error) {
	if p, ok := w.packed[name]; ok {
		return p, nil
	}
	size := w.e.BF16Size(k, n)
	if size == 0 {
		return "", nil
	}
	v, err := t.F32()
	if err != nil {
		return "", fmt.Errorf("weight %q: %w", name, err)
	}
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return "", fmt.Errorf("%w: %d bytes for a packed weight: %w", engine.ErrMemory, size, err)
	}
	w.maps = append(w.maps, b)
	if err := w.e.PackBF16(v, k, n, b, w.threads); err != nil {
		return "", fmt.Errorf("weight %q: %w", name, err)
	}
	w.m.Unload() // the float weight is not read again
	p := w.names.Name(name + "_bf16")
	w.packed[name] = p
	w.m.Graph.SetInit(p, &tensor.Tensor{Type: tensor.Uint8, Dims: []int64{int64(size)}, Data: b})
	return p, nil
}

// epilogue takes the Add of a bias and the GELU behind the product p into it.
func (w *bf16Writer) epilogue(p *graph.Node, cols int64, ix *graph.Index, gone map[*graph.Node]bool) {
	g := w.m.Graph
	add := ix.Only(p.Outputs[0])
	if add == nil || !add.Is("Add") {
		return
	}
	bias := add.In(0)
	if bias == p.Outputs[0] {
		bias = add.In(1)
	}
	b := g.Init(bias)
	if b == nil || b.Type != tensor.Float32 || len(b.Dims) != 1 || b.Dims[0] != cols {
		return
	}
	p.Inputs = append(p.Inputs[:2:2], bias)
	p.Outputs = []string{add.Outputs[0]}
	gone[add] = true
	if out, act, nodes := graph.ActivationOf(g, ix, add.Outputs[0]); act == "gelu" {
		for _, n := range nodes {
			gone[n] = true
		}
		p.Outputs = []string{out}
		p.Attrs = append(p.Attrs, graph.AttrString("activation", "gelu"))
	}
}

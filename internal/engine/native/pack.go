package native

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
)

// Errors of Pack.
var (
	// ErrNoKernels: there are no kernels to pack for; the text says why.
	ErrNoKernels = errors.New("weights are packed for fewbit's kernels, and there are none")
	// ErrNotNative: the model is not in the native form.
	ErrNotNative = errors.New("the model is not in the native form")
	// ErrPackedFor: the model is packed for another version of the library or
	// another processor.
	ErrPackedFor = errors.New("the model is packed for other kernels")
)

// metaPacked is the metadata of a packed model: what it is packed for.
const metaPacked = "fewbit.packed"

// packedFor names the kernels that a packed model needs, as metaPacked does.
func (e *Engine) packedFor() string {
	k := e.Kernels()
	return fmt.Sprintf("libfewbit_cpu ABI %d, %s", k.ABI, k.Name)
}

// fits refuses a packed model that was made for something else.
func (e *Engine) fits(made string) error {
	k := e.Kernels()
	switch {
	case k.Path == "":
		return fmt.Errorf("%w: it needs %q, and %s", ErrPackedFor, made, k.Reason)
	case made != e.packedFor():
		return fmt.Errorf("%w: it needs %q, here is %q; pack it anew from the native model (fewbit pack)", ErrPackedFor, made, e.packedFor())
	}
	return nil
}

// Packed says what Pack made.
type Packed struct {
	// Operators counts the projections that became operators of libfewbit_cpu.
	Operators int `json:"operators"`
	// For names the kernels that the file needs.
	For string `json:"for"`
}

// Pack writes the native model at path as the kernels of this processor run it:
// to out, and its weights, packed and aligned to pages, to out.data beside it.
// Processes that open it share the weights' memory. A crash leaves no half-made
// model: out comes last.
func (e *Engine) Pack(ctx context.Context, path, out string) (Packed, error) {
	if ok, why := e.Int8(); !ok {
		return Packed{}, fmt.Errorf("%w: %s", ErrNoKernels, why)
	}
	m, err := graph.Open(path)
	if err != nil {
		return Packed{}, err
	}
	defer m.Close()
	if m.Metadata[metaPacked] != "" {
		return Packed{}, fmt.Errorf("%w: %s: it is packed already", ErrNotNative, filepath.Base(path))
	}
	if !isNative(m) {
		return Packed{}, fmt.Errorf("%w: %s: quantize it with --target cpu", ErrNotNative, filepath.Base(path))
	}
	n, err := e.pack(ctx, m, out, e.Threads(), onnx.SaveOptions{External: true})
	if err == nil && n == 0 {
		err = fmt.Errorf("%w: %s: none of its products is as docs/ops.md says", ErrNotNative, filepath.Base(path))
	}
	return Packed{Operators: n, For: e.packedFor()}, err
}

// pack rewrites m and saves it to out; with nothing to rewrite it does not save.
func (e *Engine) pack(ctx context.Context, m *graph.Model, out string, threads int, o onnx.SaveOptions) (int, error) {
	l := lowering{m: m, e: e.Engine, threads: threads}
	defer l.free()
	n, err := l.run(ctx)
	if err != nil || n == 0 {
		return 0, err
	}
	m.Metadata[metaPacked] = e.packedFor()
	if m.Metadata["fewbit.needs"] != "" {
		m.Metadata["fewbit.needs"] = e.packedFor()
	}
	return n, m.Save(out, o)
}

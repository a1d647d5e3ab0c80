package quant

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/ort"
)

// counted are loops that count what they did.
type counted struct {
	loops         Loops
	strips, clips atomic.Int64
}

func (l *counted) RoundStrip(m []float32, k int, order []int, w, carried, scales []float32, n, from, to int, lo, hi float32, d []float32, codes []int8) bool {
	ok := l.loops.RoundStrip(m, k, order, w, carried, scales, n, from, to, lo, hi, d, codes)
	if ok {
		l.strips.Add(1)
	}
	return ok
}

func (l *counted) ClipScales(w []float32, n, from, to int, importance, shares []float32, top float32, scales []float32) bool {
	ok := l.loops.ClipScales(w, n, from, to, importance, shares, top, scales)
	if ok {
		l.clips.Add(1)
	}
	return ok
}

// looped is PlainAlgebra that has loops.
type looped struct {
	PlainAlgebra
	loops Loops
}

func (l looped) Loops() Loops { return l.loops }

// TestLoops: an engine's loops choose the scales and the codes that those in Go do.
func TestLoops(t *testing.T) {
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	switch e.Kernels().Name {
	case "avx512-vnni", "avx512-bf16", "amx":
	default:
		t.Skipf("needs bin/libfewbit_cpu.so (make build) and AVX-512: %q", e.Kernels().Name)
	}
	loops := &counted{loops: e}
	alg := looped{loops: loops}
	ctx := context.Background()
	r := rand.New(rand.NewPCG(34, 0))
	const k, n, rows = 150, 259, 200 // three blocks of rows, three strips of columns
	x, w := make([]float32, rows*k), make([]float32, k*n)
	for i := range x {
		x[i] = float32(r.NormFloat64() + .5)
	}
	for i := range w {
		if w[i] = float32(math.Pow(r.NormFloat64(), 3)); i%11 == 0 {
			w[i] = 0 // pruned
		}
	}
	gram := make([]float32, TriangleRow(k))
	if err := alg.AddGram(ctx, gram, x, k); err != nil {
		t.Fatal(err)
	}
	f, err := newFactor(ctx, alg, gram, k, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, top := range []int32{127, 7} {
		for _, by := range [][]float32{nil, f.importance()} {
			want, got := columnScales(nil, w, k, n, top, by, PerChannel), columnScales(loopsOf(alg), w, k, n, top, by, PerChannel)
			if !slices.Equal(got, want) {
				t.Fatalf("top %d: other scales", top)
			}
			g := grid{lo: -float32(top), hi: float32(top), scales: want}
			plain, err := f.round(ctx, PlainAlgebra{}, w, n, g)
			if err != nil {
				t.Fatal(err)
			}
			fast, err := f.round(ctx, alg, w, n, g)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(fast.codes, plain.codes) {
				t.Errorf("top %d: other codes", top)
			}
		}
	}
	if s, c := loops.strips.Load(), loops.clips.Load(); s != 4*9 || c < 4 {
		t.Errorf("%d strips and %d ranges of columns", s, c)
	}
}

package ort

import (
	"context"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// BenchmarkRun is what a Run costs besides the model's own work: the model adds
// two numbers. The bar is 20 us.
func BenchmarkRun(b *testing.B) {
	s := open(b, add(1), engine.Options{})
	in := engine.Feeds{"a": tensor.From([]float32{1}, 1), "b": tensor.From([]float32{2}, 1)}
	cancellable, cancel := context.WithCancel(context.Background())
	defer cancel()
	for _, bc := range []struct {
		name string
		ctx  context.Context
	}{{"background", context.Background()}, {"cancellable", cancellable}} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r, err := s.Run(bc.ctx, in, nil)
				if err != nil {
					b.Fatal(err)
				}
				r.Close()
			}
		})
	}
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				r, err := s.Run(cancellable, in, nil)
				if err != nil {
					b.Error(err)
					return
				}
				r.Close()
			}
		})
	})
}

// BenchmarkCopies passes 4 MiB in and out: with a copy it would take over 1 ms.
func BenchmarkCopies(b *testing.B) {
	s := open(b, testModel{
		in: add(nil).in, out: add(nil).out, nodes: add(nil).nodes[:1],
	}, engine.Options{})
	x := tensor.From(make([]float32, 1<<20), 1<<20)
	in := engine.Feeds{"a": x, "b": x}
	b.SetBytes(4 << 20)
	for b.Loop() {
		r, err := s.Run(context.Background(), in, nil)
		if err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}

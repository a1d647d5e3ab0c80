//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"
	"unsafe"

	"github.com/fewbit/fewbit/internal/calib"
)

// perLaunch runs f b.N times on the stream and reports its bytes a second, where it has some.
func perLaunch(b *testing.B, bytes int64, f func() error) {
	b.Helper()
	ok(b, f())
	ok(b, Sync(0))
	b.ResetTimer()
	for range b.N {
		ok(b, f())
	}
	ok(b, Sync(0))
	if bytes == 0 {
		return
	}
	b.ReportMetric(float64(bytes)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GB/s")
}

// 256 MB pass every cache; 12 MB are an activation of BERT-base, 8 texts of 128 tokens.
func BenchmarkHistogram(b *testing.B) {
	sizes := []int{64 << 20, 3 << 20}
	if isEmulated() {
		sizes = []int{64 << 10}
	}
	for _, n := range sizes {
		some := normal(random(1), 1<<16) // repeated: making 64 million takes seconds
		for _, kind := range []string{"normal", "relu", "constant"} {
			x := make([]float32, n)
			for i := range x {
				switch x[i] = some[i%len(some)]; kind {
				case "relu":
					x[i] = max(0, x[i])
				case "constant":
					x[i] = 6
				}
			}
			p := in(b, x)
			h := device[Histogram](b, 1)
			ok(b, HistogramInit(h, 1, 0))
			taps := []Tap{{p, int64(n), h}}
			ok(b, HistogramObserve(taps, 0)) // widens: what follows is the usual case
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				perLaunch(b, 4*int64(n), func() error { return HistogramObserve(taps, 0) })
			})
			if kind != "normal" {
				continue
			}
			r := device[RangeStats](b, 1)
			ok(b, RangeInit(r, 1, 0))
			b.Run(fmt.Sprintf("range/%d", n), func(b *testing.B) {
				perLaunch(b, 4*int64(n), func() error { return RangeAdd(p, int64(n), r, 0) })
			})
			m := in(b, make([]float32, 768))
			b.Run(fmt.Sprintf("channels/%d", n), func(b *testing.B) {
				perLaunch(b, 4*int64(n/768*768), func() error { return ChannelMax(p, int64(n/768), 768, 1, m, 0) })
			})
		}
	}
}

// All activations of one text of BERT-base in one call.
func BenchmarkHistogramTaps(b *testing.B) {
	count, values := 74, 128*768
	if isEmulated() {
		count, values = 3, 500
	}
	all := device[Histogram](b, count)
	ok(b, HistogramInit(all, count, 0))
	x := in(b, normal(random(2), count*values))
	taps := make([]Tap, count)
	for i := range taps {
		taps[i] = Tap{x.Add(int64(4 * i * values)), int64(values), all.Add(int64(i) * int64(unsafe.Sizeof(Histogram{})))}
	}
	perLaunch(b, int64(4*count*values), func() error { return HistogramObserve(taps, 0) })
}

// The entropy search of many tensors, beside the same on one core of the CPU.
func BenchmarkKL(b *testing.B) {
	n := 200
	if isEmulated() {
		n = 2
	}
	h := device[Histogram](b, n)
	ok(b, HistogramInit(h, n, 0))
	x := normal(random(3), 1<<16)
	for i := range x {
		x[i] *= float32(math.Abs(float64(x[i])))
	}
	p := in(b, x)
	for i := range n {
		ok(b, HistogramObserve([]Tap{{p, int64(len(x)), h.Add(int64(i) * int64(unsafe.Sizeof(Histogram{})))}}, 0))
	}
	counts, tensors := device[uint64](b, n*LinearBins), device[KLTensor](b, n)
	keep, logs := device[int32](b, n), in(b, calib.LogTable())
	bytes := KLWorkspace(n)
	work := device[byte](b, int(bytes))
	b.Run(fmt.Sprintf("device/%d", n), func(b *testing.B) {
		perLaunch(b, 0, func() error {
			if err := HistogramLinear(h, n, 8, false, counts, tensors, 0); err != nil {
				return err
			}
			return KLThreshold(counts, tensors, n, logs, keep, 0, work, bytes, 0)
		})
	})
	th, err := calib.ByName(calib.MethodEntropy)
	if err != nil {
		b.Fatal(err)
	}
	c := new(calib.Histogram)
	c.Observe(x)
	b.Run(fmt.Sprintf("cpu/%d", n), func(b *testing.B) {
		for b.Loop() {
			for range n {
				if _, err := th.Threshold(c, calib.U8); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

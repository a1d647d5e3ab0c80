package calib

import "testing"

func BenchmarkThreshold(b *testing.B) {
	normalHist := observed(normal(1, 1<<20, 1)...)
	relu := normal(1, 1<<20, 1)
	for i := range relu {
		relu[i] = max(relu[i], 0)
	}
	reluHist := observed(relu...)
	for name, th := range Builtin() {
		for _, d := range []struct {
			name string
			h    *Histogram
		}{{"normal", normalHist}, {"relu", reluHist}} {
			b.Run(name+"/"+d.name, func(b *testing.B) {
				for b.Loop() {
					if _, err := th.Threshold(d.h, U8); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

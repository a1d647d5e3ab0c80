//go:build cuda

package cuda

import (
	"fmt"
	"testing"
)

// What an encoder's layer runs besides its products of integers: BERT-base, at
// 128 tokens, for 1 and 32 texts.
func benchTexts() (texts []int64, tokens int64) {
	if isEmulated() {
		return []int64{1}, 16
	}
	return []int64{1, 32}, 128
}

func BenchmarkAttention(b *testing.B) {
	const heads, dim = 12, 64
	batches, tokens := benchTexts()
	for _, batch := range batches {
		n := int(batch * tokens * heads * dim)
		values, mask := normal(random(1), 3*n), in(b, make([]float32, batch*tokens))
		for _, in16 := range []Type{F16, F32} {
			var p, y Ptr
			if in16 == F16 {
				p, y = in(b, halves(values)), device[uint16](b, n)
			} else {
				p, y = in(b, values), device[float32](b, n)
			}
			size := int64(in16.Size()) * heads * dim
			row := func(i int64) Heads { return Heads{Data: p.Add(i * size), Row: 3 * heads * dim} }
			for _, scores := range []Type{F16, S8, F32} {
				a := Attention{Batch: batch, Heads: heads, QLen: tokens, KVLen: tokens, HeadDim: dim, VDim: dim, Type: in16, Scores: scores, Q: row(0), K: row(1), V: row(2), Out: Heads{Data: y}, Mask: mask}
				b.Run(fmt.Sprintf("%dx%d/%v/%v", batch, tokens, in16, scores), func(b *testing.B) {
					perLaunch(b, 4*int64(n)*int64(in16.Size()), func() error { return a.Run(0) })
				})
			}
		}
	}
}

func BenchmarkLayerNorm(b *testing.B) {
	batches, tokens := benchTexts()
	const k = 768
	for _, batch := range batches {
		m := batch * tokens
		x := normal(random(1), int(m*k))
		l := LayerNorm{M: m, K: k, LdQ: k, Epsilon: 1e-12, Input: in(b, x), Residual: in(b, x), Gamma: in(b, x[:k]), Beta: in(b, x[:k]),
			Y: device[float32](b, len(x)), Q: device[int8](b, len(x)), Scale: device[float32](b, int(m)), Zero: device[int32](b, int(m))}
		b.Run(fmt.Sprintf("%dx%d", m, k), func(b *testing.B) {
			perLaunch(b, 13*m*k, func() error { return l.Run(0) })
		})
	}
}

func BenchmarkGemmFloat(b *testing.B) {
	shapes := [][3]int64{{1, 768, 768}, {128, 768, 768}, {4096, 3072, 768}, {4096, 4096, 4096}}
	if isEmulated() {
		shapes = [][3]int64{{1, 64, 64}, {64, 64, 64}}
	}
	for _, s := range shapes {
		m, n, k := s[0], s[1], s[2]
		a, w := in(b, make([]float32, m*k)), in(b, make([]float32, n*k))
		c := device[float32](b, int(m*n))
		for _, g := range []GemmFloat{{In: F32}, {In: F32, TF32: true}, {In: F32, TF32: true, Own: true}, {In: F16}, {In: F16, Own: true}} {
			g.M, g.N, g.K, g.TransB = m, n, k, true
			b.Run(fmt.Sprintf("%dx%dx%d/%v/tf32=%v/own=%v", m, n, k, g.In, g.TF32, g.Own), func(b *testing.B) {
				perLaunch(b, 0, func() error { return g.Run(a, w, 0, 0, c, 0) })
				b.ReportMetric(2*float64(m*n*k)*float64(b.N)/b.Elapsed().Seconds()/1e12, "TFLOPS")
			})
		}
	}
}

// Convolutions of ResNet-50: its first, one of 3x3, one of 1x1.
func BenchmarkConvFloat(b *testing.B) {
	shapes := []Conv{square(8, 224, 224, 3, 64, 7, 2, 3, 1, 1), square(8, 28, 28, 128, 128, 3, 1, 1, 1, 1), square(8, 14, 14, 256, 1024, 1, 1, 0, 1, 1)}
	if isEmulated() {
		shapes = []Conv{square(1, 6, 6, 8, 16, 3, 1, 1, 1, 1)}
	}
	for _, g := range shapes {
		products := int64(g.N*g.OH*g.OW*g.OC) * int64(g.KH*g.KW*g.C/g.Groups)
		x, w := in(b, make([]float32, g.N*g.C*g.H*g.W)), in(b, make([]float32, g.OC*g.KH*g.KW*g.C/g.Groups))
		y := device[float32](b, g.N*g.OC*g.OH*g.OW)
		for _, as := range []struct {
			name string
			how  Products
		}{{"fp32", FP32}, {"tf32", TF32}, {"fp16", FP16}} {
			b.Run(fmt.Sprintf("%dx%dx%dx%d/%d/%dx%d/%s", g.N, g.C, g.H, g.W, g.OC, g.KH, g.KW, as.name), func(b *testing.B) {
				perLaunch(b, 0, func() error { return ConvFloat(g, as.how, x, w, 0, 0, y, 0) })
				b.ReportMetric(2*float64(products)*float64(b.N)/b.Elapsed().Seconds()/1e12, "TFLOPS")
			})
		}
	}
}

//go:build cuda

package cuda

import (
	"fmt"
	"testing"
)

// repeated is n codes that take no time to make.
func repeated(n int64) []int8 {
	some := bytes8(random(9), 1<<16)
	v := make([]int8, n)
	for at := 0; at < len(v); at += len(some) {
		copy(v[at:], some)
	}
	return v
}

// BenchmarkCopy is the bandwidth that others are a share of: a gigabyte read and
// written, far past every cache.
func BenchmarkCopy(b *testing.B) {
	n := int64(256 << 20)
	if isEmulated() {
		n = 1 << 12
	}
	x, y := device[float32](b, int(n)), device[float32](b, int(n))
	v := View{Rank: 1, Dims: [MaxRank]int64{n}, Strides: [MaxRank]int64{1}}
	perLaunch(b, 8*n, func() error { return Copy(4, v, x, v, y, 0) })
}

// BenchmarkGemmS8 are the products of integers that the goals name: the square,
// those of BERT-base for 1 and 32 texts of 128 tokens, and few rows. "sums" writes
// INT32, which is what cuBLASLt does; "fused" dequantizes by row and column, adds
// the bias and applies GELU.
func BenchmarkGemmS8(b *testing.B) {
	shapes := [][3]int64{{4096, 4096, 4096}, {8192, 8192, 8192}, {128, 768, 768}, {128, 2304, 768}, {128, 3072, 768}, {128, 768, 3072},
		{4096, 768, 768}, {4096, 2304, 768}, {4096, 3072, 768}, {4096, 768, 3072}, {16, 4096, 4096}, {32, 4096, 4096}, {64, 4096, 4096}, {64, 3072, 768}}
	if isEmulated() {
		shapes = [][3]int64{{48, 64, 64}, {8, 64, 128}}
	}
	for _, s := range shapes {
		m, n, k := s[0], s[1], s[2]
		a, w := in(b, repeated(m*k)), in(b, repeated(n*k))
		rows, columns := in(b, make([]float32, m)), in(b, make([]float32, n))
		zeros, sums := in(b, make([]int32, m)), device[int32](b, int(n))
		ok(b, RowSums(w, n, k, k, sums, 0))
		c := device[float32](b, int(m*n))
		for _, kind := range []string{"sums", "fused"} {
			d := GemmS8{M: m, N: n, K: k, LDA: k, LDB: k, LDC: n, Out: S32, Zeroed: true}
			o := GemmOperands{A: a, B: w, C: c}
			if kind == "fused" {
				d.PerRow, d.Act, d.Out = true, Gelu, F32
				o.AScale, o.AZero, o.BScale, o.BSum, o.Bias = rows, zeros, columns, sums, columns
			}
			if o.WorkspaceBytes = d.Workspace(); o.WorkspaceBytes > 0 {
				o.Workspace = in(b, make([]byte, o.WorkspaceBytes))
			}
			b.Run(fmt.Sprintf("%dx%dx%d/%s", m, n, k, kind), func(b *testing.B) {
				perLaunch(b, 0, func() error { return d.Run(o, 0) })
				b.ReportMetric(2*float64(m*n*k)*float64(b.N)/b.Elapsed().Seconds()/1e12, "TOPS")
			})
		}
	}
}

// BenchmarkGemmW4 is bound by reading its weights: several copies, together past
// every cache, take turns. Its GB/s count weights and scales.
func BenchmarkGemmW4(b *testing.B) {
	shapes, copies := [][2]int64{{4096, 4096}, {11008, 4096}, {3072, 768}}, int64(256<<20)
	rows := []int64{1, 4, 16, 64}
	if isEmulated() {
		shapes, copies, rows = [][2]int64{{64, 128}}, 1, []int64{1, 16}
	}
	const block = 32
	for _, s := range shapes {
		n, k := s[0], s[1]
		bytes := W4PackedBytes(n, k) + 4*W4PackedScales(n, k, block)
		count := int(min(max(copies/bytes, 1), 64))
		x := in(b, make([]float32, n*k))
		q, scale := device[byte](b, int(n*k/2)), device[float32](b, int(n*k/block))
		ok(b, QuantizeBlocksS4(x, n, k, block, q, scale, 0))
		packed, scales := make([]Ptr, count), make([]Ptr, count)
		for i := range count {
			packed[i], scales[i] = device[byte](b, int(W4PackedBytes(n, k))), device[float32](b, int(W4PackedScales(n, k, block)))
			ok(b, W4Pack(q, scale, n, k, block, packed[i], scales[i], 0))
		}
		for _, m := range rows {
			a, ones, zeros := in(b, make([]uint16, m*k)), in(b, make([]float32, m)), in(b, make([]int32, m))
			c := device[float32](b, int(m*n))
			for _, t := range []Type{F16, S8} {
				d := GemmW4{M: m, N: n, K: k, LDA: k, LDC: n, Block: block, A: t, Out: F32, Zeroed: true}
				o := GemmOperands{A: a, C: c}
				if t == S8 {
					o.AScale, o.AZero = ones, zeros
				}
				if o.WorkspaceBytes = d.Workspace(); o.WorkspaceBytes > 0 {
					o.Workspace = in(b, make([]byte, o.WorkspaceBytes))
				}
				at := 0
				b.Run(fmt.Sprintf("%dx%dx%d/a=%v", m, n, k, t), func(b *testing.B) {
					perLaunch(b, bytes, func() error {
						o.B, o.BScale = packed[at%count], scales[at%count]
						at++
						return d.Run(o, 0)
					})
				})
			}
		}
	}
}

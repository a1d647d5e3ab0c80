//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

// Sums in f32 in another order, relative to the sum of magnitudes.
const w4Tolerance = 4e-6

// productW4 is one product with INT4 weights; nil operands are absent.
type productW4 struct {
	GemmW4
	a16            []uint16 // or
	a8             []int8
	aScale         []float32
	aZero          []int32
	q              []uint8   // [n, k/2], low nibble first, + 8
	scale          []float32 // [n, k/block]
	bias, residual []float32
}

func randomW4(seed uint64, a Type, m, n, k, block, lda, ldc int) *productW4 {
	r := random(seed)
	p := &productW4{GemmW4: GemmW4{M: int64(m), N: int64(n), K: int64(k), LDA: int64(lda), LDC: int64(ldc), Block: block, A: a, Residual: F32}}
	if a == F16 {
		p.a16 = halves(normal(r, m*lda))
	} else {
		p.a8, p.aScale, p.aZero = bytes8(r, m*lda), normal(r, m), make([]int32, m)
		for i := range m {
			p.aScale[i] /= 64
			p.aZero[i] = int32(r.IntN(256) - 128)
		}
	}
	p.q = make([]uint8, n*k/2)
	for i := range p.q {
		p.q[i] = uint8(r.UintN(256))
	}
	p.scale, p.bias, p.residual = normal(r, n*k/block), normal(r, n), normal(r, m*ldc)
	return p
}

// value is A's at row i, column x.
func (p *productW4) value(i, x int) float64 {
	if p.A == F16 {
		return float64(fromHalf(p.a16[i*int(p.LDA)+x]))
	}
	v := int32(p.a8[i*int(p.LDA)+x])
	if p.aZero != nil {
		v -= p.aZero[i]
	}
	return float64(v) * float64(p.aScale[i])
}

// reference computes in float64; size is the sum of magnitudes of each product.
func (p *productW4) reference() (y, size []float64) {
	m, n, k, ldc := int(p.M), int(p.N), int(p.K), int(p.LDC)
	y, size = make([]float64, m*ldc), make([]float64, m*ldc)
	w := make([]float64, n*k)
	for i := range w {
		w[i] = float64(int(p.q[i/2]>>(4*(i&1))&15)-8) * float64(p.scale[i/p.Block])
	}
	for i := range m {
		a := make([]float64, k)
		for x := range a {
			a[x] = p.value(i, x)
		}
		for j := range n {
			sum, magnitude := 0.0, 0.0
			for x, v := range a {
				sum += v * w[j*k+x]
				magnitude += math.Abs(v * w[j*k+x])
			}
			if p.aZero != nil { // the products before the zero point is taken off
				magnitude *= 3
			}
			if p.bias != nil {
				sum += float64(p.bias[j])
			}
			sum = activate(p.Act, sum, float64(p.ActMin), float64(p.ActMax))
			if p.residual != nil {
				sum += float64(p.residual[i*ldc+j])
			}
			y[i*ldc+j], size[i*ldc+j] = sum, magnitude+1
		}
	}
	return y, size
}

func (p *productW4) operands(t testing.TB) GemmOperands {
	o := GemmOperands{Bias: optional(t, p.bias), AScale: optional(t, p.aScale), AZero: optional(t, p.aZero)}
	if p.A == F16 {
		o.A = in(t, p.a16)
	} else {
		o.A = in(t, p.a8)
	}
	if p.residual != nil && p.Residual == F16 {
		h := halves(p.residual)
		p.residual = floats(h)
		o.Residual = in(t, h)
	} else {
		o.Residual = optional(t, p.residual)
	}
	o.B, o.BScale = device[byte](t, int(W4PackedBytes(p.N, p.K))), device[float32](t, int(W4PackedScales(p.N, p.K, p.Block)))
	ok(t, W4Pack(in(t, p.q), in(t, p.scale), p.N, p.K, p.Block, o.B, o.BScale, 0))
	if o.WorkspaceBytes = p.Workspace(); o.WorkspaceBytes > 0 {
		o.Workspace = device[byte](t, int(o.WorkspaceBytes))
	}
	return o
}

// run compares p with the reference; beyond column N nothing is written.
func (p *productW4) run(t *testing.T, name string) {
	t.Helper()
	o := p.operands(t)
	want, size := p.reference()
	n := len(want)
	got := make([]float32, n)
	tolerance := w4Tolerance
	if p.Out == F16 {
		c := make([]uint16, n)
		for i := range c {
			c[i] = toHalf(77)
		}
		o.C = in(t, c)
		ok(t, p.Run(o, 0))
		got = floats(out[uint16](t, o.C, n))
		tolerance = halfTolerance
	} else {
		for i := range got {
			got[i] = 77
		}
		o.C = in(t, got)
		ok(t, p.Run(o, 0))
		got = out[float32](t, o.C, n)
	}
	bad := 0
	for i, g := range got {
		w := want[i]
		if i%int(p.LDC) >= int(p.N) {
			w = 77
		}
		if !(math.Abs(float64(g)-w) <= tolerance*size[i]) && bad < 3 {
			bad++
			t.Errorf("%s: [%d] = %v, want %v", name, i, g, w)
		}
	}
}

// Every configuration on both kinds of A, on blocks of every size and shapes around those of tiles.
func TestGemmW4Configs(t *testing.T) {
	shapes := []struct{ m, n, k, block int }{{1, 1, 32, 32}, {5, 33, 96, 96}, {16, 130, 320, 64}, {17, 40, 256, 128}, {35, 64, 416, 32}, {66, 257, 160, 160}, {2, 32, 768, 384}}
	schedules(t, func(t *testing.T) {
		for config := 1; config <= GemmW4Configs(); config++ {
			for i, c := range shapes {
				for _, a := range []Type{F16, S8} {
					p := randomW4(uint64(i), a, c.m, c.n, c.k, c.block, (c.k+15)/16*16+16*(i%2), c.n+i%3)
					p.Config, p.Split, p.Out = config, 1+i%3, F32
					if i == 3 { // sums as large as they get
						clear(p.q)
						for x := range p.a8 {
							p.a8[x] = -128
						}
					}
					p.run(t, fmt.Sprintf("config %d, %v, %v", config, a, c))
				}
			}
		}
	})
}

func TestGemmW4Epilogues(t *testing.T) {
	schedules(t, func(t *testing.T) {
		i := uint64(0)
		for _, a := range []Type{F16, S8} {
			for _, o := range []Type{F32, F16} {
				for act := None; act <= Clip; act++ {
					i++
					p := randomW4(i, a, 9, 37, 128, 64, 128, 37+int(i%4))
					p.Out, p.Act, p.ActMin, p.ActMax = o, act, -0.5, 0.75
					if i%2 == 0 {
						p.Residual = F16
					}
					switch i % 3 {
					case 0:
						p.bias, p.residual = nil, nil
					case 1:
						p.aZero = nil
					}
					for j := range p.scale { // values of about 1
						p.scale[j] *= 1. / 64
					}
					p.run(t, fmt.Sprintf("%v, %v, %v", a, o, act))
				}
			}
		}
	})
}

// The sum of parts along k has the same bits whatever the order of blocks.
func TestGemmW4Deterministic(t *testing.T) {
	var first []float32
	schedules(t, func(t *testing.T) {
		p := randomW4(3, F16, 7, 96, 1024, 32, 1024, 96)
		p.Config, p.Split, p.Out = 2, 5, F32
		o := p.operands(t)
		o.C = device[float32](t, 7*96)
		ok(t, p.Run(o, 0))
		y := out[float32](t, o.C, 7*96)
		if first == nil {
			first = y
		}
		equal(t, "y", y, first)
	})
}

// What is packed is what is read back by position, and columns that do not exist are zero.
func TestW4Pack(t *testing.T) {
	const n, k, block = 33, 64, 32
	p := randomW4(1, F16, 1, n, k, block, k, n)
	packed, scale := device[byte](t, int(W4PackedBytes(n, k))), device[float32](t, int(W4PackedScales(n, k, block)))
	ok(t, W4Pack(in(t, p.q), in(t, p.scale), n, k, block, packed, scale, 0))
	want, wantScale := make([]byte, W4PackedBytes(n, k)), make([]float32, W4PackedScales(n, k, block))
	for i := range want {
		want[i] = 0x88
	}
	for j := range n {
		for x := range k {
			// 512 bytes a tile, 16 a lane, 4 a word, a nibble.
			lane, word := j%8*4+x%32/8, j%32/8
			nibble := []int{0, 4, 2, 6, 1, 5, 3, 7}[x%8]
			at := (j/32*(k/32)+x/32)*512 + lane*16 + word*4 + nibble/2
			v := p.q[(j*k+x)/2] >> (4 * (x & 1)) & 15
			want[at] = want[at]&^(15<<(nibble%2*4)) | v<<(nibble%2*4)
		}
		for b := range k / block {
			s, sum := p.scale[j*(k/block)+b], 0
			for x := range block {
				sum += int(p.q[(j*k+b*block+x)/2]>>(4*(x&1))&15) - 8
			}
			wantScale[b*64+j] = s
			wantScale[k/block*64+j] += s * float32(sum)
		}
	}
	equal(t, "packed", out[byte](t, packed, len(want)), want)
	equal(t, "scales", out[float32](t, scale, len(wantScale)), wantScale)
}

func TestGemmW4RefusesArguments(t *testing.T) {
	for name, damage := range map[string]func(p *GemmW4, o *GemmOperands){
		"no A":           func(_ *GemmW4, o *GemmOperands) { o.A = 0 },
		"no weights":     func(_ *GemmW4, o *GemmOperands) { o.B = 0 },
		"scale with f16": func(_ *GemmW4, o *GemmOperands) { o.AScale = o.BScale },
		"s8, no scale":   func(p *GemmW4, _ *GemmOperands) { p.A = S8 },
		"block of 16":    func(p *GemmW4, _ *GemmOperands) { p.Block = 16 },
		"block":          func(p *GemmW4, _ *GemmOperands) { p.Block = 48 },
		"k":              func(p *GemmW4, _ *GemmOperands) { p.K, p.Block = 40, 40 },
		"rows":           func(p *GemmW4, _ *GemmOperands) { p.LDA = 68 },
		"output":         func(p *GemmW4, _ *GemmOperands) { p.Out = S8 },
		"configuration":  func(p *GemmW4, _ *GemmOperands) { p.Config = 99 },
	} {
		p := randomW4(1, F16, 4, 16, 64, 64, 64, 16)
		o := p.operands(t)
		o.C = device[float32](t, 64)
		damage(&p.GemmW4, &o)
		if err := p.Run(o, 0); !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := W4Pack(1, 1, 16, 64, 24, 16, 16, 0); !errors.Is(err, ErrArgument) {
		t.Errorf("a block of 24: %v", err)
	}
}

func TestGemmW4Pick(t *testing.T) {
	var text strings.Builder
	for _, d := range devices {
		for _, a := range []Type{F16, S8} {
			for _, c := range [][3]int64{{1, 768, 768}, {1, 4096, 4096}, {16, 4096, 4096}, {16, 11008, 4096}, {32, 4096, 11008}, {128, 3072, 768}, {2048, 4096, 4096}} {
				p := GemmW4{M: c[0], N: c[1], K: c[2], Block: 32, A: a}
				_, choice := p.Pick(d.Info)
				fmt.Fprintf(&text, "%s %v %dx%dx%d: %s\n", d.name, a, c[0], c[1], c[2], choice)
			}
		}
	}
	golden(t, "testdata/gemm_w4_pick.txt", text.String())
}

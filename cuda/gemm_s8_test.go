//go:build cuda

package cuda

import (
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite golden files")

// Activations are computed by other routines than Go's, and an f16 result may then round to its neighbour.
const (
	activationTolerance = 2e-6
	halfTolerance       = 0x1p-10
)

// productS8 is one product with what its epilogue takes; nil operands are absent.
type productS8 struct {
	GemmS8
	a, b           []int8
	aScale, bScale []float32
	aZero, bSum    []int32
	bias           []float32
	residual       []float32 // already rounded where its type is F16
}

// randomS8 makes a product of the given shape whose rows are padded to lda, ldb and ldc elements.
func randomS8(seed uint64, m, n, k, lda, ldb, ldc int) *productS8 {
	r := random(seed)
	p := &productS8{GemmS8: GemmS8{M: int64(m), N: int64(n), K: int64(k), LDA: int64(lda), LDB: int64(ldb), LDC: int64(ldc), PerRow: true, Residual: F32}}
	p.a, p.b = bytes8(r, m*lda), bytes8(r, n*ldb)
	for i := range m {
		clear(p.a[i*lda+k : (i+1)*lda])
	}
	p.aScale, p.bScale, p.bias, p.residual = normal(r, m), normal(r, n), normal(r, n), normal(r, m*ldc)
	p.aZero, p.bSum = make([]int32, m), make([]int32, n)
	for i := range p.aZero {
		p.aZero[i] = int32(r.IntN(256) - 128)
	}
	for j := range n {
		clear(p.b[j*ldb+k : (j+1)*ldb])
		for _, v := range p.b[j*ldb : j*ldb+k] {
			p.bSum[j] += int32(v)
		}
	}
	return p
}

// extremes makes the sums as large as they get.
func (p *productS8) extremes() *productS8 {
	for i := range p.a {
		p.a[i] = -128
	}
	for i := range p.b {
		p.b[i] = -128
	}
	for j := range p.bSum {
		p.bSum[j] = -128 * int32(p.K)
	}
	for i := range p.aZero {
		p.aZero[i] = 127
	}
	return p
}

// reference computes the sums, and what the epilogue makes of them in f32.
func (p *productS8) reference() (sums []int32, y []float32) {
	m, n, k, ldc := int(p.M), int(p.N), int(p.K), int(p.LDC)
	sums, y = make([]int32, m*ldc), make([]float32, m*ldc)
	for i := range m {
		row := i
		if !p.PerRow {
			row = 0
		}
		for j := range n {
			var sum int64
			for x := range k {
				a := int64(p.a[i*int(p.LDA)+x])
				if p.aZero != nil {
					a -= int64(p.aZero[row])
				}
				sum += a * int64(p.b[j*int(p.LDB)+x])
			}
			v := float32(sum) * (p.aScale[row] * p.bScale[j])
			if p.bias != nil {
				v += p.bias[j]
			}
			v = float32(activate(p.Act, float64(v), float64(p.ActMin), float64(p.ActMax)))
			if p.residual != nil {
				v += p.residual[i*ldc+j]
			}
			sums[i*ldc+j], y[i*ldc+j] = int32(sum), v
		}
	}
	return sums, y
}

// optional copies v to the device, or is 0 for nil.
func optional[T any](t testing.TB, v []T) Ptr {
	if v == nil {
		return 0
	}
	return in(t, v)
}

// operands are p's tensors on the device, with a workspace of the size asked for.
func (p *productS8) operands(t testing.TB) GemmOperands {
	o := GemmOperands{A: in(t, p.a), B: in(t, p.b), AScale: optional(t, p.aScale), BScale: optional(t, p.bScale), AZero: optional(t, p.aZero), BSum: optional(t, p.bSum), Bias: optional(t, p.bias)}
	if p.residual != nil {
		if p.Residual == F16 {
			h := halves(p.residual)
			for i := range h {
				p.residual[i] = fromHalf(h[i])
			}
			o.Residual = in(t, h)
		} else {
			o.Residual = in(t, p.residual)
		}
	}
	if o.WorkspaceBytes = p.Workspace(); o.WorkspaceBytes > 0 {
		o.Workspace = device[byte](t, int(o.WorkspaceBytes))
	}
	return o
}

// run runs p and compares with the reference, bit for bit where no activation is in between. Beyond column N nothing is written.
func (p *productS8) run(t *testing.T, name string) {
	t.Helper()
	o := p.operands(t)
	size := int(p.M * p.LDC)
	sums, y := p.reference()
	tolerance := 0.0
	if p.Act != None && p.Act != Relu && p.Act != Clip {
		tolerance = activationTolerance
	}
	outside := func(i int) bool { return i%int(p.LDC) >= int(p.N) }
	switch p.Out {
	case S32:
		c := make([]int32, size)
		for i := range c {
			if c[i] = 77; outside(i) {
				sums[i] = 77
			}
		}
		o.C = in(t, c)
		ok(t, p.Run(o, 0))
		equal(t, name, out[int32](t, o.C, size), sums)
	case F32:
		c := make([]float32, size)
		for i := range c {
			if c[i] = 77; outside(i) {
				y[i] = 77
			}
		}
		o.C = in(t, c)
		ok(t, p.Run(o, 0))
		near(t, name, out[float32](t, o.C, size), y, tolerance, 1)
	case F16:
		c := make([]uint16, size)
		for i := range c {
			if c[i] = toHalf(77); outside(i) {
				y[i] = 77
			}
		}
		o.C = in(t, c)
		ok(t, p.Run(o, 0))
		got, want := make([]float32, size), make([]float32, size)
		for i, h := range out[uint16](t, o.C, size) {
			got[i], want[i] = fromHalf(h), fromHalf(toHalf(y[i]))
		}
		if tolerance > 0 {
			tolerance = halfTolerance
		}
		near(t, name, got, want, tolerance, 1)
	case S8:
		c := make([]int8, size)
		want := make([]float32, size)
		for i := range c {
			c[i] = 77
			want[i] = float32(clamp(int(math.RoundToEven(math.Max(-1e6, math.Min(1e6, float64(y[i]/p.OutScale)))))+int(p.OutZero), -128, 127))
			if outside(i) {
				want[i] = 77
			}
		}
		o.C = in(t, c)
		ok(t, p.Run(o, 0))
		got := make([]float32, size)
		for i, v := range out[int8](t, o.C, size) {
			got[i] = float32(v)
		}
		if tolerance > 0 {
			tolerance = 1 // the next integer
		}
		near(t, name, got, want, tolerance, 1)
	}
}

func up16(v int) int { return (v + 15) / 16 * 16 }

// Every configuration, whole and split along k, on shapes around the sizes of tiles; the sums are exact.
func TestGemmS8Configs(t *testing.T) {
	shapes := [][3]int{{1, 1, 1}, {3, 5, 40}, {17, 33, 65}, {64, 128, 128}, {66, 70, 300}, {130, 258, 130}}
	schedules(t, func(t *testing.T) {
		for config := 1; config <= GemmS8Configs(); config++ {
			for i, c := range shapes {
				for _, split := range []int{1, 3} {
					p := randomS8(uint64(i), c[0], c[1], c[2], up16(c[2]), up16(c[2])+16, c[1]+i%3)
					p.Config, p.Split, p.Out = config, split, S32
					if i == 3 {
						p.extremes()
					}
					name := fmt.Sprintf("config %d, %v, split %d", config, c, split)
					if _, text := p.Pick(must(t)); text == "" {
						t.Logf("%s: not on this device", name)
						continue
					}
					p.run(t, name)
				}
			}
		}
	})
}

// Rings of stages go round several times, over several tiles of a block.
func TestGemmS8Rings(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for config := 1; config <= GemmS8Configs(); config++ {
			p := randomS8(7, 260, 270, 650, 656, 656, 270)
			p.Config, p.Split, p.Out = config, 1, S32
			if _, text := p.Pick(must(t)); strings.HasPrefix(text, "wgmma") {
				p.run(t, text)
			}
		}
	})
}

func must(t testing.TB) Info {
	t.Helper()
	d, err := Device()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestGemmS8Epilogues(t *testing.T) {
	schedules(t, func(t *testing.T) {
		i := uint64(0)
		for _, config := range []int{1, 2, 4} {
			for _, ldc := range []int{37, 40, 43} {
				for _, o := range []Type{S32, F32, F16, S8} {
					for act := None; act <= Clip; act++ {
						if o == S32 && act != None {
							continue
						}
						i++
						p := randomS8(i, 19, 37, 70, 80, 96, ldc)
						p.Config, p.Out, p.Act, p.ActMin, p.ActMax = config, o, act, -0.5, 0.75
						for j := range p.aScale { // sums of about 4e4 become values of about 1
							p.aScale[j] *= 1 / 4e4
						}
						p.OutScale, p.OutZero = 0.02, -5
						if i%2 == 0 {
							p.Residual = F16
						}
						switch i % 5 {
						case 0:
							p.bias, p.residual = nil, nil
						case 1:
							p.aZero, p.bSum = nil, nil
						case 2:
							p.PerRow, p.aScale, p.aZero = false, p.aScale[:1], p.aZero[:1]
						case 3:
							p.residual = nil
						}
						p.Split = 1 + int(i%2)
						p.run(t, fmt.Sprintf("config %d, ldc %d, %v, %v, variant %d", config, ldc, o, act, i%5))
					}
				}
			}
		}
	})
}

// What pick chooses by itself runs.
func TestGemmS8Picked(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for i, c := range [][3]int{{1, 64, 512}, {16, 130, 1024}, {40, 96, 256}, {150, 200, 96}} {
			p := randomS8(uint64(i), c[0], c[1], c[2], c[2], c[2], c[1])
			_, text := p.Pick(must(t))
			p.run(t, text)
		}
	})
}

// A workspace is used again without being cleared, and C may be the residual.
func TestGemmS8Workspace(t *testing.T) {
	p := randomS8(5, 20, 48, 512, 512, 512, 48)
	p.Config, p.Split, p.Zeroed, p.Out = 4, 4, true, F32
	o := p.operands(t)
	if o.WorkspaceBytes <= CounterBytes {
		t.Fatalf("workspace of %d bytes", o.WorkspaceBytes)
	}
	ok(t, CopyIn(o.Workspace, make([]byte, CounterBytes)))
	o.C = o.Residual
	want := p.residual
	for range 3 {
		p.residual = want
		_, want = p.reference()
		ok(t, p.Run(o, 0))
		equal(t, "in place", out[float32](t, o.C, len(want)), want)
	}
	equal(t, "counters", out[byte](t, o.Workspace, CounterBytes), make([]byte, CounterBytes))
	o.WorkspaceBytes--
	if err := p.Run(o, 0); !errors.Is(err, ErrWorkspace) {
		t.Errorf("a small workspace: %v", err)
	}
}

func TestRowSums(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range [][3]int{{1, 1, 1}, {7, 33, 48}, {130, 100, 100}} {
			n, k, ldb := c[0], c[1], c[2]
			b := bytes8(random(4), n*ldb)
			want := make([]int32, n)
			for i := range n {
				for _, v := range b[i*ldb : i*ldb+k] {
					want[i] += int32(v)
				}
			}
			sums := device[int32](t, n)
			ok(t, RowSums(in(t, b), int64(n), int64(k), int64(ldb), sums, 0))
			equal(t, fmt.Sprint(c), out[int32](t, sums, n), want)
		}
	})
}

func TestGemmS8RefusesArguments(t *testing.T) {
	for name, damage := range map[string]func(p *GemmS8, o *GemmOperands){
		"no A":            func(_ *GemmS8, o *GemmOperands) { o.A = 0 },
		"no C":            func(_ *GemmS8, o *GemmOperands) { o.C = 0 },
		"no scale":        func(_ *GemmS8, o *GemmOperands) { o.AScale = 0 },
		"no sums":         func(_ *GemmS8, o *GemmOperands) { o.BSum = 0 },
		"misaligned A":    func(_ *GemmS8, o *GemmOperands) { o.A = o.A.Add(4) },
		"odd rows":        func(p *GemmS8, _ *GemmOperands) { p.LDA = 72 },
		"short rows":      func(p *GemmS8, _ *GemmOperands) { p.LDB = 48 },
		"short C":         func(p *GemmS8, _ *GemmOperands) { p.LDC = 8 },
		"k of 0":          func(p *GemmS8, _ *GemmOperands) { p.K = 0 },
		"sums overflow":   func(p *GemmS8, _ *GemmOperands) { p.K, p.LDA, p.LDB = 65793, 65808, 65808 },
		"negative m":      func(p *GemmS8, _ *GemmOperands) { p.M = -1 },
		"output type":     func(p *GemmS8, _ *GemmOperands) { p.Out = S64 },
		"output scale":    func(p *GemmS8, _ *GemmOperands) { p.Out = S8 },
		"activation":      func(p *GemmS8, _ *GemmOperands) { p.Act = 99 },
		"residual's type": func(p *GemmS8, _ *GemmOperands) { p.Residual = S8 },
		"configuration":   func(p *GemmS8, _ *GemmOperands) { p.Config = GemmS8Configs() + 1 },
		"split":           func(p *GemmS8, _ *GemmOperands) { p.Config, p.Split = 1, 1000 },
	} {
		p := randomS8(1, 4, 16, 64, 64, 64, 16)
		o := p.operands(t)
		o.C = device[float32](t, 64)
		damage(&p.GemmS8, &o)
		if err := p.Run(o, 0); !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := randomS8(1, 4, 16, 64, 64, 64, 16)
	o := p.operands(t)
	o.C = device[float32](t, 64)
	p.M = 0
	ok(t, p.Run(o, 0))
}

// devices that the choice of configurations is looked at for.
var devices = []struct {
	name string
	Info
}{
	{"T4", Info{SM: 75, SMs: 40, SharedPerBlock: 64 << 10}},
	{"A100", Info{SM: 80, SMs: 108, SharedPerBlock: 163 << 10}},
	{"L4", Info{SM: 89, SMs: 58, SharedPerBlock: 99 << 10}},
	{"H100", Info{SM: 90, SMs: 132, SharedPerBlock: 227 << 10}},
	{"B200", Info{SM: 100, SMs: 148, SharedPerBlock: 227 << 10}},
}

// The choice is a pure function, so it can be read.
func TestGemmS8Pick(t *testing.T) {
	var text strings.Builder
	for _, d := range devices {
		for _, c := range [][3]int64{{1, 768, 768}, {16, 3072, 768}, {128, 768, 768}, {128, 3072, 768}, {128, 768, 3072}, {512, 2304, 768}, {4096, 768, 768}, {4096, 3072, 768}, {4096, 768, 3072}, {16384, 4096, 4096}, {1, 4096, 4096}} {
			p := GemmS8{M: c[0], N: c[1], K: c[2]}
			_, choice := p.Pick(d.Info)
			fmt.Fprintf(&text, "%s %dx%dx%d: %s\n", d.name, c[0], c[1], c[2], choice)
		}
	}
	golden(t, "testdata/gemm_s8_pick.txt", text.String())
}

// golden compares got with a file, or writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s (go test -update rewrites it): got\n%s", file, got)
	}
}

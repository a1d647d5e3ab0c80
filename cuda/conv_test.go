//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
)

// square is a convolution with equal strides, pads and dilations, whose output
// has the size that ONNX gives it with the same pads at the end.
func square(n, h, w, c, oc, k, stride, pad, dil, groups int) Conv {
	size := func(v int) int { return (v+2*pad-dil*(k-1)-1)/stride + 1 }
	return Conv{N: n, H: h, W: w, C: c, OC: oc, KH: k, KW: k, OH: size(h), OW: size(w), StrideH: stride, StrideW: stride, PadH: pad, PadW: pad, DilH: dil, DilW: dil, Groups: groups}
}

// geometries are convolutions around the sizes of tiles and vectors.
var geometries = []Conv{
	square(1, 1, 1, 16, 1, 1, 1, 0, 1, 1),
	square(2, 5, 7, 16, 33, 1, 1, 0, 1, 1),
	square(1, 9, 8, 48, 20, 1, 2, 0, 1, 1),
	square(1, 7, 9, 16, 36, 3, 1, 1, 1, 1),
	square(2, 8, 8, 32, 64, 3, 2, 1, 1, 1),
	square(1, 11, 10, 80, 12, 3, 1, 2, 2, 1),
	square(1, 9, 9, 24, 40, 3, 1, 1, 1, 1),      // 8 bytes a load
	square(1, 6, 6, 8, 16, 1, 1, 0, 1, 1),       // 8 bytes, one tap
	square(1, 12, 13, 4, 16, 7, 2, 3, 1, 1),     // 4 bytes: an image padded to 4 channels
	square(1, 12, 13, 3, 16, 7, 2, 3, 1, 1),     // single bytes: an image
	square(1, 6, 7, 32, 48, 3, 1, 1, 1, 2),      // groups
	square(1, 6, 6, 16, 8, 3, 1, 1, 1, 4),       // groups of 4 in, 2 out
	square(1, 5, 5, 6, 9, 3, 2, 1, 1, 3),        // groups of 2 in, 3 out
	square(2, 6, 9, 8, 8, 3, 1, 1, 1, 8),        // depthwise
	square(1, 9, 9, 36, 36, 3, 2, 1, 1, 36),     // depthwise, 9 groups of 4 channels
	square(1, 8, 11, 132, 132, 5, 1, 2, 1, 132), // depthwise, more than a block of channels
	square(1, 9, 10, 16, 16, 5, 2, 2, 1, 16),    //
	square(1, 10, 9, 8, 8, 7, 1, 3, 1, 8),       //
	square(1, 10, 9, 8, 8, 7, 2, 3, 1, 8),       //
	square(1, 7, 7, 8, 16, 3, 1, 1, 1, 8),       // two filters a channel
	square(1, 7, 7, 8, 8, 3, 1, 2, 2, 8),        // depthwise, dilated
	{N: 1, H: 6, W: 9, C: 16, OC: 24, KH: 3, KW: 2, OH: 7, OW: 4, StrideH: 1, StrideW: 2, PadH: 2, PadW: 0, DilH: 1, DilW: 3, Groups: 1}, // asymmetric
	{N: 1, H: 4, W: 5, C: 4, OC: 4, KH: 1, KW: 5, OH: 6, OW: 3, StrideH: 1, StrideW: 2, PadH: 1, PadW: 2, DilH: 1, DilW: 1, Groups: 1},   // rows of padding alone
	{N: 1, H: 6, W: 6, C: 8, OC: 8, KH: 3, KW: 3, OH: 6, OW: 6, StrideH: 1, StrideW: 1, PadH: 2, PadW: 0, DilH: 1, DilW: 1, Groups: 8},   // depthwise, padded above and to the right
	{N: 1, H: 4, W: 4, C: 16, OC: 8, KH: 1, KW: 1, OH: 5, OW: 5, StrideH: 1, StrideW: 1, PadH: 0, PadW: 0, DilH: 1, DilW: 1, Groups: 1},  // 1x1, padded at the end
}

// convS8 is one convolution with what its epilogue takes; nil operands are absent.
type convS8 struct {
	ConvS8
	x, w     []int8
	wScale   []float32
	wSum     []int32
	bias     []float32
	residual []int8
}

func randomConv(seed uint64, g Conv) *convS8 {
	r := random(seed)
	depth := g.KH * g.KW * g.C / g.Groups
	p := &convS8{ConvS8: ConvS8{Conv: g, XScale: 0.02, XZero: int32(r.IntN(256) - 128), Out: S8, OutZero: int32(r.IntN(256) - 128), ResidualScale: 0.03, ResidualZero: int32(r.IntN(256) - 128)}}
	p.OutScale = 0.02 * 0.01 * 80 * float32(math.Sqrt(float64(depth))) // most of the output's range is met
	p.x, p.w = bytes8(r, g.N*g.H*g.W*g.C), bytes8(r, g.OC*depth)
	p.bias, p.residual = normal(r, g.OC), bytes8(r, g.N*g.OH*g.OW*g.OC)
	p.wScale, p.wSum = make([]float32, g.OC), make([]int32, g.OC)
	for i := range p.wScale {
		p.wScale[i] = 0.005 + r.Float32()/100
		for _, v := range p.w[i*depth : (i+1)*depth] {
			p.wSum[i] += int32(v)
		}
	}
	return p
}

// taps calls f for every output with the products that make it, as indices into
// x [n, h, w, c] and w [oc, kh, kw, c / groups].
func (g *Conv) taps(f func(n, oh, ow, oc int, each func(func(n, h, w, c, kh, kw, cg int)))) {
	cg := g.C / g.Groups
	for n := range g.N {
		for oh := range g.OH {
			for ow := range g.OW {
				for oc := range g.OC {
					f(n, oh, ow, oc, func(product func(n, h, w, c, kh, kw, cg int)) {
						for kh := range g.KH {
							for kw := range g.KW {
								h, w := oh*g.StrideH-g.PadH+kh*g.DilH, ow*g.StrideW-g.PadW+kw*g.DilW
								if h < 0 || h >= g.H || w < 0 || w >= g.W {
									continue
								}
								for c := range cg {
									product(n, h, w, oc/(g.OC/g.Groups)*cg+c, kh, kw, c)
								}
							}
						}
					})
				}
			}
		}
	}
}

// reference computes the sums in integers, and the epilogue in f32 before
// quantization.
func (p *convS8) reference() (y []float32) {
	g := &p.Conv
	cg := g.C / g.Groups
	g.taps(func(_, _, _, oc int, each func(func(n, h, w, c, kh, kw, cg int))) {
		sum := 0
		each(func(n, h, w, c, kh, kw, k int) {
			sum += (int(p.x[((n*g.H+h)*g.W+w)*g.C+c]) - int(p.XZero)) * int(p.w[((oc*g.KH+kh)*g.KW+kw)*cg+k])
		})
		v := float32(sum) * (p.XScale * p.wScale[oc])
		if p.bias != nil {
			v += p.bias[oc]
		}
		if p.residual != nil {
			v += float32(int32(p.residual[len(y)])-p.ResidualZero) * p.ResidualScale
		}
		y = append(y, float32(activate(p.Act, float64(v), float64(p.ActMin), float64(p.ActMax))))
	})
	return y
}

func (p *convS8) operands(t testing.TB) ConvOperands {
	o := ConvOperands{X: in(t, p.x), W: in(t, p.w), WScale: in(t, p.wScale), WSum: optional(t, p.wSum), Bias: optional(t, p.bias), Residual: optional(t, p.residual)}
	if o.WorkspaceBytes = p.Workspace(); o.WorkspaceBytes > 0 {
		o.Workspace = device[byte](t, int(o.WorkspaceBytes))
	}
	return o
}

// run runs p and compares with the reference: bit for bit where no activation with a transcendental function is in between.
func (p *convS8) run(t *testing.T, name string) {
	t.Helper()
	o, want := p.operands(t), p.reference()
	exact := p.Act == None || p.Act == Relu || p.Act == Clip
	if p.Out == F32 {
		o.Y = device[float32](t, len(want))
		ok(t, p.Run(o, 0))
		tolerance := 0.0
		if !exact {
			tolerance = activationTolerance
		}
		near(t, name, out[float32](t, o.Y, len(want)), want, tolerance, 1)
		return
	}
	o.Y = device[int8](t, len(want))
	ok(t, p.Run(o, 0))
	got := out[int8](t, o.Y, len(want))
	q := make([]int8, len(want))
	for i, v := range want {
		q[i] = int8(clamp(int(math.RoundToEven(math.Max(-1e6, math.Min(1e6, float64(v/p.OutScale)))))+int(p.OutZero), -128, 127))
		if d := int(q[i]) - int(got[i]); !exact && d >= -1 && d <= 1 {
			q[i] = got[i]
		}
	}
	equal(t, name, got, q)
}

// Every configuration on every geometry that it takes, whole and split.
func TestConvS8Configs(t *testing.T) {
	schedules(t, func(t *testing.T) {
		ran := map[int]int{}
		for i, g := range geometries {
			for config := 1; config <= ConvS8Configs(); config++ {
				p := randomConv(uint64(i), g)
				p.Config, p.Split = config, 1+(i+config)%2*2
				_, text := p.Pick(must(t))
				if text == "" {
					continue
				}
				ran[config]++
				p.run(t, fmt.Sprintf("%v: %s", &g, text))
			}
		}
		for config := 1; config <= ConvS8Configs(); config++ {
			if ran[config] == 0 {
				t.Errorf("configuration %d never ran", config)
			}
		}
	})
}

func TestConvS8Epilogues(t *testing.T) {
	schedules(t, func(t *testing.T) {
		i := 0
		for _, c := range []struct {
			g       Conv
			configs []int
		}{
			{square(1, 5, 7, 16, 37, 3, 1, 1, 1, 1), []int{1, 3, 4}},
			{square(1, 5, 7, 16, 40, 1, 1, 0, 1, 1), []int{4, 7}},
			{square(1, 5, 7, 40, 40, 3, 1, 1, 1, 40), []int{2}},
		} {
			for _, config := range c.configs {
				for _, o := range []Type{S8, F32} {
					for act := None; act <= Clip; act++ {
						i++
						p := randomConv(uint64(i), c.g)
						p.Config, p.Split, p.Out, p.Act, p.ActMin, p.ActMax = config, 1, o, act, -1, 1.5
						switch i % 4 {
						case 0:
							p.bias, p.residual = nil, nil
						case 1:
							p.XZero, p.wSum = 0, nil
						case 2:
							p.residual = nil
						}
						p.run(t, fmt.Sprintf("config %d, %v, %v, variant %d", config, o, act, i%4))
					}
				}
			}
		}
	})
}

// The quotient y / scale lies on and beside k + 1/2, and far outside the grid.
func TestConvS8Rounds(t *testing.T) {
	schedules(t, func(t *testing.T) {
		r := random(3)
		for _, scale := range []float32{1, 0.1, 0.3, 7, 1e-6, 0x1.fffffep-3, 0x1p-100} {
			p := randomConv(1, square(1, 1, 1, 16, 600, 1, 1, 0, 1, 1))
			p.x, p.residual, p.OutScale = make([]int8, 16), nil, scale // sums are those of the zero point
			p.XZero, p.wSum = 0, nil
			for i := range p.bias {
				y := (float32(r.IntN(260)-130) + 0.5) * scale
				p.bias[i] = math.Float32frombits(math.Float32bits(y) + uint32(r.IntN(5)) - 2)
			}
			inf := float32(math.Inf(1))
			copy(p.bias, []float32{inf, -inf, 3e38, -3e38, 0, 1e-40})
			p.run(t, fmt.Sprint(scale))
		}
	})
}

// The sums as large as they get.
func TestConvS8Extremes(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, config := range []int{1, 3, 4} {
			p := randomConv(1, square(1, 2, 2, 16448, 2, 2, 1, 0, 1, 1)) // 4 x 16448 = 65792 products
			for i := range p.x {
				p.x[i] = -128
			}
			for i := range p.w {
				p.w[i] = -128
			}
			p.XZero, p.wSum = 127, []int32{-128 * 65792, -128 * 65792}
			p.Config, p.Out, p.residual = config, F32, nil
			p.run(t, fmt.Sprint("config ", config))
		}
	})
}

// What pick chooses by itself runs. On a capability without the tensor core instructions it is another kernel.
func TestConvS8Picked(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for i, g := range geometries {
			p := randomConv(uint64(i), g)
			_, text := p.Pick(must(t))
			p.run(t, text)
		}
	})
}

// A workspace is used again without being cleared, and the output may be the residual.
func TestConvS8Workspace(t *testing.T) {
	p := randomConv(5, square(1, 5, 5, 64, 32, 3, 1, 1, 1, 1))
	p.Config, p.Split, p.Zeroed = 4, 4, true
	o := p.operands(t)
	if o.WorkspaceBytes <= CounterBytes {
		t.Fatalf("workspace of %d bytes", o.WorkspaceBytes)
	}
	ok(t, CopyIn(o.Workspace, make([]byte, CounterBytes)))
	o.Y = o.Residual
	for range 3 {
		want := p.reference()
		ok(t, p.Run(o, 0))
		p.residual = out[int8](t, o.Y, len(want))
		for i, v := range want {
			if q := clamp(rne(v/p.OutScale)+int(p.OutZero), -128, 127); q != int(p.residual[i]) {
				t.Fatalf("[%d] = %d, want %d", i, p.residual[i], q)
			}
		}
	}
	equal(t, "counters", out[byte](t, o.Workspace, CounterBytes), make([]byte, CounterBytes))
	o.WorkspaceBytes--
	if err := p.Run(o, 0); !errors.Is(err, ErrWorkspace) {
		t.Errorf("a small workspace: %v", err)
	}
}

func TestConvS8RefusesArguments(t *testing.T) {
	for name, damage := range map[string]func(p *ConvS8, o *ConvOperands){
		"no input":          func(_ *ConvS8, o *ConvOperands) { o.X = 0 },
		"no output":         func(_ *ConvS8, o *ConvOperands) { o.Y = 0 },
		"no scale":          func(_ *ConvS8, o *ConvOperands) { o.WScale = 0 },
		"no sums":           func(_ *ConvS8, o *ConvOperands) { o.WSum = 0 },
		"misaligned input":  func(_ *ConvS8, o *ConvOperands) { o.X = o.X.Add(4) },
		"no channels":       func(p *ConvS8, _ *ConvOperands) { p.C = 0 },
		"no stride":         func(p *ConvS8, _ *ConvOperands) { p.StrideH = 0 },
		"negative padding":  func(p *ConvS8, _ *ConvOperands) { p.PadW = -1 },
		"groups":            func(p *ConvS8, _ *ConvOperands) { p.Groups = 3 },
		"sums overflow":     func(p *ConvS8, _ *ConvOperands) { p.C, p.KH = 32768, 3 },
		"a wide filter":     func(p *ConvS8, _ *ConvOperands) { p.DilW = 1 << 15 },
		"output type":       func(p *ConvS8, _ *ConvOperands) { p.Out = F16 },
		"output scale":      func(p *ConvS8, _ *ConvOperands) { p.OutScale = 0 },
		"tiny output scale": func(p *ConvS8, _ *ConvOperands) { p.OutScale = 1e-35 },
		"output zero":       func(p *ConvS8, _ *ConvOperands) { p.OutZero = 128 },
		"input zero":        func(p *ConvS8, _ *ConvOperands) { p.XZero = -129 },
		"activation":        func(p *ConvS8, _ *ConvOperands) { p.Act = 99 },
		"configuration":     func(p *ConvS8, _ *ConvOperands) { p.Config = ConvS8Configs() + 1 },
		"residual's zero":   func(p *ConvS8, _ *ConvOperands) { p.ResidualZero = 300 },
		"split":             func(p *ConvS8, _ *ConvOperands) { p.Config, p.Split = 4, 1000 },
	} {
		p := randomConv(1, square(1, 4, 4, 16, 16, 3, 1, 1, 1, 1))
		p.XZero = 5
		o := p.operands(t)
		o.Y = device[int8](t, 256)
		damage(&p.ConvS8, &o)
		if err := p.Run(o, 0); !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := randomConv(1, square(1, 4, 4, 16, 16, 3, 1, 1, 1, 1))
	o := p.operands(t)
	o.Y = device[int8](t, 256)
	p.N = 0
	ok(t, p.Run(o, 0))
	p.N, p.H, p.W = 1<<10, 1<<10, 1<<10
	if err := p.Run(o, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a tensor of 2^34 elements: %v", err)
	}
}

// The choice is a pure function, so it can be read: layers of ResNet-50 and MobileNetV2.
func TestConvS8Pick(t *testing.T) {
	layers := []struct {
		name string
		Conv
	}{
		{"stem", square(1, 224, 224, 4, 64, 7, 2, 3, 1, 1)},
		{"stem of 3 channels", square(1, 224, 224, 3, 32, 3, 2, 1, 1, 1)},
		{"res2 1x1", square(1, 56, 56, 256, 64, 1, 1, 0, 1, 1)},
		{"res2 3x3", square(1, 56, 56, 64, 64, 3, 1, 1, 1, 1)},
		{"res4 3x3", square(1, 14, 14, 256, 256, 3, 1, 1, 1, 1)},
		{"res5 3x3", square(1, 7, 7, 512, 512, 3, 1, 1, 1, 1)},
		{"res5 1x1", square(1, 7, 7, 512, 2048, 1, 1, 0, 1, 1)},
		{"expand", square(1, 56, 56, 24, 144, 1, 1, 0, 1, 1)},
		{"depthwise", square(1, 56, 56, 144, 144, 3, 2, 1, 1, 144)},
		{"project", square(1, 28, 28, 144, 32, 1, 1, 0, 1, 1)},
		{"grouped", square(1, 56, 56, 128, 128, 3, 1, 1, 1, 32)},
	}
	var text strings.Builder
	for _, d := range devices {
		for _, l := range layers {
			for _, n := range []int{1, 32} {
				l.N = n
				_, choice := (&ConvS8{Conv: l.Conv}).Pick(d.Info)
				fmt.Fprintf(&text, "%s %s, batch %d: %s\n", d.name, l.name, n, choice)
			}
		}
	}
	golden(t, "testdata/conv_pick.txt", text.String())
}

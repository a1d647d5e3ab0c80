//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// convFloat is one float convolution; nil operands are absent.
type convFloat struct {
	Conv
	x, w, bias, residual []float32
}

func randomConvFloat(seed uint64, g Conv) *convFloat {
	r := random(seed)
	return &convFloat{Conv: g, x: normal(r, g.N*g.C*g.H*g.W), w: normal(r, g.OC*g.KH*g.KW*g.C/g.Groups),
		bias: normal(r, g.OC), residual: normal(r, g.N*g.OC*g.OH*g.OW)}
}

// reference sums in float64 what products makes of the operands. tensor says whether
// the device has tensor cores for it.
func (p *convFloat) reference(products Products, tensor bool) []float32 {
	g := &p.Conv
	cg := g.C / g.Groups
	x, w := p.x, p.w
	if products == FP16 {
		w = floats(halves(w))
	}
	if tensor && g.OC/g.Groups >= 8 {
		switch products {
		case TF32:
			x, w = each(x, toTF32), each(w, toTF32)
		case FP16:
			x = floats(halves(x))
		}
	}
	y := make([]float32, g.N*g.OC*g.OH*g.OW)
	g.taps(func(n, oh, ow, oc int, each func(func(n, h, w, c, kh, kw, cg int))) {
		sum := 0.0
		each(func(n, h, v, c, kh, kw, k int) {
			sum += float64(x[((n*g.C+c)*g.H+h)*g.W+v]) * float64(w[((oc*cg+k)*g.KH+kh)*g.KW+kw])
		})
		at := ((n*g.OC+oc)*g.OH+oh)*g.OW + ow
		if p.bias != nil {
			sum += float64(p.bias[oc])
		}
		if p.residual != nil {
			sum += float64(p.residual[at])
		}
		y[at] = float32(activate(p.Act, sum, float64(p.ActMin), float64(p.ActMax)))
	})
	return y
}

func each(x []float32, f func(float32) float32) []float32 {
	y := make([]float32, len(x))
	for i, v := range x {
		y[i] = f(v)
	}
	return y
}

// convTolerance is relative to the root of the filter's size, as that of products
// of matrices: sums of up to a thousand products of standard normal values, each
// rounded, on tensor cores by less than correct rounding. Rounded operands are the
// reference's as well.
const convTolerance = gemmTolerance

// floatGeometries are those of integers and some around the tiles of floats.
var floatGeometries = append(slices.Clone(geometries),
	square(1, 9, 9, 20, 70, 3, 1, 1, 1, 1),    // more than a tile of filters
	square(3, 6, 5, 17, 9, 2, 1, 0, 1, 1),     // patches that are no multiple of a vector
	square(1, 6, 6, 16, 24, 3, 1, 1, 1, 2),    // tiles of a group that are partly empty
	square(2, 17, 13, 4, 8, 3, 1, 1, 1, 1),    // tiles across images
	square(1, 30, 30, 5, 10, 3, 1, 1, 1, 5),   // two filters a channel
	square(1, 12, 40, 130, 8, 1, 1, 0, 1, 1),  // 1x1
	square(2, 12, 12, 24, 132, 1, 1, 0, 1, 1), // large tiles, of two images, four pixels of each at once
	square(3, 9, 11, 8, 129, 3, 1, 1, 1, 1),   // large tiles with ends everywhere
)

// convFloatSweep runs every kernel: all products over all geometries, with
// operands that are aligned and that are not.
func convFloatSweep(t *testing.T, tensor bool) {
	for i, g := range floatGeometries {
		for _, products := range []Products{FP32, TF32, FP16} {
			p := randomConvFloat(uint64(i), g)
			offset := int64(0) // of filters and results, in elements
			switch (i + int(products)) % 4 {
			case 1:
				p.bias, p.residual = nil, nil
			case 2:
				p.Act, p.ActMin, p.ActMax, p.residual = Clip, 0, 6, nil
			case 3:
				p.Act, offset = Relu, 1
			}
			p.run(t, products, tensor, offset)
		}
	}
}

func (p *convFloat) run(t *testing.T, products Products, tensor bool, offset int64) {
	t.Helper()
	want := p.reference(products, tensor)
	what := fmt.Sprintf("products %d, %s", products, p.Conv.String())
	shifted := func(v []float32) Ptr {
		if v == nil {
			return 0
		}
		return in(t, append(make([]float32, offset), v...)).Add(4 * offset)
	}
	x, bias, residual := in(t, p.x), Ptr(0), shifted(p.residual)
	if p.bias != nil {
		bias = in(t, p.bias)
	}
	var w Ptr
	if products == FP16 {
		w = in(t, append(make([]uint16, offset), halves(p.w)...)).Add(2 * offset)
	} else {
		w = shifted(p.w)
	}
	y := shifted(make([]float32, len(want)))
	ok(t, ConvFloat(p.Conv, products, x, w, bias, residual, y, 0))
	got := out[float32](t, y, len(want))
	near(t, what, got, want, convTolerance, math.Sqrt(float64(p.KH*p.KW*p.C/p.Groups)))
	if residual != 0 { // in place, and the same bits
		ok(t, ConvFloat(p.Conv, products, x, w, bias, residual, residual, 0))
		equal(t, what+" in place", out[float32](t, residual, len(want)), got)
	}
}

func TestConvFloat(t *testing.T) {
	dev, err := Device()
	ok(t, err)
	schedules(t, func(t *testing.T) { convFloatSweep(t, dev.SM >= 80) })
}

// What FP16 cannot hold becomes infinite on tensor cores, and stays what it is by fma.
func TestConvFloatOverflows(t *testing.T) {
	dev, err := Device()
	ok(t, err)
	for _, filters := range []int{8, 4} {
		g := square(1, 2, 2, 8, filters, 1, 1, 0, 1, 1)
		p := randomConvFloat(3, g)
		for i := range p.w {
			p.w[i] = 1
		}
		for i := range p.x {
			p.x[i] = 65520
		}
		p.bias, p.residual = nil, nil
		want := float32(8 * 65520)
		if filters >= 8 && dev.SM >= 80 {
			want = float32(math.Inf(1))
		}
		y := device[float32](t, 4*filters)
		ok(t, ConvFloat(g, FP16, in(t, p.x), in(t, halves(p.w)), 0, 0, y, 0))
		for i, v := range out[float32](t, y, 4*filters) {
			if v != want {
				t.Errorf("%d filters: y[%d] = %v, want %v", filters, i, v, want)
			}
		}
	}
}

func TestConvFloatRefusesArguments(t *testing.T) {
	p := device[float32](t, 64)
	g := square(1, 4, 4, 4, 4, 1, 1, 0, 1, 1)
	for name, damage := range map[string]func(g *Conv, x, w, y *Ptr){
		"no input":         func(_ *Conv, x, _, _ *Ptr) { *x = 0 },
		"no filters":       func(_ *Conv, _, w, _ *Ptr) { *w = 0 },
		"no output":        func(_ *Conv, _, _, y *Ptr) { *y = 0 },
		"no channels":      func(g *Conv, _, _, _ *Ptr) { g.C = 0 },
		"groups":           func(g *Conv, _, _, _ *Ptr) { g.Groups = 3 },
		"negative padding": func(g *Conv, _, _, _ *Ptr) { g.PadH = -1 },
		"activation":       func(g *Conv, _, _, _ *Ptr) { g.Act = 99 },
	} {
		g, x, w, y := g, p, p, p
		damage(&g, &x, &w, &y)
		if err := ConvFloat(g, TF32, x, w, 0, 0, y, 0); !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, products := range []Products{-1, 3} {
		if err := ConvFloat(g, products, p, p, 0, 0, p, 0); !errors.Is(err, ErrArgument) {
			t.Errorf("products %d: %v", products, err)
		}
	}
	g.N = 0
	ok(t, ConvFloat(g, FP32, p, p, 0, 0, p, 0))
	g.N, g.H, g.W = 1<<10, 1<<10, 1<<10
	if err := ConvFloat(g, FP32, p, p, 0, 0, p, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a tensor of 2^32 elements: %v", err)
	}
}

// The choice is a pure function, so it can be read.
func TestConvFloatPick(t *testing.T) {
	layers := []struct {
		name string
		Conv
	}{
		{"stem", square(1, 224, 224, 3, 32, 3, 2, 1, 1, 1)},
		{"res2 3x3", square(1, 56, 56, 64, 64, 3, 1, 1, 1, 1)},
		{"res5 1x1", square(32, 7, 7, 512, 2048, 1, 1, 0, 1, 1)},
		{"depthwise", square(1, 56, 56, 144, 144, 3, 2, 1, 1, 144)},
		{"depth not aligned", square(1, 28, 28, 30, 96, 1, 1, 0, 1, 1)},
	}
	var text strings.Builder
	for _, d := range devices {
		for _, l := range layers {
			for i, name := range []string{"fp32", "tf32", "fp16"} {
				fmt.Fprintf(&text, "%s %s, %s: %s\n", d.name, l.name, name, PickConvFloat(l.Conv, []Products{FP32, TF32, FP16}[i], d.Info))
			}
		}
	}
	golden(t, "testdata/conv_float_pick.txt", text.String())
	if got := PickConvFloat(Conv{}, FP32, devices[0].Info); got != "" {
		t.Errorf("no convolution: %q", got)
	}
	if got := PickConvFloat(layers[0].Conv, 3, devices[0].Info); got != "" {
		t.Errorf("unknown products: %q", got)
	}
}

//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"testing"
)

// convF32 is one float convolution; nil operands are absent.
type convF32 struct {
	Conv
	x, w, bias, residual []float32
}

func randomConvF32(seed uint64, g Conv) *convF32 {
	r := random(seed)
	return &convF32{Conv: g, x: normal(r, g.N*g.C*g.H*g.W), w: normal(r, g.OC*g.KH*g.KW*g.C/g.Groups),
		bias: normal(r, g.OC), residual: normal(r, g.N*g.OC*g.OH*g.OW)}
}

// reference sums in float64.
func (p *convF32) reference() []float32 {
	g := &p.Conv
	cg := g.C / g.Groups
	y := make([]float32, g.N*g.OC*g.OH*g.OW)
	g.taps(func(n, oh, ow, oc int, each func(func(n, h, w, c, kh, kw, cg int))) {
		sum := 0.0
		each(func(n, h, w, c, kh, kw, k int) {
			sum += float64(p.x[((n*g.C+c)*g.H+h)*g.W+w]) * float64(p.w[((oc*cg+k)*g.KH+kh)*g.KW+kw])
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

// Sums of up to a thousand products, rounded each time.
const convTolerance = 2e-5

func TestConvF32(t *testing.T) {
	more := []Conv{
		square(1, 9, 9, 20, 70, 3, 1, 1, 1, 1),   // more than a tile of filters
		square(3, 6, 5, 17, 9, 2, 1, 0, 1, 1),    // patches that are no multiple of a vector
		square(1, 6, 6, 16, 24, 3, 1, 1, 1, 2),   // tiles of a group that are partly empty
		square(2, 17, 13, 4, 8, 3, 1, 1, 1, 1),   // tiles across images
		square(1, 30, 30, 5, 10, 3, 1, 1, 1, 5),  // two filters a channel
		square(1, 12, 40, 130, 8, 1, 1, 0, 1, 1), // 1x1
	}
	schedules(t, func(t *testing.T) {
		for i, g := range append(geometries, more...) {
			p := randomConvF32(uint64(i), g)
			switch i % 4 {
			case 1:
				p.bias, p.residual = nil, nil
			case 2:
				p.Act, p.ActMin, p.ActMax, p.residual = Clip, 0, 6, nil
			case 3:
				p.Act = Relu
			}
			want := p.reference()
			y, bias, residual := device[float32](t, len(want)), Ptr(0), Ptr(0)
			if p.bias != nil {
				bias = in(t, p.bias)
			}
			if p.residual != nil {
				residual = in(t, p.residual)
			}
			x, w := in(t, p.x), in(t, p.w)
			ok(t, ConvF32(p.Conv, x, w, bias, residual, y, 0))
			got := out[float32](t, y, len(want))
			near(t, g.String(), got, want, convTolerance, float64(g.KH*g.KW*g.C/g.Groups)/4)
			if residual != 0 { // in place, and the same bits
				ok(t, ConvF32(p.Conv, x, w, bias, residual, residual, 0))
				equal(t, fmt.Sprint(g.String(), " in place"), out[float32](t, residual, len(want)), got)
			}
		}
	})
}

func TestConvF32RefusesArguments(t *testing.T) {
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
		if err := ConvF32(g, x, w, 0, 0, y, 0); !errors.Is(err, ErrArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.N = 0
	ok(t, ConvF32(g, p, p, 0, 0, p, 0))
	g.N, g.H, g.W = 1<<10, 1<<10, 1<<10
	if err := ConvF32(g, p, p, 0, 0, p, 0); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a tensor of 2^32 elements: %v", err)
	}
}

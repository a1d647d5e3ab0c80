package tflite

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/tensor"

	flatbuffers "github.com/google/flatbuffers/go"
)

// maxResized bounds height and width of a resized value, whose every row is checked.
const maxResized = 1 << 14

func bilinearOptions(align, half bool) options {
	return options{15, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 4, func() {
			b.PrependBoolSlot(2, align, false)
			b.PrependBoolSlot(3, half, false)
		})
	}}
}

func nearestOptions(align, half bool) options {
	return options{74, func(b *flatbuffers.Builder) flatbuffers.UOffsetT {
		return table(b, 2, func() {
			b.PrependBoolSlot(0, align, false)
			b.PrependBoolSlot(1, half, false)
		})
	}}
}

// sayResize says a Resize of height and width, between neighbours or by the nearest one.
func sayResize(s *site) error {
	c := s.c
	x, from, to, err := s.ends()
	if err != nil {
		return err
	}
	if len(from) != 4 || len(to) != 4 || from[0] != to[0] || from[1] != to[1] || max(to[2], to[3], from[2], from[3]) > maxResized {
		return fmt.Errorf("%w: from %v to %v (height and width of up to %d are taken)", ErrUnsupported, from, to, maxResized)
	}
	where := s.n.Str("coordinate_transformation_mode", "half_pixel")
	if c.m.Opset() < 11 { // there was no other, and the neighbour was not said
		where = "asymmetric"
	}
	scale, err := s.resizeScale(from, to)
	if err != nil {
		return err
	}
	size := c.integers(s.y+"/size", []int32{to[2], to[3]}, 2)
	switch mode := s.n.Str("mode", "nearest"); {
	case mode == "nearest":
		for _, k := range []struct{ align, half bool }{{false, false}, {false, true}, {true, false}} {
			if s.nearest(from, to, scale, where, k.align, k.half) {
				return s.moved(x, opResizeNearest, []int32{x, size}, nearestOptions(k.align, k.half))
			}
		}
	case mode == "linear" && s.n.Int("antialias", 0) == 0 && scale[0] == ratio(from[2], to[2]) && scale[1] == ratio(from[3], to[3]):
		switch {
		case where == "align_corners" && min(to[2], to[3]) > 1:
			return s.moved(x, opResizeBilinear, []int32{x, size}, bilinearOptions(true, false))
		case where == "asymmetric":
			return s.moved(x, opResizeBilinear, []int32{x, size}, bilinearOptions(false, false))
		case where == "half_pixel" || where == "pytorch_half_pixel" && min(to[2], to[3]) > 1:
			return s.moved(x, opResizeBilinear, []int32{x, size}, bilinearOptions(false, true))
		}
	}
	return fmt.Errorf("%w: %s with %s, from %v to %v", ErrUnsupported, s.n.Str("mode", "nearest"), where, from[2:], to[2:])
}

func ratio(from, to int32) float64 { return float64(from) / float64(to) }

// resizeScale returns how far in the input one step of the output goes, for height and width:
// ONNX goes by the given scales, which need not be the ratio of the sizes.
func (s *site) resizeScale(from, to []int32) (r [2]float64, err error) {
	r = [2]float64{ratio(from[2], to[2]), ratio(from[3], to[3])}
	scales := 2
	if s.c.m.Opset() < 11 {
		scales = 1
	}
	if s.n.In(scales) == "" || s.n.In(3) != "" {
		return r, nil
	}
	t := s.c.g.Init(s.n.In(scales))
	if t == nil || t.Type != tensor.Float32 || t.Check() != nil || t.Len() != 4 {
		return r, fmt.Errorf("%w: its scales are not four constants", ErrUnsupported)
	}
	for i, v := range tensor.View[float32](t)[2:] {
		if !(v > 0) || math.IsInf(float64(v), 1) {
			return r, fmt.Errorf("%w: a scale of %g", ErrUnsupported, v)
		}
		// A scale that the ratio rounds to is the ratio.
		if g := 1 / float64(v); math.Abs(g-r[i]) > 1e-6*r[i] {
			r[i] = g
		}
	}
	return r, nil
}

// nearest reports whether the kernel with these options takes the same neighbours as ONNX does.
func (s *site) nearest(from, to []int32, scale [2]float64, where string, align, half bool) bool {
	for i := range 2 {
		in, out := from[2+i], to[2+i]
		step, shift := float32(ratio(in, out)), float32(0)
		if align && out > 1 {
			step = float32(in-1) / float32(out-1)
		}
		if half {
			shift = 0.5
		}
		for o := range out {
			want, ok := s.neighbour(float64(o), scale[i], in, out, where)
			pos := (float32(o) + shift) * step
			got := int32(math.Floor(float64(pos)))
			if align {
				got = int32(math.Round(float64(pos)))
			}
			if !ok || max(min(got, in-1), 0) != want {
				return false
			}
		}
	}
	return true
}

// neighbour is the one that ONNX takes for output o.
func (s *site) neighbour(o, step float64, in, out int32, where string) (int32, bool) {
	var x float64
	switch where {
	case "half_pixel":
		x = (o+0.5)*step - 0.5
	case "pytorch_half_pixel":
		if x = (o+0.5)*step - 0.5; out == 1 {
			x = 0
		}
	case "asymmetric":
		x = o * step
	case "align_corners":
		if out > 1 {
			x = o * float64(in-1) / float64(out-1)
		}
	default:
		return 0, false
	}
	mode := s.n.Str("nearest_mode", "round_prefer_floor")
	if s.c.m.Opset() < 11 { // as ONNX Runtime has it
		if mode = "floor"; step > 1 {
			mode = "ceil"
		}
	}
	switch mode {
	case "floor":
		x = math.Floor(x)
	case "ceil":
		x = math.Ceil(x)
	case "round_prefer_floor":
		x = math.Ceil(x - 0.5)
	case "round_prefer_ceil":
		x = math.Floor(x + 0.5)
	default:
		return 0, false
	}
	return max(min(int32(x), in-1), 0), true
}

//go:build cuda

package cuda

import (
	"fmt"
	"testing"
)

// copies are dimensions, the strides of the source and those of the result.
var copies = []struct {
	name           string
	dims, src, dst []int64
}{
	{"scalar", nil, nil, nil},
	{"dense", []int64{3, 5, 7}, []int64{35, 7, 1}, []int64{35, 7, 1}},
	{"dense, 16 bytes at a time", []int64{4, 64}, []int64{64, 1}, []int64{64, 1}},
	{"slice", []int64{3, 8}, []int64{24, 1}, []int64{8, 1}},
	{"odd slice", []int64{3, 8}, []int64{23, 1}, []int64{8, 1}},
	{"every second", []int64{3, 8}, []int64{32, 2}, []int64{8, 1}},
	{"concat", []int64{3, 6}, []int64{6, 1}, []int64{20, 1}},
	{"expand", []int64{4, 3, 6}, []int64{0, 6, 1}, []int64{18, 6, 1}},
	{"expand the inner one", []int64{4, 6}, []int64{1, 0}, []int64{6, 1}},
	{"heads", []int64{2, 3, 5, 8}, []int64{120, 8, 24, 1}, []int64{120, 40, 8, 1}},
	{"matrix", []int64{40, 35}, []int64{1, 40}, []int64{35, 1}},
	{"matrices", []int64{2, 3, 9, 33}, []int64{900, 300, 1, 9}, []int64{891, 297, 33, 1}},
	{"into columns", []int64{33, 12}, []int64{12, 1}, []int64{1, 33}},
	{"keys", []int64{2, 8, 3, 10}, []int64{240, 1, 8, 24}, []int64{240, 10, 80, 1}},
	{"six", []int64{2, 3, 2, 2, 3, 2}, []int64{1, 2, 6, 12, 24, 72}, []int64{72, 24, 12, 6, 2, 1}},
	{"nothing", []int64{3, 0}, []int64{1, 1}, []int64{1, 1}},
}

func testCopy[T uint8 | uint16 | uint32 | uint64](t *testing.T, size int) {
	for _, c := range copies {
		r := random(uint64(size))
		x := make([]T, reach(c.dims, c.src))
		for i := range x {
			x[i] = T(r.Uint64())
		}
		y := make([]T, reach(c.dims, c.dst))
		dy := in(t, y)
		ok(t, Copy(size, view(t, c.dims, c.src), in(t, x), view(t, c.dims, c.dst), dy, 0))
		values, i := expand(x, c.dims, view(t, c.dims, c.src)), 0
		elements(c.dims, c.dst, func(o int64) { y[o] = values[i]; i++ })
		equal(t, fmt.Sprintf("%s, %d bytes", c.name, size), out[T](t, dy, len(y)), y)
	}
}

func TestCopy(t *testing.T) {
	schedules(t, func(t *testing.T) {
		testCopy[uint8](t, 1)
		testCopy[uint16](t, 2)
		testCopy[uint32](t, 4)
		testCopy[uint64](t, 8)
		x, y := in(t, []float32{1, 2, 3, 4, 5, 6}), device[float32](t, 6)
		ok(t, Copy(4, view(t, []int64{2, 3}, []int64{-3, -1}), x.Add(5*4), Dense(2, 3), y, 0))
		equal(t, "backwards", out[float32](t, y, 6), []float32{6, 5, 4, 3, 2, 1})
	})
}

func testGather[T uint8 | uint16 | uint32 | uint64](t *testing.T, size int) {
	for _, c := range []struct{ outer, axis, inner int }{{1, 1, 1}, {3, 5, 1}, {2, 7, 3}, {1, 9, 48}, {2, 4, 66}} {
		r := random(uint64(c.inner))
		x, ids := make([]T, c.outer*c.axis*c.inner), make([]int64, 6)
		for i := range x {
			x[i] = T(r.Uint64())
		}
		for i := range ids {
			ids[i] = int64(r.IntN(2*c.axis) - c.axis)
		}
		var want []T
		for o := range c.outer {
			for _, id := range ids {
				row := (o*c.axis + (int(id)+c.axis)%c.axis) * c.inner
				want = append(want, x[row:row+c.inner]...)
			}
		}
		dx, y, fault := in(t, x), device[T](t, len(want)), in(t, []int32{0})
		ok(t, Gather(size, dx, int64(c.outer), int64(c.axis), int64(c.inner), in(t, ids), int64(len(ids)), y, fault, 0))
		equal(t, fmt.Sprintf("%v, %d bytes", c, size), out[T](t, y, len(want)), want)
		equal(t, "fault", out[int32](t, fault, 1), []int32{0})

		for _, bad := range []int64{int64(c.axis), -int64(c.axis) - 1} {
			y, fault := device[T](t, c.inner), in(t, []int32{0})
			ok(t, Gather(size, dx, 1, int64(c.axis), int64(c.inner), in(t, []int64{bad}), 1, y, fault, 0))
			equal(t, "outside", out[T](t, y, c.inner), x[:c.inner])
			equal(t, "fault", out[int32](t, fault, 1), []int32{1})
		}
	}
}

func TestGather(t *testing.T) {
	schedules(t, func(t *testing.T) {
		testGather[uint8](t, 1)
		testGather[uint16](t, 2)
		testGather[uint32](t, 4)
		testGather[uint64](t, 8)
	})
}

func TestImageLayouts(t *testing.T) {
	schedules(t, func(t *testing.T) {
		for _, c := range []struct{ n, c, hw, ldc int }{{1, 1, 1, 1}, {2, 3, 35, 4}, {2, 3, 35, 3}, {1, 3, 40, 16}, {1, 64, 49, 64}, {2, 67, 33, 68}, {1, 130, 5, 133}} {
			const scale, zero = 0.02, 110
			x := normal(random(uint64(c.c)), c.n*c.c*c.hw)
			want, back := make([]int8, c.n*c.hw*c.ldc), make([]float32, len(x))
			for n := range c.n {
				for p := range c.hw {
					for ch := range c.ldc {
						q := zero
						if ch < c.c {
							q = clamp(rne(x[(n*c.c+ch)*c.hw+p]/scale)+zero, 0, 255)
							back[(n*c.c+ch)*c.hw+p] = float32(q-zero) * float32(scale)
						}
						want[(n*c.hw+p)*c.ldc+ch] = int8(q - 128)
					}
				}
			}
			q, y := device[int8](t, len(want)), device[float32](t, len(x))
			ok(t, QuantizeToNHWC(in(t, x), int64(c.n), int64(c.c), int64(c.hw), scale, zero, q, int64(c.ldc), 0))
			equal(t, fmt.Sprintf("%v quantized", c), out[int8](t, q, len(want)), want)
			ok(t, DequantizeToNCHW(q, int64(c.n), int64(c.c), int64(c.hw), int64(c.ldc), scale, zero-128, y, 0))
			equal(t, fmt.Sprintf("%v dequantized", c), out[float32](t, y, len(x)), back)
		}
	})
}

func TestLayoutRefusesArguments(t *testing.T) {
	p := device[float32](t, 16)
	for name, err := range map[string]error{
		"null":            Copy(4, Dense(4), 0, Dense(4), p, 0),
		"size":            Copy(3, Dense(4), p, Dense(4), p, 0),
		"written twice":   Copy(4, Dense(4), p, view(t, []int64{4}, []int64{0}), p, 0),
		"overlapping":     Copy(4, Dense(2, 4), p, view(t, []int64{2, 4}, []int64{2, 1}), p, 0),
		"gather size":     Gather(3, p, 1, 1, 1, p, 1, p, 0, 0),
		"gather nothing":  Gather(4, p, 1, 0, 1, p, 1, p, 0, 0),
		"gather overflow": Gather(4, p, 1<<40, 1<<40, 1, p, 1, p, 0, 0),
		"few channels":    QuantizeToNHWC(p, 1, 4, 1, 1, 0, p, 3, 0),
		"scale":           QuantizeToNHWC(p, 1, 4, 1, 0, 0, p, 4, 0),
		"images":          DequantizeToNCHW(p, -1, 4, 1, 4, 1, 0, p, 0),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

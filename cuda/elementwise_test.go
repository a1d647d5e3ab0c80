//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// unaryTolerance is what CUDA's erff, tanhf and powf may be off (a few ulp, CUDA
// programming guide), relative to the larger of the result and 1.
const unaryTolerance = 2e-6

// elements calls f with the offset of every element of v's dimensions in
// row-major order, under v's strides.
func elements(dims []int64, strides []int64, f func(offset int64)) {
	if len(dims) == 0 {
		f(0)
		return
	}
	for i := range dims[0] {
		elements(dims[1:], strides[1:], func(o int64) { f(i*strides[0] + o) })
	}
}

// expand returns the elements of x as v reads them over dims.
func expand[T any](x []T, dims []int64, v View) (y []T) {
	elements(dims, v.Strides[:v.Rank], func(o int64) { y = append(y, x[o]) })
	return y
}

func view(t testing.TB, dims, strides []int64) View {
	t.Helper()
	v, err := NewView(dims, strides)
	ok(t, err)
	return v
}

// layouts are dimensions with strides of two operands and the number of elements these reach.
var layouts = []struct{ dims, a, b []int64 }{
	{nil, nil, nil},
	{[]int64{1}, []int64{1}, []int64{0}},
	{[]int64{7}, []int64{1}, []int64{1}},
	{[]int64{1028}, []int64{1}, []int64{1}},                          // vectors
	{[]int64{3, 40}, []int64{40, 1}, []int64{0, 1}},                  // rows
	{[]int64{3, 40}, []int64{0, 0}, []int64{40, 1}},                  // a scalar
	{[]int64{5, 8}, []int64{1, 0}, []int64{8, 1}},                    // columns
	{[]int64{2, 3, 5}, []int64{15, 5, 1}, []int64{1, 2, 6}},          // transposed
	{[]int64{2, 3, 1, 6}, []int64{18, 6, 6, 1}, []int64{0, 6, 0, 1}}, // merged in part
	{[]int64{2, 1, 2, 3, 2, 4}, []int64{48, 48, 24, 8, 4, 1}, []int64{4, 0, 0, 8, 0, 1}},
	{[]int64{4, 6}, []int64{14, 2}, []int64{6, 1}}, // every second
	{[]int64{3, 8}, []int64{9, 1}, []int64{8, 1}},  // rows that are not aligned
	{[]int64{0, 4}, []int64{4, 1}, []int64{0, 1}},
}

func reach(dims, strides []int64) int {
	n := int64(1)
	for i, d := range dims {
		n += max(d-1, 0) * strides[i]
	}
	return int(n)
}

func testBinary[T int64 | int32 | uint8 | float32](t *testing.T, typ Type, ops []Op, value func(r *rand.Rand) T, want func(op Op, a, b T) T, tolerance float64) {
	for _, l := range layouts {
		r := random(uint64(len(l.dims)))
		fill := func(n int) []T {
			v := make([]T, n)
			for i := range v {
				v[i] = value(r)
			}
			return v
		}
		a, b := fill(reach(l.dims, l.a)), fill(reach(l.dims, l.b))
		av, bv := view(t, l.dims, l.a), view(t, l.dims, l.b)
		xa, xb := expand(a, l.dims, av), expand(b, l.dims, bv)
		da, db := in(t, a), in(t, b)
		for _, op := range ops {
			y := device[T](t, len(xa))
			ok(t, Binary(op, typ, Dense(l.dims...), da, av, db, bv, y, 0))
			expected := make([]T, len(xa))
			for i := range expected {
				expected[i] = want(op, xa[i], xb[i])
			}
			name := fmt.Sprintf("%v %v over %v", typ, op, l.dims)
			if got := out[T](t, y, len(xa)); tolerance == 0 {
				equal(t, name, got, expected)
			} else {
				near(t, name, any(got).([]float32), any(expected).([]float32), tolerance, 1e-3)
			}
		}
	}
}

var arithmetic = []Op{Add, Sub, Mul, Div, Pow, Min, Max}

func goArithmetic[T int64 | int32 | uint8](op Op, a, b T) T {
	switch op {
	case Add:
		return a + b
	case Sub:
		return a - b
	case Mul:
		return a * b
	case Div:
		if b == 0 {
			return 0
		}
		return a / b // the lowest value by -1 is itself in Go
	case Pow:
		var zero T
		if b < zero {
			switch {
			case a == 1:
				return 1
			case a == zero-1 && b%2 == 0:
				return 1
			case a == zero-1:
				return a
			}
			return 0
		}
		y := T(1)
		for i := zero; i < b; i++ {
			y *= a
		}
		return y
	case Min:
		return min(a, b)
	}
	return max(a, b)
}

func TestBinary(t *testing.T) {
	schedules(t, func(t *testing.T) {
		float := func(r *rand.Rand) float32 {
			switch r.IntN(12) {
			case 0:
				return float32(math.NaN())
			case 1:
				return 0
			case 2:
				return 2
			}
			return float32(r.NormFloat64())
		}
		wantFloat := func(op Op, a, b float32) float32 {
			switch op {
			case Add:
				return a + b
			case Sub:
				return a - b
			case Mul:
				return a * b
			case Div:
				return a / b
			case Min:
				return min(a, b)
			case Max:
				return max(a, b)
			}
			return float32(math.Pow(float64(a), float64(b)))
		}
		testBinary(t, F32, []Op{Add, Sub, Mul, Div, Min, Max}, float, wantFloat, 0)
		testBinary(t, F32, []Op{Pow}, float, wantFloat, unaryTolerance)
		small := func(r *rand.Rand) int64 { return r.Int64N(15) - 5 }
		testBinary(t, S64, arithmetic, func(r *rand.Rand) int64 {
			if r.IntN(8) == 0 {
				return math.MinInt64
			}
			return small(r)
		}, func(op Op, a, b int64) int64 {
			if op == Pow && b == math.MinInt64 { // even
				b = -2
			}
			return goArithmetic(op, a, b)
		}, 0)
		testBinary(t, S32, arithmetic, func(r *rand.Rand) int32 { return int32(small(r)) }, goArithmetic[int32], 0)
		testBinary(t, U8, arithmetic, func(r *rand.Rand) uint8 { return uint8(r.UintN(256)) }, goArithmetic[uint8], 0)
	})
}

func testCompare[T int64 | int32 | uint8 | float32](t *testing.T, typ Type, ops ...Op) {
	for _, l := range layouts {
		r := random(11)
		fill := func(n int) []T {
			v := make([]T, n)
			for i := range v {
				v[i] = T(r.IntN(3))
			}
			return v
		}
		a, b := fill(reach(l.dims, l.a)), fill(reach(l.dims, l.b))
		av, bv := view(t, l.dims, l.a), view(t, l.dims, l.b)
		xa, xb := expand(a, l.dims, av), expand(b, l.dims, bv)
		da, db := in(t, a), in(t, b)
		for _, op := range ops {
			y := device[bool](t, len(xa))
			ok(t, Binary(op, typ, Dense(l.dims...), da, av, db, bv, y, 0))
			want := make([]bool, len(xa))
			for i := range want {
				p, q := xa[i], xb[i]
				want[i] = map[Op]bool{Equal: p == q, Less: p < q, Greater: p > q, And: p != 0 && q != 0, Or: p != 0 || q != 0}[op]
			}
			equal(t, fmt.Sprintf("%v %v over %v", typ, op, l.dims), out[bool](t, y, len(xa)), want)
		}
	}
}

func TestCompare(t *testing.T) {
	schedules(t, func(t *testing.T) {
		testCompare[float32](t, F32, Equal, Less, Greater)
		testCompare[int64](t, S64, Equal, Less, Greater)
		testCompare[int32](t, S32, Equal, Less, Greater)
		testCompare[uint8](t, U8, Equal, Less, Greater, And, Or)
		testCompare[uint8](t, Bool, Equal, And, Or)
	})
}

func TestBinaryReadsBackwards(t *testing.T) {
	schedules(t, func(t *testing.T) {
		x := in(t, []float32{1, 2, 3, 4, 5, 6, 7, 8})
		y := device[float32](t, 8)
		ok(t, Binary(Add, F32, Dense(8), x.Add(4*7), view(t, []int64{8}, []int64{-1}), x, Dense(8), y, 0))
		equal(t, "sum", out[float32](t, y, 8), []float32{9, 9, 9, 9, 9, 9, 9, 9})
	})
}

func TestBinaryPast32Bits(t *testing.T) {
	if isEmulated() {
		t.Skip("offsets past 2^31 need 2 GiB of device memory")
	}
	const far = 1 << 31
	x := device[uint8](t, far+4)
	ok(t, CopyIn(x, []uint8{1, 2, 3, 4}))
	ok(t, CopyIn(x.Add(far), []uint8{10, 20, 30, 40}))
	y := device[uint8](t, 8)
	v := view(t, []int64{2, 4}, []int64{far, 1})
	ok(t, Binary(Add, U8, Dense(2, 4), x, v, x, v, y, 0))
	equal(t, "sum", out[uint8](t, y, 8), []uint8{2, 4, 6, 8, 20, 40, 60, 80})
	ok(t, Where(1, Dense(2, 4), x, v, x, v, y, Dense(2, 4), y, 0))
	equal(t, "where", out[uint8](t, y, 8), []uint8{1, 2, 3, 4, 10, 20, 30, 40})
}

func TestUnary(t *testing.T) {
	sigmoid := func(x float64) float64 { return 1 / (1 + math.Exp(-x)) }
	hard := func(x float64) float64 { return math.Max(0, math.Min(1, x)) }
	ops := map[Op]func(x float64) float64{
		Abs: math.Abs, Neg: func(x float64) float64 { return -x }, Exp: math.Exp, Log: math.Log, Sqrt: math.Sqrt, Reciprocal: func(x float64) float64 { return 1 / x },
		Erf: math.Erf, Tanh: math.Tanh, Sigmoid: sigmoid, Floor: math.Floor, Ceil: math.Ceil, Sin: math.Sin, Cos: math.Cos,
		HardSigmoid: func(x float64) float64 { return hard(0.2*x + 0.5) },
		HardSwish:   func(x float64) float64 { return x * hard(x/6+0.5) },
		LeakyRelu:   func(x float64) float64 { return math.Max(x, 0) + 0.2*math.Min(x, 0) },
	}
	acts := map[Act]func(x float64) float64{
		Relu:      func(x float64) float64 { return math.Max(x, 0) },
		Gelu:      func(x float64) float64 { return x / 2 * (1 + math.Erf(x/math.Sqrt2)) },
		GeluTanh:  func(x float64) float64 { return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x))) },
		QuickGelu: func(x float64) float64 { return x * sigmoid(1.702*x) },
		Silu:      func(x float64) float64 { return x * sigmoid(x) },
		Clip:      func(x float64) float64 { return math.Max(0.2, math.Min(0.5, x)) },
	}
	schedules(t, func(t *testing.T) {
		for _, n := range []int{1, 31, 1024, 2050} {
			x := normal(random(uint64(n)), n)
			x[n/2] = float32(math.NaN())
			x[n-1] = 0
			dx := in(t, x)
			check := func(name string, f func(float64) float64, run func(y Ptr) error) {
				y := device[float32](t, n)
				ok(t, run(y))
				want := make([]float32, n)
				for i := range want {
					want[i] = float32(f(float64(x[i])))
				}
				near(t, name, out[float32](t, y, n), want, unaryTolerance, 1)
			}
			for op, f := range ops {
				check(op.String(), f, func(y Ptr) error { return Unary(op, dx, int64(n), 0.2, 0.5, y, 0) })
			}
			for act, f := range acts {
				check(act.String(), f, func(y Ptr) error { return Activate(act, dx, int64(n), 0.2, 0.5, y, 0) })
			}
		}
		b := in(t, []uint8{0, 1, 7})
		ok(t, Unary(Not, b, 3, 0, 0, b, 0)) // in place
		equal(t, "not", out[uint8](t, b, 3), []uint8{1, 0, 0})
	})
}

func testWhere[T uint8 | float32 | int64](t *testing.T, size int) {
	for _, l := range layouts {
		r := random(5)
		a, b := make([]T, reach(l.dims, l.a)), make([]T, reach(l.dims, l.b))
		for i := range a {
			a[i] = T(r.UintN(200))
		}
		for i := range b {
			b[i] = T(r.UintN(200))
		}
		av, bv := view(t, l.dims, l.a), view(t, l.dims, l.b)
		cond := make([]uint8, len(a)) // as a lies
		for i := range cond {
			cond[i] = uint8(r.UintN(3))
		}
		xa, xb, xc := expand(a, l.dims, av), expand(b, l.dims, bv), expand(cond, l.dims, av)
		y := device[T](t, len(xa))
		ok(t, Where(size, Dense(l.dims...), in(t, cond), av, in(t, a), av, in(t, b), bv, y, 0))
		want := slices.Clone(xb)
		for i := range want {
			if xc[i] != 0 {
				want[i] = xa[i]
			}
		}
		equal(t, fmt.Sprintf("%T over %v", a, l.dims), out[T](t, y, len(xa)), want)
	}
}

func TestWhere(t *testing.T) {
	schedules(t, func(t *testing.T) {
		testWhere[uint8](t, 1)
		testWhere[float32](t, 4)
		testWhere[int64](t, 8)
	})
}

func testCast[S, D comparable](t *testing.T, from, to Type, x []S, want []D) {
	t.Helper()
	y := device[D](t, len(x))
	ok(t, Cast(from, to, in(t, x), int64(len(x)), y, 0))
	equal(t, fmt.Sprintf("%v to %v", from, to), out[D](t, y, len(x)), want)
}

// The expected values are what ONNX Runtime 1.32 gives on x86-64.
func TestCast(t *testing.T) {
	schedules(t, func(t *testing.T) {
		nan, inf := float32(math.NaN()), float32(math.Inf(1))
		x := []float32{0, 0.5, 1.5, -1.5, -2.7, 127.5, 128, 200.9, 255.5, 300.7, -5.5, -129, 70000, 3e9, -3e9, 1e20, -1e20, nan, inf, -inf}
		lo32, lo64 := int32(math.MinInt32), int64(math.MinInt64)
		testCast(t, F32, S8, x, []int8{0, 0, 1, -1, -2, 127, -128, -56, -1, 44, -5, 127, 112, 0, 0, 0, 0, 0, 0, 0})
		testCast(t, F32, U8, x, []uint8{0, 0, 1, 255, 254, 127, 128, 200, 255, 44, 251, 127, 112, 0, 0, 0, 0, 0, 0, 0})
		testCast(t, F32, S32, x, []int32{0, 0, 1, -1, -2, 127, 128, 200, 255, 300, -5, -129, 70000, lo32, lo32, lo32, lo32, lo32, lo32, lo32})
		testCast(t, F32, S64, x, []int64{0, 0, 1, -1, -2, 127, 128, 200, 255, 300, -5, -129, 70000, 3e9, -3e9, lo64, lo64, lo64, lo64, lo64})
		testCast(t, F32, U32, x[:15], []uint32{0, 0, 1, 4294967295, 4294967294, 127, 128, 200, 255, 300, 4294967291, 4294967167, 70000, 3e9, 1294967296})
		testCast(t, F32, Bool, x, []bool{false, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true, true})
		i := []int64{0, 1, -1, 127, 128, 256, -129, 1 << 31, -1<<31 - 1, 1<<40 + 3, 1<<53 + 1}
		testCast(t, S64, S8, i, []int8{0, 1, -1, 127, -128, 0, 127, 0, -1, 3, 1})
		testCast(t, S64, U8, i, []uint8{0, 1, 255, 127, 128, 0, 127, 0, 255, 3, 1})
		testCast(t, S64, S32, i, []int32{0, 1, -1, 127, 128, 256, -129, lo32, math.MaxInt32, 3, 1})
		testCast(t, S64, F32, i, []float32{0, 1, -1, 127, 128, 256, -129, 1 << 31, -1 << 31, 1 << 40, 1 << 53})
		testCast(t, S64, Bool, i, []bool{false, true, true, true, true, true, true, true, true, true, true})
		testCast(t, U8, S64, []uint8{0, 200}, []int64{0, 200})
		testCast(t, S8, F32, []int8{-128, 5}, []float32{-128, 5})
		testCast(t, U32, S64, []uint32{0, 4294967295}, []int64{0, 4294967295})
		testCast(t, Bool, F32, []uint8{0, 1}, []float32{0, 1})
		testCast(t, S32, F32, []int32{-7, 1 << 24}, []float32{-7, 1 << 24})

		halves := []float32{0, 1, -2.7, 200.9, 65504, 65520, 1e-8, inf}
		bits := []uint16{0, 0x3c00, 0xc166, 0x5a47, 0x7bff, 0x7c00, 0, 0x7c00}
		back := []float32{0, 1, -2.69921875, 200.875, 65504, inf, 0, inf}
		for _, n := range []int{8, 7} { // vectors, one by one
			testCast(t, F32, F16, halves[:n], bits[:n])
			testCast(t, F16, F32, bits[:n], back[:n])
		}
		testCast(t, F16, S32, bits[:5], []int32{0, 1, -2, 200, 65504})
		testCast(t, F32, BF16, []float32{1, 1.00390625, 1.01171875, -3}, []uint16{0x3f80, 0x3f80, 0x3f82, 0xc040})
		testCast(t, BF16, F32, []uint16{0x3f82, 0xc040}, []float32{1.015625, -3})
	})
}

func TestElementwiseRefusesArguments(t *testing.T) {
	p := device[float32](t, 16)
	wide := View{Rank: MaxRank + 1}
	if _, err := NewView(make([]int64, MaxRank+1), make([]int64, MaxRank+1)); err == nil {
		t.Error("a view of too many dimensions: accepted")
	}
	for name, err := range map[string]error{
		"null":           Binary(Add, F32, Dense(4), 0, Dense(4), p, Dense(4), p, 0),
		"rank":           Binary(Add, F32, Dense(4), p, Dense(2, 2), p, Dense(4), p, 0),
		"too wide":       Binary(Add, F32, wide, p, wide, p, wide, p, 0),
		"too large":      Binary(Add, F32, Dense(1<<40, 1<<40), p, Dense(1, 1), p, Dense(1, 1), p, 0),
		"type":           Binary(Add, F16, Dense(4), p, Dense(4), p, Dense(4), p, 0),
		"op":             Binary(Abs, F32, Dense(4), p, Dense(4), p, Dense(4), p, 0),
		"and of floats":  Binary(And, F32, Dense(4), p, Dense(4), p, Dense(4), p, 0),
		"negative":       Unary(Abs, p, -1, 0, 0, p, 0),
		"unary op":       Unary(Add, p, 1, 0, 0, p, 0),
		"no activation":  Activate(None, p, 1, 0, 0, p, 0),
		"size":           Where(3, Dense(4), p, Dense(4), p, Dense(4), p, Dense(4), p, 0),
		"cast from what": Cast(Type(9), F32, p, 1, p, 0),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOpsHaveNames(t *testing.T) {
	for o := range Op(len(opNames)) {
		if unknown := fmt.Sprintf("Op(%d)", int32(o)); (o <= Or || o >= Abs) == (o.String() == unknown) {
			t.Errorf("operation %d prints as %q", o, o)
		}
	}
}

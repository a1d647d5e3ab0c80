//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if _, err := Device(); err != nil {
		fmt.Fprintln(os.Stderr, "no CUDA device:", err)
		os.Exit(1)
	}
	prepare()
	os.Exit(m.Run())
}

// schedules runs f on every schedule of the emulated device, or once on a real one.
func schedules(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	for _, seed := range seeds() {
		t.Run(fmt.Sprintf("schedule=%d", seed), func(t *testing.T) {
			configure(seed)
			f(t)
		})
	}
}

// in copies v to the device until the test ends.
func in[T any](t testing.TB, v []T) Ptr {
	t.Helper()
	p := device[T](t, len(v))
	if err := CopyIn(p, v); err != nil {
		t.Fatal(err)
	}
	return p
}

// device allocates n values until the test ends; Free then says whether the
// bytes around them were written.
func device[T any](t testing.TB, n int) Ptr {
	t.Helper()
	var v [1]T
	p, err := Malloc(int64(n) * int64(sizeOf(v[0])))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Free(p); err != nil {
			t.Errorf("%v: %s", err, message())
		}
	})
	return p
}

// out waits for the stream and returns n values.
func out[T any](t testing.TB, p Ptr, n int) []T {
	t.Helper()
	ok(t, Sync(0))
	v := make([]T, n)
	ok(t, CopyOut(v, p))
	return v
}

// ok fails the test with what the emulator found.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%v: %s", err, message())
	}
}

func equal[T comparable](t testing.TB, what string, got, want []T) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	bad := 0
	for i := range got {
		if got[i] != want[i] && !(got[i] != got[i] && want[i] != want[i]) {
			if bad++; bad <= 3 {
				t.Errorf("%s[%d] = %v, want %v", what, i, got[i], want[i])
			}
		}
	}
	if bad > 3 {
		t.Errorf("%s: %d of %d values differ", what, bad, len(got))
	}
}

// near compares with a tolerance relative to the larger of |want| and floor.
func near(t testing.TB, what string, got, want []float32, tolerance, floor float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	bad := 0
	for i := range got {
		g, w := float64(got[i]), float64(want[i])
		if !(math.Abs(g-w) <= tolerance*math.Max(math.Abs(w), floor)) && !(math.IsNaN(g) && math.IsNaN(w)) && g != w {
			if bad++; bad <= 3 {
				t.Errorf("%s[%d] = %v, want %v", what, i, g, w)
			}
		}
	}
	if bad > 3 {
		t.Errorf("%s: %d of %d values differ", what, bad, len(got))
	}
}

func random(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

func normal(r *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(r.NormFloat64())
	}
	return v
}

func bytes8(r *rand.Rand, n int) []int8 {
	v := make([]int8, n)
	for i := range v {
		v[i] = int8(r.UintN(256))
	}
	return v
}

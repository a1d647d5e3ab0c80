//go:build cuda

package observe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
	"github.com/fewbit/fewbit/internal/tensor"
)

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// gpu opens GPU 0 until the test ends.
func gpu(t *testing.T) *device.Device {
	t.Helper()
	d, err := device.Open(0)
	if err != nil {
		if driver.Emulated {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { check(t, d.Close()) })
	return d
}

func newStream(t *testing.T, d *device.Device) *device.Stream {
	t.Helper()
	s, err := d.NewStream()
	check(t, err)
	t.Cleanup(func() { check(t, s.Close()) })
	return s
}

func newObserver(t *testing.T, d *device.Device, specs map[string]calib.Spec) *Observer {
	t.Helper()
	o, err := New(d, specs)
	check(t, err)
	t.Cleanup(func() { check(t, o.Close()) })
	return o
}

// upload puts values on the device until the test ends.
func upload(t *testing.T, d *device.Device, s *device.Stream, name string, x *tensor.Tensor) Tensor {
	t.Helper()
	m, err := d.Alloc(int64(len(x.Data)) + 4)
	check(t, err)
	t.Cleanup(func() { check(t, m.Close()) })
	check(t, s.CopyIn(m.Span, x.Data))
	return Tensor{name, m.Ptr, x.Dims}
}

func f32(dims []int64, f func(i int) float32) *tensor.Tensor {
	n, err := tensor.Elems(dims)
	if err != nil {
		panic(err)
	}
	b := make([]byte, 4*n)
	for i := range int(n) {
		binary.NativeEndian.PutUint32(b[4*i:], math.Float32bits(f(i)))
	}
	return &tensor.Tensor{Type: tensor.Float32, Dims: dims, Data: b}
}

// sample is one run of a model with four tensors: batches and lengths differ, the
// largest value grows, one tensor is sometimes empty.
func sample(r *rand.Rand, round int) engine.Feeds {
	batch, length := int64(1+r.IntN(3)), int64(1+r.IntN(20))
	return engine.Feeds{
		"hidden": f32([]int64{batch, length, 24}, func(int) float32 { return float32(r.NormFloat64()) * float32(1+round) }),
		"relu":   f32([]int64{batch, 6, 5, 7}, func(int) float32 { return max(0, float32(r.NormFloat64())) }),
		"mask": f32([]int64{batch, 1, 1, length}, func(i int) float32 {
			switch i % 17 {
			case 3:
				return -math.MaxFloat32
			case 5:
				return float32(math.NaN())
			case 6:
				return float32(math.Inf(1))
			}
			return 0
		}),
		"ragged": f32([]int64{int64(r.IntN(3)), 4}, func(int) float32 { return float32(math.Exp(r.NormFloat64() * 9)) }),
	}
}

var specs = map[string]calib.Spec{
	"hidden": {ChannelMax: true, Axis: -1, MovingAverage: true},
	"relu":   {ChannelMax: true, Axis: 1},
	"mask":   {},
	"ragged": {MovingAverage: true},
	"unseen": {ChannelMax: true, Axis: -1},
}

func written(t *testing.T, c *calib.Collector) string {
	t.Helper()
	table := c.Table("")
	delete(table.Tensors, "unseen") // nothing can be chosen for it
	if err := table.Fill(calib.U8, calib.MethodMinMax, calib.MethodEntropy, calib.MethodMSE); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	check(t, table.Write(&b))
	return b.String()
}

// A calibration on the device writes the table that one on the CPU writes, byte
// for byte, and its search finds the same thresholds.
func TestTableIsTheCPUs(t *testing.T) {
	d := gpu(t)
	one, other := newStream(t, d), newStream(t, d)
	o := newObserver(t, d, specs)
	r := rand.New(rand.NewPCG(1, 2))
	cpu, onDevice := calib.NewCollector(1, specs), calib.NewCollector(1, specs)
	for part := range 2 { // read back twice: the second time it starts anew
		var ids []calib.SampleID
		for round := range 6 {
			feeds := sample(r, round)
			id := calib.SampleHash(feeds)
			ids = append(ids, id)
			check(t, cpu.Observe(context.Background(), feeds, id))
			s := []*device.Stream{one, other}[round%2]
			var tensors []Tensor
			for name, x := range feeds {
				tensors = append(tensors, upload(t, d, s, name, x))
			}
			tensors = append(tensors, Tensor{"not observed", 0, nil})
			check(t, o.Observe(s, tensors...))
		}
		if part == 0 {
			got, err := o.Entropy(calib.U8)
			check(t, err)
			want := map[string]calib.Range{}
			for _, name := range []string{"hidden", "relu", "mask", "ragged"} {
				want[name], err = cpu.Stats(name).Threshold(calib.MethodEntropy, calib.U8)
				check(t, err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("thresholds %v, want %v", got, want)
			}
		}
		check(t, o.Collect(onDevice, ids...))
	}
	if got, want := written(t, onDevice), written(t, cpu); got != want {
		t.Errorf("on the device:\n%s\non the CPU:\n%s", got, want)
	}
}

// again is true when the tests run anew on another schedule of the emulation.
var again bool

// One tensor several times in a call, and more samples than wait on the device.
func TestManySamples(t *testing.T) {
	if again {
		return // thousands of launches, whose order no schedule changes
	}
	d := gpu(t)
	s := newStream(t, d)
	spec := map[string]calib.Spec{"x": {MovingAverage: true}}
	o := newObserver(t, d, spec)
	cpu, onDevice := calib.NewCollector(1, spec), calib.NewCollector(1, spec)
	a := f32([]int64{3}, func(i int) float32 { return float32(i) })
	b := f32([]int64{2}, func(i int) float32 { return float32(-5 * i) })
	onA, onB := upload(t, d, s, "x", a), upload(t, d, s, "x", b)
	for range samples/2 + 3 {
		check(t, cpu.Observe(context.Background(), engine.Feeds{"x": a}))
		check(t, cpu.Observe(context.Background(), engine.Feeds{"x": b}))
		check(t, o.Observe(s, onA, onB))
	}
	check(t, o.Collect(onDevice))
	var x, y bytes.Buffer
	check(t, cpu.Table("").Write(&x))
	check(t, onDevice.Table("").Write(&y))
	if x.String() != y.String() {
		t.Errorf("%s\nwant\n%s", &y, &x)
	}
}

func TestRefuses(t *testing.T) {
	d := gpu(t)
	s := newStream(t, d)
	if _, err := New(d, map[string]calib.Spec{"x": {ChannelMean: true}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("means: %v", err)
	}
	if _, err := New(d, nil); err == nil {
		t.Error("nothing to observe")
	}
	o := newObserver(t, d, map[string]calib.Spec{"x": {ChannelMax: true, Axis: 1}, "y": {}})
	x := upload(t, d, s, "x", f32([]int64{2, 3}, func(i int) float32 { return float32(i) }))
	check(t, o.Observe(s, x))
	for name, c := range map[string]struct {
		t    Tensor
		want error
	}{
		"other channels": {Tensor{"x", x.Ptr, []int64{3, 2}}, calib.ErrShape},
		"no such axis":   {Tensor{"x", x.Ptr, []int64{6}}, calib.ErrShape},
		"negative":       {Tensor{"y", x.Ptr, []int64{-6}}, tensor.ErrShape},
		"no address":     {Tensor{"y", 0, []int64{6}}, nil},
	} {
		if err := o.Observe(s, x, c.t); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// None of it was counted.
	c := calib.NewCollector(1, map[string]calib.Spec{"x": {ChannelMax: true, Axis: 1}})
	check(t, o.Collect(c))
	if n := c.Stats("x").Histogram().Count(); n != 6 {
		t.Errorf("%d values, want those of one tensor", n)
	}
	// Values without a finite one, and none at all.
	nan := upload(t, d, s, "y", f32([]int64{2}, func(int) float32 { return float32(math.NaN()) }))
	check(t, o.Observe(s, nan))
	if _, err := o.Entropy(calib.S8); !errors.Is(err, calib.ErrAllNaN) {
		t.Error(err)
	}
	check(t, o.Observe(s, Tensor{"x", 0, []int64{0, 3}}))
	if _, err := o.Entropy(calib.S8); !errors.Is(err, calib.ErrNoData) {
		t.Error(err)
	}
	if _, err := o.Entropy(calib.Scheme{Type: tensor.Float32}); !errors.Is(err, calib.ErrScheme) {
		t.Error(err)
	}
}

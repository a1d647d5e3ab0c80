//go:build cuda && cudaemu

package observe

import (
	"errors"
	"os"
	"testing"

	"github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
)

func TestMain(m *testing.M) {
	code := 0
	for _, seed := range []uint32{0, 1, 2, 3, 4} {
		cuda.Emulate(seed, 90)
		code = max(code, m.Run())
		again = true
	}
	u := driver.InUse()
	if u.Launches = 0; u != (driver.Use{}) {
		os.Stderr.WriteString("the tests left something open\n")
		code = 1
	}
	os.Exit(code)
}

func inject(t *testing.T, f driver.Faults) {
	t.Helper()
	driver.Inject(f)
	t.Cleanup(func() { driver.Inject(driver.Faults{}) })
}

func TestOutOfMemory(t *testing.T) {
	inject(t, driver.Faults{Memory: 1 << 20})
	d := gpu(t)
	if _, err := New(d, map[string]calib.Spec{"a": {}, "b": {}}); !errors.Is(err, device.ErrOutOfMemory) {
		t.Error(err)
	}
	o := newObserver(t, d, map[string]calib.Spec{"a": {}})
	if _, err := o.Entropy(calib.U8); err != nil {
		t.Error(err)
	}
	check(t, d.Sync())
}

// A fault in a kernel: every call after it says so, and closing works.
func TestLost(t *testing.T) {
	inject(t, driver.Faults{LaunchError: 700, AfterLaunches: 2})
	d := gpu(t)
	s := newStream(t, d)
	o := newObserver(t, d, map[string]calib.Spec{"a": {}})
	x := upload(t, d, s, "a", f32([]int64{8}, func(i int) float32 { return float32(i) }))
	err := o.Observe(s, x)
	c := calib.NewCollector(1, map[string]calib.Spec{"a": {}})
	if err == nil {
		err = o.Collect(c)
	}
	if !errors.Is(err, device.ErrLost) {
		t.Error(err)
	}
	if c.Stats("a").Histogram().Count() != 0 {
		t.Error("values of a lost device were taken")
	}
	if _, err := o.Entropy(calib.U8); !errors.Is(err, device.ErrLost) {
		t.Error(err)
	}
}

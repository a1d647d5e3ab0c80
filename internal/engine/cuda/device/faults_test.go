//go:build cuda && cudaemu

package device

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
)

func TestMain(m *testing.M) {
	code := m.Run()
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

func TestNoDevice(t *testing.T) {
	for name, c := range map[string]struct {
		faults driver.Faults
		want   string
	}{
		"no driver":        {driver.Faults{Absent: true}, "the NVIDIA driver is not installed (libcuda.so.1: cannot open"},
		"init fails":       {driver.Faults{InitError: 802}, "initialize the driver: CUDA error 802 (the system is not ready; is the fabric manager running?)"},
		"driver too old":   {driver.Faults{InitError: 35}, "install a newer NVIDIA driver"},
		"no device":        {driver.Faults{NoDevices: true}, "check nvidia-smi"},
		"device gone":      {driver.Faults{Lost: true}, "create context: CUDA error 46"},
		"init says nobody": {driver.Faults{InitError: 100}, "no CUDA-capable device"},
	} {
		t.Run(name, func(t *testing.T) {
			inject(t, c.faults)
			_, err := Open(0)
			if !errors.Is(err, ErrNoDevice) || errors.Is(err, ErrLost) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
			driver.Inject(driver.Faults{})
			d, err := Open(0) // what a retry finds once the fault is gone
			check(t, err)
			check(t, d.Close())
		})
	}
}

func TestOutOfMemory(t *testing.T) {
	inject(t, driver.Faults{Memory: 1 << 20, PinnedMemory: 1 << 16})
	d := device(t)
	m := alloc(t, d, 700<<10)
	_, err := d.Alloc(400 << 10)
	if !errors.Is(err, ErrOutOfMemory) || !strings.Contains(err.Error(), "409600 bytes asked for, 331776 of 1048576 free") {
		t.Errorf("%v", err)
	}
	if _, err := d.AllocHost(1 << 17); !errors.Is(err, ErrOutOfMemory) {
		t.Errorf("pinned: %v", err)
	}
	// The device goes on.
	s := stream(t, d)
	check(t, s.Fill(m.Span, 1))
	check(t, s.Sync())
	check(t, d.Err())
}

// A fault in a kernel ends the context: at the wait, not at the launch; for everyone
// who holds the device; until all have closed it.
func TestStickyError(t *testing.T) {
	t.Run("kernels", func(t *testing.T) { stickyError(t, false) })
	t.Run("graph", func(t *testing.T) { stickyError(t, true) })
}

func stickyError(t *testing.T, graph bool) {
	d := device(t)
	other, err := Open(0)
	check(t, err)
	s := stream(t, d)
	q, x, h := alloc(t, d, 100), alloc(t, d, 400), pinned(t, d, 400)
	run := func() error { return dequantize(d, s, q.Span, x.Span) }
	if graph {
		g, err := s.Capture(run)
		check(t, err)
		defer g.Close()
		run = func() error { return g.Launch(s) }
	}
	inject(t, driver.Faults{LaunchError: 700, AfterLaunches: 2})
	for i := range 3 {
		check(t, run())
		err := s.Sync()
		if lost := errors.Is(err, ErrLost); lost != (i == 2) {
			t.Fatalf("graph %v, launch %d: %v", graph, i, err)
		}
	}
	if err := d.Err(); !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "synchronize stream on emulated GPU (GPU 0, sm_90): CUDA error 700 (a kernel used an address outside its memory)") {
		t.Errorf("%v", err)
	}
	for what, err := range map[string]error{"launch": run(), "copy": s.CopyOut(h.Bytes(), x.Span), "sync": other.Sync()} {
		if !errors.Is(err, ErrLost) {
			t.Errorf("%s afterwards: %v", what, err)
		}
	}
	if _, err := d.Alloc(1); !errors.Is(err, ErrLost) {
		t.Errorf("Alloc afterwards: %v", err)
	}
	_ = h.Bytes()[399] // still there
	check(t, d.Close())
	if _, err := Open(0); !errors.Is(err, ErrLost) || errors.Is(err, ErrNoDevice) {
		t.Errorf("open while another holds the lost device: %v", err)
	}
	check(t, other.Close())
	fresh := device(t)
	s2 := stream(t, fresh)
	q2, x2 := alloc(t, fresh, 100), alloc(t, fresh, 400)
	check(t, dequantize(fresh, s2, q2.Span, x2.Span))
	check(t, s2.Sync())
}
func TestDeviceFallsOffTheBus(t *testing.T) {
	d := device(t)
	s := stream(t, d)
	m := alloc(t, d, 8)
	check(t, s.Fill(m.Span, 1))
	inject(t, driver.Faults{Lost: true})
	if err := s.Sync(); !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
	check(t, d.Close())
	if _, err := Open(0); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Open: %v", err)
	}
	driver.Inject(driver.Faults{})
	check(t, device(t).Sync())
}

func TestLaunchOutOfMemory(t *testing.T) {
	d := device(t)
	s := stream(t, d)
	q, x := alloc(t, d, 100), alloc(t, d, 400)
	inject(t, driver.Faults{LaunchError: 2, AfterLaunches: 0})
	if err := dequantize(d, s, q.Span, x.Span); !errors.Is(err, ErrOutOfMemory) {
		t.Errorf("%v", err)
	}
	check(t, dequantize(d, s, q.Span, x.Span))
	check(t, s.Sync())
}

func TestGraphNotInstantiated(t *testing.T) {
	d := device(t)
	s := stream(t, d)
	m := alloc(t, d, 8)
	inject(t, driver.Faults{GraphError: 2})
	if _, err := s.Capture(func() error { return s.Fill(m.Span, 1) }); !errors.Is(err, ErrOutOfMemory) {
		t.Errorf("%v", err)
	}
	if u := driver.InUse(); u.Graphs != 0 {
		t.Errorf("%d graphs left", u.Graphs)
	}
}

// Memory that was written around is found when it is freed.
func TestDamage(t *testing.T) {
	d := device(t)
	s := stream(t, d)
	q, x := alloc(t, d, 100), alloc(t, d, 399)
	check(t, dequantize(d, s, q.Span, x.Span)) // writes 400 bytes
	check(t, s.Sync())
	if err := x.Close(); !errors.Is(err, ErrLost) {
		t.Errorf("%v", err)
	}
}

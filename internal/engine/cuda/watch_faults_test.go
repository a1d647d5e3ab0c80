//go:build cuda && cudaemu

package cuda_test

import (
	"context"
	"errors"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
	"github.com/fewbit/fewbit/internal/engine/cuda/observe"
)

// TestWatchFaults: whatever fails and whenever, the watch says what it was, at the
// latest when it is read, and leaves nothing behind (TestMain).
func TestWatchFaults(t *testing.T) {
	w := watchedBERT(t)
	ctx := context.Background()
	var searched int64 // launches until the thresholds had been read; what Collect launches starts the watch anew, and nobody waits for it
	attempt := func(t *testing.T) error {
		e := cuda.New(cuda.Config{})
		defer func() { check(t, e.Close()) }()
		rows := w.samples()
		c := cuda.WatchConfig{Specs: w.specs, Rows: map[string]observe.Rows{}}
		for name, r := range rows {
			c.Rows[name] = r
		}
		x, err := e.Watch(ctx, w.path, c)
		if err != nil {
			return err
		}
		defer func() {
			if err := x.Close(); err != nil && !errors.Is(err, device.ErrLost) {
				t.Error(err)
			}
		}()
		for _, f := range w.feeds {
			if err := x.Run(ctx, f, calib.SampleHash(f)); err != nil {
				return err
			}
		}
		if _, err := x.Entropy(calib.U8); err != nil {
			return err
		}
		searched = driver.InUse().Launches
		return x.Collect(calib.NewCollector(1, w.specs))
	}
	check(t, attempt(t))
	before := driver.InUse().Launches
	check(t, attempt(t))
	total := searched - before
	for name, c := range map[string]struct {
		faults driver.Faults
		want   error
	}{
		"no driver":               {driver.Faults{Absent: true}, device.ErrNoDevice},
		"no memory for a count":   {driver.Faults{Memory: 1 << 20}, device.ErrOutOfMemory},
		"no memory to pin":        {driver.Faults{PinnedMemory: 1 << 12}, device.ErrOutOfMemory},
		"a launch lacks memory":   {driver.Faults{LaunchError: 2, AfterLaunches: 9}, device.ErrOutOfMemory},
		"first kernel fails":      {driver.Faults{LaunchError: 719}, device.ErrLost},
		"a kernel fails midway":   {driver.Faults{LaunchError: 700, AfterLaunches: int(total / 2)}, device.ErrLost},
		"the last kernel fails":   {driver.Faults{LaunchError: 700, AfterLaunches: int(total - 1)}, device.ErrLost},
		"fell off the bus before": {driver.Faults{Lost: true}, device.ErrNoDevice},
	} {
		t.Run(name, func(t *testing.T) {
			inject(t, c.faults)
			if err := attempt(t); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	check(t, attempt(t)) // the device is there again
}

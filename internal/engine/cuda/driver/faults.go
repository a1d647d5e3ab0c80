//go:build cuda && cudaemu

package driver

/*
#cgo CXXFLAGS: -std=c++17 -O2 -Wall
#include "fake.h"
*/
import "C"

import (
	_ "github.com/fewbit/fewbit/cuda" // the emulated kernels, which the driver runs
)

// Emulated is true where the driver is the one of the tests.
const Emulated = true

// Faults are what goes wrong with the emulated driver. The zero value is a machine
// with one healthy device of 1 GiB.
type Faults struct {
	Absent       bool  // there is no driver library
	InitError    int   // cuInit answers this CUresult, e.g. 802, system not ready
	NoDevices    bool  // the driver shows no device
	Memory       int64 // bytes that the device has; 0 is 1 GiB. Allocations beyond are out of memory
	PinnedMemory int64 // bytes that can be pinned; 0 is 1 GiB
	// LaunchError is the CUresult of one kernel, the one after AfterLaunches have
	// succeeded: 700 (illegal address), 719 (launch failed) and their like end the
	// context, as the work runs; 2 (out of memory) fails that launch alone, at once.
	LaunchError   int
	AfterLaunches int
	// GraphError is the CUresult of instantiating a graph.
	GraphError int
	// Lost: the device fell off the bus. Every call fails, Open too, until faults
	// without it are injected and the device is opened anew.
	Lost bool
}

// Inject sets the faults from now on. For tests, which end with Inject(Faults{}).
func Inject(f Faults) {
	loading.Lock()
	defer loading.Unlock()
	loading.done = false
	c := C.fewbit_faults{
		init_error: C.int(f.InitError), devices: 1, memory: C.int64_t(f.Memory), host_memory: C.int64_t(f.PinnedMemory),
		launches: -1, launch_error: C.int(f.LaunchError), capture_error: C.int(f.GraphError), absent: flag(f.Absent), lost: flag(f.Lost),
	}
	if f.NoDevices {
		c.devices = 0
	}
	if f.Memory == 0 {
		c.memory = 1 << 30
	}
	if f.PinnedMemory == 0 {
		c.host_memory = 1 << 30
	}
	if f.LaunchError != 0 {
		c.launches = C.int64_t(f.AfterLaunches)
	}
	C.fewbit_fake_inject(&c)
}

func flag(b bool) C.int {
	if b {
		return 1
	}
	return 0
}

// Use is what the emulated driver holds.
type Use struct {
	Contexts, Allocations, Bytes, PinnedBytes, Streams, Events, Graphs int64
	Queued                                                             int64 // pieces of work that nothing has waited for
	Launches                                                           int64 // kernels run since the process started
}

// InUse returns what is held now: after everything is closed, nothing but Launches.
func InUse() Use {
	var u C.fewbit_use
	C.fewbit_fake_use(&u)
	return Use{
		Contexts: int64(u.contexts), Allocations: int64(u.allocations), Bytes: int64(u.bytes), PinnedBytes: int64(u.pinned),
		Streams: int64(u.streams), Events: int64(u.events), Graphs: int64(u.graphs), Queued: int64(u.queued), Launches: int64(u.launches),
	}
}

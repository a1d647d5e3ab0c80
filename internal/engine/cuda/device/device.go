// Package device is an NVIDIA GPU as the executor sees it: one context, memory,
// streams, events and graphs, over gorgonia.org/cu and the driver library that
// package driver loads when a device is first opened.
//
// Without the build tag cuda there is Open alone, which returns ErrNoDevice. With
// cuda,cudaemu the same code runs on a driver made of host memory, with faults
// that tests choose (package driver).
//
// Threads. A CUDA context is current on an operating-system thread, and goroutines
// change threads. Every method therefore makes the context current on the thread
// it happens to run on, which takes well under a microsecond. Code that calls CUDA
// on its own (the kernels of package cuda) does so inside Do, which also keeps the
// goroutine on its thread meanwhile. The context is the device's primary one, so
// the CUDA runtime inside the kernels' library and this package share it.
//
// Streams and memory may be used from many goroutines; the order of what two of
// them put on one stream is then theirs to arrange.
package device

import (
	"errors"
	"fmt"
)

// What every error of this package is one of, or none: then it is a mistake in the call.
var (
	// ErrNoDevice: no usable GPU. The text says what is missing (the build tag, the
	// driver, the device) and what to do.
	ErrNoDevice = errors.New("no CUDA device")
	// ErrOutOfMemory: the device (or the host, for pinned memory) lacks memory. The
	// device goes on working.
	ErrOutOfMemory = errors.New("out of device memory")
	// ErrLost: the device stopped working in this context: a fault in a kernel, an
	// uncorrectable memory error, a device that fell off the bus. CUDA answers every
	// further call in the context with the same error, so does this package without
	// asking CUDA. Close the device (every holder of it), then Open anew.
	ErrLost = errors.New("CUDA device lost")
	// ErrClosed: the device has been closed.
	ErrClosed = errors.New("CUDA device is closed")
)

// Info says what a device is.
type Info struct {
	Ordinal         int
	Name            string // "NVIDIA H100 80GB HBM3"
	UUID            string // "GPU-5c8a...", as nvidia-smi shows it and NVML finds it
	SM              int    // compute capability: 75, 80, 89, 90
	Multiprocessors int
	Memory          int64 // bytes
	L2              int64 // bytes
	SharedMemory    int64 // bytes a block may ask for (opt-in maximum)
	ClockMHz        int
	MemoryClockMHz  int
	MemoryBus       int  // bits
	Driver          int  // CUDA version that the driver supports: 13000 is 13.0
	Emulated        bool // the driver of the tests
}

// String is for people: "NVIDIA H100 80GB HBM3 (GPU 0, sm_90)".
func (i Info) String() string { return fmt.Sprintf("%s (GPU %d, sm_%d)", i.Name, i.Ordinal, i.SM) }

// Ptr is an address in device memory, a cuda.Ptr; 0 is null.
type Ptr uintptr

// Span is a stretch of device memory.
type Span struct {
	Ptr   Ptr
	Bytes int64
}

// Slice returns the n bytes of s that start at off.
func (s Span) Slice(off, n int64) (Span, error) {
	if off < 0 || n < 0 || off > s.Bytes || n > s.Bytes-off {
		return Span{}, fmt.Errorf("bytes %d to %d of a stretch of %d bytes", off, off+n, s.Bytes)
	}
	return Span{s.Ptr + Ptr(off), n}, nil
}

// Error is a call that CUDA refused. errors.Is finds ErrNoDevice, ErrOutOfMemory
// or ErrLost in it where it is one of these.
type Error struct {
	Op     string // what was tried: "launch graph"
	Device string // on what, may be ""
	Code   int    // CUresult, equal to cudaError_t for everything that is reported here
	Detail string // sizes and the like, may be ""
	Kind   error  // ErrNoDevice, ErrOutOfMemory, ErrLost or nil
}

func (e *Error) Error() string {
	text := e.Op
	if e.Device != "" {
		text += " on " + e.Device
	}
	if e.Detail != "" {
		text += ": " + e.Detail
	}
	text += fmt.Sprintf(": CUDA error %d", e.Code)
	if w := words[e.Code]; w != "" {
		text += " (" + w + ")"
	}
	if e.Kind != nil {
		text += ": " + e.Kind.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.Kind }

// CUresult values with a meaning here (cuda.h; cudaError_t has the same numbers).
const (
	codeOutOfMemory     = 2
	codeDeinitialized   = 4
	codeNoDevice        = 100
	codeEccError        = 214
	codeNvlinkError     = 220
	codeIllegalAddress  = 700
	codeLaunchTimeout   = 702
	codeContextGone     = 709
	codeAssert          = 710
	codeHardwareStack   = 714
	codeIllegalInstr    = 715
	codeMisaligned      = 716
	codeAddressSpace    = 717
	codeInvalidPC       = 718
	codeLaunchFailed    = 719
	codeDeviceGone      = 46
	codeInvalidContext  = 201
	codeContainedFault  = 226
	codeTensorMemory    = 721
	codeUnknown         = 999
	codeNotReady        = 600
	codeNotInitialized  = 3
	codeInvalidDevice   = 101
	codeOldDriver       = 35
	codeNotReadySystem  = 802
	codeDriverMismatch  = 803
	codeNotCompatible   = 804
	codeNoKernelImage   = 209
	codeTooManyResource = 701
)

// words say what a code means and, where there is one, what to do.
var words = map[int]string{
	codeOutOfMemory:     "out of memory",
	codeDeinitialized:   "the driver is shutting down",
	codeNoDevice:        "no CUDA-capable device; check nvidia-smi, CUDA_VISIBLE_DEVICES and that the container was given the GPU",
	codeEccError:        "uncorrectable memory error; the GPU needs a reset",
	codeNvlinkError:     "uncorrectable NVLink error",
	codeIllegalAddress:  "a kernel used an address outside its memory",
	codeLaunchTimeout:   "a kernel ran past the system's time limit",
	codeContextGone:     "the context was destroyed",
	codeAssert:          "an assertion in a kernel failed",
	codeHardwareStack:   "hardware stack error in a kernel",
	codeIllegalInstr:    "illegal instruction in a kernel",
	codeMisaligned:      "a kernel used a misaligned address",
	codeAddressSpace:    "a kernel used an address of another space",
	codeInvalidPC:       "a kernel jumped outside its code",
	codeLaunchFailed:    "a kernel failed",
	codeDeviceGone:      "the device is busy or unavailable; another process may hold it exclusively, or it fell off the bus",
	codeInvalidContext:  "the context is not valid any more",
	codeContainedFault:  "a contained hardware error ended the context",
	codeTensorMemory:    "a kernel left tensor memory allocated",
	codeUnknown:         "unknown error of the driver; see the kernel's log for Xid messages",
	codeNotReady:        "work is still running",
	codeNotInitialized:  "the driver is not loaded",
	codeInvalidDevice:   "no device of this number",
	codeOldDriver:       "the driver is older than this build's CUDA; install a newer NVIDIA driver",
	codeNotReadySystem:  "the system is not ready; is the fabric manager running?",
	codeDriverMismatch:  "kernel module and driver library are of different versions; reboot or reload the module",
	codeNotCompatible:   "forward compatibility is not supported on this device",
	codeNoKernelImage:   "no kernel in this build for this device; it needs compute capability 7.5 or newer",
	codeTooManyResource: "a launch asks for more registers or shared memory than the device has",
}

// sticky are the codes after which CUDA answers nothing else in this context
// (CUDA Driver API, CUresult: "leaves the process in an inconsistent state").
var sticky = map[int]bool{
	codeDeinitialized: true, codeEccError: true, codeNvlinkError: true, codeIllegalAddress: true, codeLaunchTimeout: true,
	codeContextGone: true, codeAssert: true, codeHardwareStack: true, codeIllegalInstr: true, codeMisaligned: true,
	codeAddressSpace: true, codeInvalidPC: true, codeLaunchFailed: true, codeDeviceGone: true, codeInvalidContext: true,
	codeContainedFault: true, codeTensorMemory: true, codeNoDevice: true, codeUnknown: true,
}

// kindOf maps the code of a call on an open device.
func kindOf(code int) error {
	switch {
	case code == codeOutOfMemory:
		return ErrOutOfMemory
	case sticky[code]:
		return ErrLost
	}
	return nil
}

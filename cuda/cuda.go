//go:build cuda

package cuda

/*
#cgo CXXFLAGS: -std=c++17 -O2 -Wall
#include "fewbit_cuda.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"unsafe"
)

// Ptr is an address in device memory; 0 is NULL.
type Ptr uintptr

// Add returns p moved by n bytes.
func (p Ptr) Add(n int64) Ptr { return Ptr(int64(p) + n) }

// Stream is a CUstream; 0 is the legacy default stream.
type Stream uintptr

// at converts a device address to the pointer type that C wants. It is never
// followed on the host, so the rules about unsafe.Pointer do not concern it.
func at[T any](p Ptr) *T { return *(**T)(unsafe.Pointer(&p)) }

func stream(s Stream) C.fb_stream { return *(*C.fb_stream)(unsafe.Pointer(&s)) }

// What an entry refuses or runs into; errors.Is finds them.
var (
	// ErrArgument: a shape, pointer or enum outside what the entry documents.
	ErrArgument = errors.New("bad argument")
	// ErrUnsupported: well-formed, but there is no kernel for it on this device.
	ErrUnsupported = errors.New("no kernel for it on this device")
	// ErrWorkspace: the workspace is too small.
	ErrWorkspace = errors.New("workspace too small")
)

// DeviceError is what CUDA said of a launch or copy.
type DeviceError struct {
	Entry string
	Code  int // cudaError_t
}

func (e *DeviceError) Error() string { return fmt.Sprintf("%s: CUDA error %d", e.Entry, e.Code) }

// check turns an entry's status into an error that names the entry.
func check(entry string, status C.int) error {
	switch {
	case status == C.FB_OK:
		return nil
	case status == C.FB_BAD_ARGUMENT:
		return fmt.Errorf("%s: %w", entry, ErrArgument)
	case status == C.FB_UNSUPPORTED:
		return fmt.Errorf("%s: %w", entry, ErrUnsupported)
	case status == C.FB_WORKSPACE:
		return fmt.Errorf("%s: %w", entry, ErrWorkspace)
	default:
		return &DeviceError{Entry: entry, Code: int(status) - C.FB_CUDA_ERROR}
	}
}

// Info describes the current device.
type Info struct {
	SM             int // compute capability, 90 for 9.0
	SMs            int // multiprocessors
	SharedPerBlock int // bytes, opt-in maximum
	Emulated       bool
}

// Device returns what the kernels run on.
func Device() (Info, error) {
	var d C.fb_device_info
	if err := check("device", C.fb_device(&d)); err != nil {
		return Info{}, err
	}
	return Info{SM: int(d.sm), SMs: int(d.sms), SharedPerBlock: int(d.smem_per_block), Emulated: d.emulated != 0}, nil
}

// Malloc allocates device memory.
func Malloc(bytes int64) (Ptr, error) {
	if bytes < 0 {
		return 0, fmt.Errorf("malloc: %w", ErrArgument)
	}
	var p unsafe.Pointer
	err := check("malloc", C.fb_malloc(&p, C.size_t(bytes)))
	return Ptr(uintptr(p)), err
}

// Free releases what Malloc returned.
func Free(p Ptr) error { return check("free", C.fb_free(unsafe.Pointer(at[byte](p)))) }

// CopyIn copies src to the device and returns when it is there.
func CopyIn[T any](dst Ptr, src []T) error {
	if len(src) == 0 {
		return nil
	}
	return check("copy to the device", C.fb_copy_in(unsafe.Pointer(at[byte](dst)), unsafe.Pointer(&src[0]), C.size_t(len(src))*C.size_t(unsafe.Sizeof(src[0]))))
}

// CopyOut copies from the device into dst and returns when it is there.
func CopyOut[T any](dst []T, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	return check("copy from the device", C.fb_copy_out(unsafe.Pointer(&dst[0]), unsafe.Pointer(at[byte](src)), C.size_t(len(dst))*C.size_t(unsafe.Sizeof(dst[0]))))
}

// Sync waits for everything on the stream and reports what went wrong there.
func Sync(s Stream) error { return check("synchronize", C.fb_sync(stream(s))) }

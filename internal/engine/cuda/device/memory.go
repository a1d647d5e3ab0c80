//go:build cuda

package device

/*
#include <cuda.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"gorgonia.org/cu"
)

// Memory is a block of device memory, aligned to 256 bytes or more. What it holds at
// first is not defined.
type Memory struct {
	Span
	d    *Device
	gone atomic.Bool
}

// Alloc takes device memory: one block for a plan's arena, one for its weights,
// cut with Span.Slice. It waits for the device in no documented order, so it does
// not belong on a request's path, and it fails inside Stream.Capture.
func (d *Device) Alloc(bytes int64) (*Memory, error) {
	if bytes <= 0 {
		return nil, fmt.Errorf("allocate %d bytes of device memory: at least 1 is needed", bytes)
	}
	var p cu.DevicePtr
	err := d.call("allocate", func() (err error) {
		p, err = cu.MemAlloc(bytes)
		return err
	})
	if err != nil {
		return nil, d.sizes(err, bytes)
	}
	return &Memory{Span: Span{Ptr(p), bytes}, d: d}, nil
}

// Close gives the memory back once the device has done what it has been told so far.
// A second Close, or one after the device's, does nothing.
func (m *Memory) Close() error {
	if m.gone.Swap(true) || m.d.over() {
		return nil
	}
	return m.d.call("free memory", func() error { return cu.MemFree(cu.DevicePtr(m.Ptr)) })
}

// HostMemory is pinned host memory: what streams copy to and from without waiting.
type HostMemory struct {
	bytes []byte
	d     *Device
	gone  atomic.Bool
}

// AllocHost takes memory from the system, zeroed and in whole pages, and pins it. The
// system cannot use pinned memory otherwise, so pin what is copied often and no more.
func (d *Device) AllocHost(bytes int64) (*HostMemory, error) {
	if bytes <= 0 {
		return nil, fmt.Errorf("allocate %d bytes of pinned memory: at least 1 is needed", bytes)
	}
	// Memory of the process that CUDA registers, not memory that CUDA makes: the latter goes
	// with the context, and a slice of it that someone still reads would end the process.
	b, err := unix.Mmap(-1, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes to pin them: %w: %w", bytes, err, ErrOutOfMemory)
	}
	err = d.Do(func() error {
		return d.status("pin memory", C.cuMemHostRegister(unsafe.Pointer(&b[0]), C.size_t(bytes), C.CU_MEMHOSTREGISTER_PORTABLE))
	})
	if err != nil {
		unmap(b)
		return nil, d.sizes(err, bytes)
	}
	return &HostMemory{bytes: b, d: d}, nil
}

// Bytes are the memory itself; nil after Close. They stay readable when the device is
// lost or closed.
func (h *HostMemory) Bytes() []byte {
	if h.gone.Load() {
		return nil
	}
	return h.bytes
}

// Close gives the memory back. Slices of Bytes must not be used afterwards.
func (h *HostMemory) Close() error {
	if h.gone.Swap(true) {
		return nil
	}
	defer unmap(h.bytes)
	if h.d.Err() != nil {
		return nil // a context that is gone has unpinned it
	}
	return h.d.Do(func() error { return h.d.status("unpin memory", C.cuMemHostUnregister(unsafe.Pointer(&h.bytes[0]))) })
}

// unmap cannot fail for what Mmap returned.
func unmap(b []byte) { _ = unix.Munmap(b) }

// sizes adds to an allocation's ErrOutOfMemory what was asked for and what there is.
func (d *Device) sizes(err error, bytes int64) error {
	var e *Error
	if !errors.As(err, &e) || !errors.Is(e, ErrOutOfMemory) {
		return err
	}
	sized := *e
	sized.Detail = fmt.Sprintf("%d bytes asked for", bytes)
	if free, total, err := d.MemInfo(); err == nil {
		sized.Detail += fmt.Sprintf(", %d of %d free", free, total)
	}
	return &sized
}

// status is result for the calls that go to the driver without cu.
func (d *Device) status(op string, r C.CUresult) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	return d.failed(op, int(r))
}

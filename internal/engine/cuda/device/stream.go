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
	"time"
	"unsafe"

	"gorgonia.org/cu"
)

// Stream is a queue of work on a device, done in order. Streams do not wait for
// each other, nor for CUDA's default stream.
type Stream struct {
	s    cu.Stream
	d    *Device
	gone atomic.Bool
}

// NewStream makes a stream.
func (d *Device) NewStream() (*Stream, error) {
	s := &Stream{d: d}
	err := d.call("create stream", func() (err error) {
		s.s, err = cu.MakeStream(cu.NonBlocking)
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Handle is the stream for package cuda's entries: cuda.Stream(s.Handle()).
func (s *Stream) Handle() uintptr { return uintptr(unsafe.Pointer(s.s.C())) }

// Device is the one that the stream belongs to.
func (s *Stream) Device() *Device { return s.d }

// CopyIn queues a copy of all of src to the start of dst. With src in pinned memory
// it returns at once, and src must stay as it is until the copy is done; other memory
// is read before it returns, and cannot be copied while the stream is captured.
func (s *Stream) CopyIn(dst Span, src []byte) error {
	if int64(len(src)) > dst.Bytes {
		return fmt.Errorf("copy %d bytes to %d bytes of device memory", len(src), dst.Bytes)
	}
	if len(src) == 0 {
		return nil
	}
	return s.d.call("copy to device", func() error {
		return cu.MemcpyHtoDAsync(cu.DevicePtr(dst.Ptr), unsafe.Pointer(unsafe.SliceData(src)), int64(len(src)), s.s)
	})
}

// CopyOut queues a copy of the start of src that fills dst. With dst in pinned memory
// it returns at once, and dst may be read after Sync or an event; other memory has been
// written when it returns, and cannot be copied to while the stream is captured.
func (s *Stream) CopyOut(dst []byte, src Span) error {
	if int64(len(dst)) > src.Bytes {
		return fmt.Errorf("copy %d bytes from %d bytes of device memory", len(dst), src.Bytes)
	}
	if len(dst) == 0 {
		return nil
	}
	return s.d.call("copy from device", func() error {
		return cu.MemcpyDtoHAsync(unsafe.Pointer(unsafe.SliceData(dst)), cu.DevicePtr(src.Ptr), int64(len(dst)), s.s)
	})
}

// Copy queues a copy of all of src to the start of dst on the device.
func (s *Stream) Copy(dst, src Span) error {
	if src.Bytes > dst.Bytes {
		return fmt.Errorf("copy %d bytes to %d bytes of device memory", src.Bytes, dst.Bytes)
	}
	if src.Bytes == 0 {
		return nil
	}
	return s.d.call("copy on device", func() error {
		return cu.MemcpyDtoDAsync(cu.DevicePtr(dst.Ptr), cu.DevicePtr(src.Ptr), src.Bytes, s.s)
	})
}

// Fill queues the writing of b to every byte of dst.
func (s *Stream) Fill(dst Span, b byte) error {
	if dst.Bytes == 0 {
		return nil
	}
	return s.d.call("fill", func() error { return cu.MemsetD8Async(cu.DevicePtr(dst.Ptr), b, dst.Bytes, s.s) })
}

// Wait queues a wait: what is queued on s afterwards starts when e has happened. It
// returns at once.
func (s *Stream) Wait(e *Event) error {
	return s.d.call("wait for event", func() error { return s.s.Wait(e.e, 0) })
}

// Sync waits until everything queued so far is done, and returns what went wrong in it.
func (s *Stream) Sync() error { return s.d.call("synchronize stream", s.s.Synchronize) }

// Done tells without waiting whether everything queued so far is done.
func (s *Stream) Done() (bool, error) { return s.d.done("query stream", s.s.Query) }

// Close gives the stream up; what is queued is still done.
func (s *Stream) Close() error {
	if s.gone.Swap(true) || s.d.over() {
		return nil
	}
	return s.d.call("destroy stream", s.s.Destroy)
}

// Event is a mark in a stream.
type Event struct {
	e    cu.Event
	d    *Device
	gone atomic.Bool
}

// NewEvent makes an event for Since when timing is true; one without is cheaper, and
// Event.Sync then sleeps instead of spinning.
func (d *Device) NewEvent(timing bool) (*Event, error) {
	flags := cu.BlockingSyncEvent | cu.DisableTiming
	if timing {
		flags = cu.DefaultEvent
	}
	e := &Event{d: d}
	err := d.call("create event", func() (err error) {
		e.e, err = cu.MakeEvent(flags)
		return err
	})
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Record queues the event on s: it happens when everything queued before it is done.
func (e *Event) Record(s *Stream) error {
	return e.d.call("record event", func() error { return e.e.Record(s.s) })
}

// Sync waits until the event has happened.
func (e *Event) Sync() error { return e.d.call("synchronize event", e.e.Synchronize) }

// Done tells without waiting whether the event has happened.
func (e *Event) Done() (bool, error) { return e.d.done("query event", e.e.Query) }

// Since returns the time on the device between start and e, both made with timing and
// both in the past. The resolution is half a microsecond.
func (e *Event) Since(start *Event) (time.Duration, error) {
	var ms float64
	err := e.d.call("read events", func() (err error) {
		ms, err = start.e.Elapsed(e.e)
		return err
	})
	return time.Duration(ms * float64(time.Millisecond)), err
}

// Close gives the event up.
func (e *Event) Close() error {
	if e.gone.Swap(true) || e.d.over() {
		return nil
	}
	return e.d.call("destroy event", func() error { return cu.DestroyEvent(&e.e) })
}

func (d *Device) done(op string, query func() error) (bool, error) {
	err := d.call(op, query)
	var e *Error
	if errors.As(err, &e) && e.Code == codeNotReady {
		return false, nil
	}
	return err == nil, err
}

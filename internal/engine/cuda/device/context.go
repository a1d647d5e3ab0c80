//go:build cuda

package device

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"

	"gorgonia.org/cu"

	"github.com/fewbit/fewbit/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
)

// Device is an opened GPU. All holders of one ordinal in a process share one
// Device, because they share its primary context.
type Device struct {
	dev  cu.Device
	ctx  cu.CUContext
	info Info

	lost   atomic.Pointer[Error] // the first sticky error
	closed atomic.Bool
	users  int // guarded by opened.mu
}

// opened holds the devices of this process that have not been closed.
var opened = struct {
	mu      sync.Mutex
	devices map[int]*Device
}{devices: map[int]*Device{}}

// Count returns how many devices the driver shows. Without a driver it returns ErrNoDevice.
func Count() (int, error) {
	if err := load(); err != nil {
		return 0, err
	}
	n, err := cu.NumDevices()
	if err != nil {
		return 0, opening("count devices", err)
	}
	return n, nil
}

// Open returns the device of that number, counted from 0 in the order of
// CUDA_VISIBLE_DEVICES. The first Open of a process loads the driver and makes a
// context, which takes some tenths of a second. Every failure is ErrNoDevice, or
// ErrLost while other holders have not closed a lost device yet.
func Open(ordinal int) (*Device, error) {
	opened.mu.Lock()
	defer opened.mu.Unlock()
	if d := opened.devices[ordinal]; d != nil {
		if err := d.Err(); err != nil {
			return nil, fmt.Errorf("%d other holders have not closed it yet: %w", d.users, err)
		}
		d.users++
		return d, nil
	}
	n, err := Count()
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, &Error{Op: "open", Code: codeNoDevice, Kind: ErrNoDevice}
	}
	if ordinal < 0 || ordinal >= n {
		return nil, &Error{Op: "open", Detail: fmt.Sprintf("GPU %d of %d", ordinal, n), Code: codeInvalidDevice, Kind: ErrNoDevice}
	}
	d := &Device{users: 1}
	if d.dev, err = cu.GetDevice(ordinal); err != nil {
		return nil, opening("open", err)
	}
	if d.info, err = describe(d.dev, ordinal); err != nil {
		return nil, opening("describe", err)
	}
	if d.info.SM < minSM {
		return nil, &Error{Op: "open", Device: d.info.String(), Code: codeNoKernelImage, Kind: ErrNoDevice}
	}
	if d.ctx, err = d.dev.RetainPrimaryCtx(); err != nil {
		return nil, opening("create context", err)
	}
	opened.devices[ordinal] = d
	return d, nil
}

// minSM is the oldest compute capability that the kernels are built for.
const minSM = 75

// Info says what the device is.
func (d *Device) Info() Info { return d.info }

// Err returns nil, ErrClosed, or the sticky error (an ErrLost) that ended the context.
func (d *Device) Err() error {
	if e := d.lost.Load(); e != nil {
		return e
	}
	if d.closed.Load() {
		return ErrClosed
	}
	return nil
}

// over tells that the context is gone, and with it whatever it held.
func (d *Device) over() bool { return d.Err() != nil }

// Do calls f on one operating-system thread on which the device's context is
// current. Do may be called inside Do.
func (d *Device) Do(f func() error) error {
	if err := d.Err(); err != nil {
		return err
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := d.result("make context current", cu.SetCurrentContext(d.ctx)); err != nil {
		return err
	}
	return f()
}

// Check makes the error of an entry of package cuda one of this package: where CUDA
// refused the launch it is an *Error, an ErrLost or ErrOutOfMemory where it is one,
// and the device takes note. Other errors come back as they are.
func (d *Device) Check(err error) error {
	var e *cuda.DeviceError
	if errors.As(err, &e) {
		return d.failed(e.Entry, e.Code)
	}
	return err
}

// Sync waits until the device has done all its work.
func (d *Device) Sync() error {
	return d.call("synchronize", cu.Synchronize)
}

// MemInfo returns the device's free and total memory in bytes, whoever uses it.
func (d *Device) MemInfo() (free, total int64, err error) {
	err = d.call("read memory", func() (err error) {
		free, total, err = cu.MemInfo()
		return err
	})
	return free, total, err
}

// Close gives the device up. With the last holder the context goes, and with it all
// memory, streams and graphs that were not closed; closing these later does nothing.
// A lost device's context is reset, so that Open can make a new one.
func (d *Device) Close() error {
	opened.mu.Lock()
	defer opened.mu.Unlock()
	if d.users == 0 {
		return nil
	}
	if d.users--; d.users > 0 {
		return nil
	}
	delete(opened.devices, d.info.Ordinal)
	if d.lost.Load() != nil {
		cuda.ResetCublasLt(true)
	} else {
		_ = d.Do(func() error { // it keeps handles of the context
			cuda.ResetCublasLt(false)
			return nil
		})
	}
	d.closed.Store(true)
	err := d.dev.ReleasePrimaryCtx()
	if d.lost.Load() != nil {
		// The CUDA runtime inside the kernels' library may hold the context too; only a reset
		// ends it for all. What it answers on a lost device tells nothing new.
		_ = d.dev.ResetPrimaryCtx()
		return nil
	}
	if err != nil {
		return &Error{Op: "close", Device: d.info.String(), Code: code(err)}
	}
	return nil
}

// call is Do for one call of the driver.
func (d *Device) call(op string, f func() error) error {
	return d.Do(func() error { return d.result(op, f()) })
}

// result words the driver's error and notes when it is the last one.
func (d *Device) result(op string, err error) error {
	if err == nil {
		return nil
	}
	return d.failed(op, code(err))
}

func (d *Device) failed(op string, code int) error {
	e := &Error{Op: op, Device: d.info.String(), Code: code, Kind: kindOf(code)}
	if e.Kind == ErrLost { //nolint:errorlint // compares kinds, not errors
		d.lost.CompareAndSwap(nil, e)
	}
	return e
}

// code is the CUresult inside an error of cu, whose type is not exported.
func code(err error) int {
	for ; err != nil; err = errors.Unwrap(err) {
		if v := reflect.ValueOf(err); v.CanInt() {
			return int(v.Int())
		}
	}
	return codeUnknown
}

func load() error {
	err := driver.Load()
	var status driver.Status
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return &Error{Op: "initialize the driver", Code: int(status), Kind: ErrNoDevice}
	}
	return fmt.Errorf("%w: %w", ErrNoDevice, err)
}

func opening(op string, err error) error {
	return &Error{Op: op, Code: code(err), Kind: ErrNoDevice}
}

func describe(dev cu.Device, ordinal int) (Info, error) {
	i := Info{Ordinal: ordinal, Driver: cu.Version(), Emulated: driver.Emulated}
	var err error
	if i.Name, err = dev.Name(); err != nil {
		return i, err
	}
	uuid, err := dev.UUID()
	if err != nil {
		return i, err
	}
	i.UUID = "GPU-" + uuid.String()
	if i.Memory, err = dev.TotalMem(); err != nil {
		return i, err
	}
	var major, minor, l2, shared, clock, memoryClock int
	for _, a := range []struct {
		attribute cu.DeviceAttribute
		to        *int
	}{
		{cu.ComputeCapabilityMajor, &major},
		{cu.ComputeCapabilityMinor, &minor},
		{cu.MultiprocessorCount, &i.Multiprocessors},
		{cu.L2CacheSize, &l2},
		{attributeSharedOptIn, &shared},
		{cu.ClockRate, &clock},
		{cu.MemoryClockRate, &memoryClock},
		{cu.GlobalMemoryBusWidth, &i.MemoryBus},
	} {
		if *a.to, err = dev.Attribute(a.attribute); err != nil {
			return i, err
		}
	}
	i.SM, i.L2, i.SharedMemory = 10*major+minor, int64(l2), int64(shared)
	i.ClockMHz, i.MemoryClockMHz = clock/1000, memoryClock/1000
	return i, nil
}

// attributeSharedOptIn is CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN (cuda.h), which cu does not name.
const attributeSharedOptIn cu.DeviceAttribute = 97

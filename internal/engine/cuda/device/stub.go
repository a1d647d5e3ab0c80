//go:build !cuda

package device

import "fmt"

// Device is a GPU. This build knows none.
type Device struct{}

// Open returns ErrNoDevice: this binary was built without CUDA.
func Open(int) (*Device, error) {
	return nil, fmt.Errorf("%w: this binary was built without CUDA; build it with `make cuda`", ErrNoDevice)
}

// Count returns ErrNoDevice, as Open does.
func Count() (int, error) {
	_, err := Open(0)
	return 0, err
}

// Info is that of no device.
func (*Device) Info() Info { return Info{} }

// MemInfo returns ErrNoDevice.
func (*Device) MemInfo() (free, total int64, err error) {
	_, err = Open(0)
	return 0, 0, err
}

// Close does nothing.
func (*Device) Close() error { return nil }

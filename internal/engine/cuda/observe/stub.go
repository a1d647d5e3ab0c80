//go:build !cuda

package observe

import (
	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
)

// Observer observes nothing in this build.
type Observer struct{}

// New returns device.ErrNoDevice: this binary was built without CUDA.
func New(*device.Device, map[string]calib.Spec) (*Observer, error) {
	_, err := device.Open(0)
	return nil, err
}

// Collect returns device.ErrNoDevice.
func (*Observer) Collect(*calib.Collector, ...calib.SampleID) error {
	_, err := device.Open(0)
	return err
}

// Entropy returns device.ErrNoDevice.
func (*Observer) Entropy(calib.Scheme) (map[string]calib.Range, error) {
	_, err := device.Open(0)
	return nil, err
}

// Close does nothing.
func (*Observer) Close() error { return nil }

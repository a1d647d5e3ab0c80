// Package observe collects calibration statistics where a GPU left the values:
// ranges, histograms and channel maxima are counted on the device, and read back
// once, as what package calib's own observers hold after the same values, bit
// for bit.
//
// Without the build tag cuda, New returns device.ErrNoDevice.
package observe

import (
	"errors"

	"github.com/fewbit/fewbit/internal/engine/cuda/device"
)

// ErrUnsupported: a statistic that only package calib collects, from values on the host.
var ErrUnsupported = errors.New("not observed on a CUDA device")

// Tensor is one tensor of float32 values in device memory, row-major and dense.
type Tensor struct {
	Name string
	Ptr  device.Ptr // aligned to 4 bytes, better to 16
	Dims []int64
}

// MaxTensors bounds the tensors of one Observer; each takes 0.6 MB of device memory.
const MaxTensors = 1 << 14

// Rows keeps some of a tensor's rows, to be looked at on the host.
type Rows interface {
	// Wanted names the rows of a sample, of n, that Keep may keep.
	Wanted(sample uint64, n int) []int
	// Keep takes those rows, one after the other in x.
	Keep(sample uint64, rows []int, x []float32) error
}

//go:build !cuda

package observe

import (
	"errors"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine/cuda/device"
)

func TestWithoutCUDA(t *testing.T) {
	if _, err := New(nil, nil); !errors.Is(err, device.ErrNoDevice) {
		t.Error(err)
	}
	var o Observer
	if err := o.Collect(nil); !errors.Is(err, device.ErrNoDevice) {
		t.Error(err)
	}
	if _, err := o.Entropy(calib.U8); !errors.Is(err, device.ErrNoDevice) {
		t.Error(err)
	}
	if err := o.Close(); err != nil {
		t.Error(err)
	}
}

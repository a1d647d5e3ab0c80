//go:build !cuda

package device

import (
	"errors"
	"strings"
	"testing"
)

func TestWithoutCUDA(t *testing.T) {
	if _, err := Open(0); !errors.Is(err, ErrNoDevice) || !strings.Contains(err.Error(), "built without CUDA") {
		t.Errorf("Open: %v", err)
	}
	if _, err := Count(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("Count: %v", err)
	}
	var d *Device
	if _, _, err := d.MemInfo(); !errors.Is(err, ErrNoDevice) {
		t.Errorf("MemInfo: %v", err)
	}
}

package app

import (
	"context"
	"errors"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
)

func TestCalibrationDevice(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct{ device, arithmetic string }{{"gpu", "fp32"}, {"cuda", "fp8"}, {"cpu", ""}, {"", "fp32"}} {
		if _, err := CalibrationDevice(ctx, c.device, c.arithmetic); !errors.Is(err, ErrUsage) {
			t.Errorf("device %q, arithmetic %q: %v", c.device, c.arithmetic, err)
		}
	}
	if d, err := CalibrationDevice(ctx, DeviceCPU, "fp32"); d != nil || err != nil {
		t.Errorf("cpu: %v, %v", d, err)
	}
	if cuda.Built {
		return
	}
	if d, err := CalibrationDevice(ctx, DeviceAuto, "tf32"); d != nil || err != nil {
		t.Errorf("auto without CUDA: %v, %v", d, err)
	}
	d, err := CalibrationDevice(ctx, DeviceCUDA, "tf32")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Watch(ctx, "model.onnx", nil, nil); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("cuda without CUDA: %v", err)
	}
}

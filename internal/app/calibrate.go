package app

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda"
	"github.com/fewbit/fewbit/internal/engine/cuda/observe"
	"github.com/fewbit/fewbit/internal/engine/cuda/plan"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
)

// Arithmetics names how the float model may multiply on a GPU.
var Arithmetics = []string{"fp32", "tf32", "fp16"}

var arithmetics = map[string]plan.Arithmetic{"fp32": plan.FP32, "tf32": plan.TF32, "fp16": plan.FP16}

// CalibrationDevice returns the GPU for calibration: nil where device says cpu, or
// says auto and there is none. With cuda it is never nil: what it cannot do the
// CPU does, and the report says why. Errors are ErrUsage.
func CalibrationDevice(ctx context.Context, device, arithmetic string) (pipeline.Device, error) {
	a, ok := arithmetics[arithmetic]
	switch {
	case !ok:
		return nil, usageError{fmt.Errorf("%q is no arithmetic of the GPU, expected one of %s", arithmetic, strings.Join(Arithmetics, ", "))}
	case device == DeviceCPU:
		return nil, nil
	case device != DeviceAuto && device != DeviceCUDA:
		return nil, usageError{fmt.Errorf("device %q, expected %s, %s or %s", device, DeviceAuto, DeviceCPU, DeviceCUDA)}
	}
	g := gpuCalibration{cuda.Config{Products: a}, arithmetic}
	if a == plan.FP16 {
		g.config.Scores = plan.F16
	}
	if device == DeviceAuto && !g.there(ctx) {
		return nil, nil
	}
	return g, nil
}

// gpuCalibration opens the device for each calibration anew: a server's models may
// have lost it in between, and it comes back only when nobody holds it.
type gpuCalibration struct {
	config     cuda.Config
	arithmetic string
}

func (g gpuCalibration) there(ctx context.Context) bool {
	e := cuda.New(g.config)
	_, err := e.Probe(ctx)
	return err == nil && e.Close() == nil
}

// Watch implements pipeline.Device.
func (g gpuCalibration) Watch(ctx context.Context, path string, specs map[string]calib.Spec, rows map[string]*quant.Rows) (pipeline.Watch, error) {
	e := cuda.New(g.config)
	d, err := e.Probe(ctx)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	c := cuda.WatchConfig{Specs: specs, Rows: map[string]observe.Rows{}}
	for name, r := range rows {
		c.Rows[name] = r
	}
	w, err := e.Watch(ctx, path, c)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return &gpuWatch{w, e, fmt.Sprintf("%s on %s, %s", e.Name(), d.Name, strings.ToUpper(g.arithmetic))}, nil
}

type gpuWatch struct {
	w    *cuda.Watch
	e    *cuda.Engine
	name string
}

func (g *gpuWatch) Name() string { return g.name }
func (g *gpuWatch) Run(ctx context.Context, in engine.Feeds, id calib.SampleID) error {
	return g.w.Run(ctx, in, id)
}
func (g *gpuWatch) Entropy(s calib.Scheme) (map[string]calib.Range, error) { return g.w.Entropy(s) }
func (g *gpuWatch) Collect(c *calib.Collector) error                       { return g.w.Collect(c) }
func (g *gpuWatch) Close() error                                           { return errors.Join(g.w.Close(), g.e.Close()) }

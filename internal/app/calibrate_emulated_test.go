//go:build cuda && cudaemu

package app

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/cuda/driver"
	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/telemetry"
)

// images writes count random images of TinyCNN's size as .npy.
func images(t *testing.T, count int) string {
	t.Helper()
	feeds := opstest.TinyCNN.Feeds(3, count)
	x := feeds["image"]
	var dims []string
	for _, d := range x.Dims {
		dims = append(dims, strconv.FormatInt(d, 10))
	}
	head := "{'descr': '<f4', 'fortran_order': False, 'shape': (" + strings.Join(dims, ", ") + "), }"
	for (10+len(head)+1)%64 != 0 {
		head += " "
	}
	head += "\n"
	b := append([]byte("\x93NUMPY\x01\x00"), byte(len(head)), byte(len(head)>>8))
	path := filepath.Join(t.TempDir(), "image.npy")
	if err := os.WriteFile(path, append(append(b, head...), x.Data...), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestQuantizesOnTheGPU: a quantization that calibrates on the (emulated) GPU
// chooses what one on the CPU chooses, and when the device fails the CPU does it
// all and the report says why.
func TestQuantizesOnTheGPU(t *testing.T) {
	p := pipeline.Pipeline{Engine: opstest.Engine(t), Threads: 2, Version: "test", Scratch: t.TempDir()}
	model := filepath.Join(t.TempDir(), "model.onnx")
	if err := opstest.TinyCNN.Model().Save(model, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	calib := images(t, 6)
	run := func(t *testing.T, device, arithmetic, method string) *report.Report {
		t.Helper()
		var err error
		if p.Device, err = CalibrationDevice(context.Background(), device, arithmetic); err != nil {
			t.Fatal(err)
		}
		rep, err := p.Quantize(context.Background(), pipeline.Request{Model: model, Calib: calib, Samples: 5, NoLatency: true, Force: true,
			Config: quant.Config{Target: quant.CUDA, Method: method}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep
	}
	const entropy, minmax = "entropy", "minmax"
	for _, arithmetic := range Arithmetics {
		// Rounded operands move values by 2^-11, and which of two thresholds alike the
		// divergence of a few thousand values is smallest for may then be another one.
		method := entropy
		if arithmetic != "fp32" {
			method = minmax
		}
		cpu, gpu := run(t, DeviceCPU, "fp32", method), run(t, DeviceCUDA, arithmetic, method)
		c := gpu.Calibration
		if !strings.HasPrefix(c.Engine, "cuda on emulated GPU") || !strings.HasSuffix(c.Engine, strings.ToUpper(arithmetic)) || c.EngineReason != "" {
			t.Errorf("%s: %q, %q", arithmetic, c.Engine, c.EngineReason)
		}
		if len(gpu.Tensors) != len(cpu.Tensors) || len(gpu.Tensors) == 0 || c.Samples != 5 {
			t.Fatalf("%s: %d tensors, %d on the CPU; %d samples", arithmetic, len(gpu.Tensors), len(cpu.Tensors), c.Samples)
		}
		for i, x := range gpu.Tensors {
			want := cpu.Tensors[i]
			// The values differ in their last bits: a threshold may move by a bin.
			if size := float64(want.Hi - want.Lo); x.Name != want.Name || x.Method != want.Method || math.Abs(float64(x.Hi-want.Hi)) > size/64 || math.Abs(float64(x.Lo-want.Lo)) > size/64 {
				t.Errorf("%s: %s %s [%v, %v], on the CPU %s %s [%v, %v]", arithmetic, x.Name, x.Method, x.Lo, x.Hi, want.Name, want.Method, want.Lo, want.Hi)
			}
		}
	}
	driver.Inject(driver.Faults{LaunchError: 700, AfterLaunches: 40})
	defer driver.Inject(driver.Faults{})
	cpu, lost := run(t, DeviceCPU, "fp32", entropy), run(t, DeviceCUDA, "fp32", entropy)
	if c := lost.Calibration; !strings.Contains(c.EngineReason, "CUDA device lost") || c.Engine != cpu.Calibration.Engine {
		t.Errorf("a device that was lost: %q, %q", c.Engine, c.EngineReason)
	}
	if lost.Quantized.SHA256 != cpu.Quantized.SHA256 {
		t.Error("after a device was lost the CPU made another model")
	}
	if u := driver.InUse(); u.Contexts != 0 || u.Bytes != 0 || u.Streams != 0 {
		t.Errorf("left on the device: %+v", u)
	}
}

// TestServesOnTheGPU: an uploaded model is quantized by a job that calibrates on
// the GPU, and what comes out runs there; the model's metadata, telemetry and
// metrics say so, with the energy by request; when the device is lost the CPU
// answers.
func TestServesOnTheGPU(t *testing.T) {
	s := start(t, "", func(c *Config) { c.Device = DeviceCUDA })
	s.do("PUT", "/models/eye", onnxBytes(t, opstest.TinyCNN.Model())).into(t, 201, nil)
	data, err := os.ReadFile(images(t, 12))
	if err != nil {
		t.Fatal(err)
	}
	s.do("PUT", "/datasets/pictures", npz(t, map[string][]byte{"image": data})).into(t, 201, nil)
	id := s.submit(jobs.Spec{Model: "eye", Scheme: "int8", Target: "cuda", Calibration: &jobs.Calibration{Dataset: "pictures"}, Samples: 6, Force: true, Promote: true})
	if st := s.finished(id); st.Status != jobs.Succeeded {
		t.Fatalf("%s: %s", st.Status, st.Error)
	}
	var rep report.Report
	s.do("GET", "/quantize/"+id+"/report", nil).into(t, 200, &rep)
	if rep.Calibration == nil || !strings.HasPrefix(rep.Calibration.Engine, "cuda on emulated GPU") {
		t.Errorf("calibrated by %+v", rep.Calibration)
	}
	image := map[string]any{"inputs": []any{map[string]any{"name": "image", "datatype": "FP32", "shape": []int{1, 3, 16, 16}, "data": make([]float32, 3*16*16)}}}
	gpu, ok := s.gpu.engine.Info()
	if !ok {
		t.Fatal("no device is open")
	}
	counter := 1000.
	read := func() {
		counter += 50
		now := counter
		s.telemetry.Energy().Sample([]telemetry.GPU{{UUID: gpu.UUID, EnergyJ: &now}})
	}
	read()
	for range 2 {
		s.do("POST", "/v2/models/eye/infer", image).into(t, 200, nil)
	}
	read()
	var tel telemetry.Snapshot
	s.do("GET", "/telemetry", nil).into(t, 200, &tel)
	var energy telemetry.ModelEnergy
	for _, m := range tel.Models {
		if m.Name == "eye" && m.Version == "2" && m.Energy != nil {
			energy = *m.Energy
		}
	}
	if energy.Requests != 2 || energy.Joules <= 0 || energy.PerRequest == nil || energy.Source != "counter" {
		t.Errorf("energy %+v", energy)
	}
	at := func() engine.Placement {
		t.Helper()
		s.do("GET", "/telemetry", nil).into(t, 200, &tel)
		for _, e := range tel.Engines {
			if e.Name == "eye" && e.Version == "2" {
				return e.At
			}
		}
		t.Fatalf("no engine: %+v", tel.Engines)
		return engine.Placement{}
	}
	if p := at(); p.Engine != "cuda" || p.GPU != 2 || p.Reason != "" {
		t.Errorf("on the GPU: %+v", p)
	}
	metrics := string(s.do("GET", "/metrics", nil).into(t, 200, nil).body)
	for _, want := range []string{`fewbit_engine_requests_total{engine="gpu",model="eye",version="2"} 2`, `fewbit_model_gpu_energy_requests_total{model="eye",version="2"} 2`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	driver.Inject(driver.Faults{LaunchError: 700})
	defer driver.Inject(driver.Faults{})
	s.do("POST", "/v2/models/eye/infer", image).into(t, 200, nil)
	if p := at(); p.Engine == "cuda" || p.CPU != 1 || !strings.Contains(p.Reason, "CUDA device lost") {
		t.Errorf("after the device was lost: %+v", p)
	}
}

package pipeline

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/quant"
)

// fakeDevice counts on the CPU what a device would, until it fails.
type fakeDevice struct {
	engine engine.Engine
	// fail names the call that fails: "watch", "run", "entropy" or "collect"; run is
	// the one after the third.
	fail     string
	searched int
	open     int
}

var errDevice = errors.New("device trouble")

func (d *fakeDevice) Watch(ctx context.Context, path string, specs map[string]calib.Spec, rows map[string]*quant.Rows) (Watch, error) {
	if d.fail == "watch" {
		return nil, errDevice
	}
	s, err := d.engine.OpenFile(ctx, path, engine.Options{})
	if err != nil {
		return nil, err
	}
	d.open++
	ev := &Evidence{Collector: calib.NewCollector(1, specs), rows: rows}
	return &fakeWatch{d: d, tapped: tapped{ev: ev, s: s}}, nil
}

type fakeWatch struct {
	d *fakeDevice
	tapped
	runs int
	ids  []calib.SampleID
}

func (w *fakeWatch) Name() string { return "a fake device" }

func (w *fakeWatch) Run(ctx context.Context, in engine.Feeds, id calib.SampleID) error {
	if w.runs++; w.d.fail == "run" && w.runs > 3 {
		return errDevice
	}
	w.ids = append(w.ids, id)
	return w.observe(ctx, data.Sample{Feeds: in}, id)
}

func (w *fakeWatch) Entropy(s calib.Scheme) (map[string]calib.Range, error) {
	if w.d.fail == "entropy" {
		return nil, errDevice
	}
	w.d.searched++
	return w.ev.Table("").Ranges(calib.MethodEntropy, s, 1)
}

func (w *fakeWatch) Collect(c *calib.Collector) error {
	if w.d.fail == "collect" {
		return errDevice
	}
	parts := map[string]calib.Partial{}
	for _, n := range w.ev.Names() {
		st := w.ev.Stats(n)
		parts[n] = calib.Partial{Calls: uint64(w.runs), Histogram: st.Histogram(), ChannelMax: st.ChannelMax()}
	}
	return c.Add(parts, w.ids...)
}

func (w *fakeWatch) Close() error {
	w.d.open--
	w.close()
	return nil
}

// TestCalibratesOnTheDevice: a table made on a device is the engine's, whatever
// fails on the way; the result says where it was made, and why not there.
func TestCalibratesOnTheDevice(t *testing.T) {
	p := testPipeline(t)
	model, samples := save(t, cnn()), npy(t, 3, 12, 3, 16, 16)
	run := func(d Device, method string) (string, *TableResult) {
		t.Helper()
		p.Device = d
		res, err := p.CalibrationTable(context.Background(), TableRequest{Model: model, Calib: samples, Config: quant.Config{Method: method}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := res.Table.Write(&b); err != nil {
			t.Fatal(err)
		}
		return b.String(), res
	}
	want, onCPU := run(nil, calib.MethodEntropy)
	if onCPU.Engine == "" || onCPU.Reason != "" {
		t.Errorf("on the CPU: %q, %q", onCPU.Engine, onCPU.Reason)
	}
	for _, fail := range []string{"", "watch", "run", "entropy", "collect"} {
		d := &fakeDevice{engine: p.Engine, fail: fail}
		got, res := run(d, calib.MethodEntropy)
		if got != want {
			t.Errorf("fails with %q: another table", fail)
		}
		if d.open != 0 {
			t.Errorf("fails with %q: %d left open", fail, d.open)
		}
		if fail == "" && (res.Engine != "a fake device" || res.Reason != "" || d.searched != 1) {
			t.Errorf("on the device: %q, %q, %d searches", res.Engine, res.Reason, d.searched)
		}
		if fail != "" && (res.Engine != onCPU.Engine || !strings.Contains(res.Reason, errDevice.Error())) {
			t.Errorf("fails with %q: %q, %q", fail, res.Engine, res.Reason)
		}
	}
	d := &fakeDevice{engine: p.Engine, fail: "entropy"}
	if _, res := run(d, calib.MethodMinMax); res.Reason != "" {
		t.Errorf("a method without a search searched: %s", res.Reason)
	}
}

// TestQuantizesWithTheDevice: the same model comes out, and the report says where
// it was calibrated.
func TestQuantizesWithTheDevice(t *testing.T) {
	p := testPipeline(t)
	model, samples := save(t, mlp()), npy(t, 5, 24, 6, 64)
	reports := map[string][]string{}
	for _, fail := range []string{"none", "", "run"} {
		d := &fakeDevice{engine: p.Engine, fail: fail}
		if p.Device = d; fail == "none" {
			p.Device = nil
		}
		rep, err := p.Quantize(context.Background(), Request{Model: model, Config: quant.Config{}, Calib: samples, Samples: 16, Precision: FP32, NoLatency: true, Force: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		c := rep.Calibration
		reports[fail] = []string{c.Engine, c.EngineReason, rep.Quantized.SHA256}
		if warned := slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.Contains(w, "not on the GPU") }); warned != (fail == "run") {
			t.Errorf("fails with %q: warnings %q", fail, c.Warnings)
		}
	}
	cpu := reports["none"]
	if cpu[1] != "" || reports[""][0] != "a fake device" || reports[""][1] != "" || reports["run"][0] != cpu[0] || reports["run"][1] != errDevice.Error() {
		t.Errorf("%q", reports)
	}
	for k := range maps.Keys(reports) {
		if reports[k][2] != cpu[2] {
			t.Errorf("fails with %q: another model", k)
		}
	}
}

// TestDeviceIsNotToBlame: what is wrong with the data, or a cancellation, is no
// reason to start over.
func TestDeviceIsNotToBlame(t *testing.T) {
	p := testPipeline(t)
	model := save(t, cnn())
	d := &fakeDevice{engine: p.Engine}
	p.Device = d
	ctx, cancel := context.WithCancel(context.Background())
	_, err := p.CalibrationTable(ctx, TableRequest{Model: model, Calib: npy(t, 3, 12, 3, 16, 16)}, func(phase string, f float64) {
		if phase == "calibrate" && f > .3 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || d.open != 0 {
		t.Errorf("cancelled: %v, %d open", err, d.open)
	}
}

package main

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/tools/drive/drivetest"
)

const (
	root    = "../.."
	size    = 8 // of the small images
	classes = 64
)

// smallModel writes a network of two convolutions.
func smallModel(t *testing.T, path string) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	random := func(scale float64, dims ...int64) *tensor.Tensor {
		n := int64(1)
		for _, d := range dims {
			n *= d
		}
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(scale * r.NormFloat64())
		}
		return tensor.From(v, dims...)
	}
	batch := graph.Dim{N: -1, Name: "batch"}
	node := graph.NewNode
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 13}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "small", Inputs: []*graph.Value{{Name: "input", Type: tensor.Float32, Dims: []graph.Dim{batch, {N: 3}, {N: size}, {N: size}}}},
		Outputs: []*graph.Value{{Name: "logits", Type: tensor.Float32, Dims: []graph.Dim{batch, {N: classes}}}},
		Nodes: []*graph.Node{
			node("", "Conv", "c1", []string{"input", "w1"}, []string{"x1"}),
			node("", "Relu", "r1", []string{"x1"}, []string{"y1"}),
			node("", "Conv", "c2", []string{"y1", "w2"}, []string{"x2"}),
			node("", "Relu", "r2", []string{"x2"}, []string{"y2"}),
			node("", "GlobalAveragePool", "pool", []string{"y2"}, []string{"p"}),
			node("", "Flatten", "flat", []string{"p"}, []string{"f"}),
			node("", "Gemm", "fc", []string{"f", "w3"}, []string{"logits"}, graph.AttrInt("transB", 1)),
		},
		Info: map[string]*graph.Value{},
	}}
	m.Graph.SetInit("w1", random(.4, 16, 3, 3, 3))
	m.Graph.SetInit("w2", random(.2, 128, 16, 3, 3))
	m.Graph.SetInit("w3", random(.5, classes, 128))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
}

// images writes n of them as .npz, with labels or without (NumPy's formats).
func images(t *testing.T, path string, n int, labels bool) {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(n), 2))
	x, y := make([]float32, n*3*size*size), make([]int64, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	for i := range y {
		y[i] = r.Int64N(classes)
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	array := func(name, kind, shape string, values any) {
		head := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': %s, }", kind, shape)
		head += strings.Repeat(" ", 63-(len(head)+10)%64) + "\n"
		w, err := z.Create(name + ".npy")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "\x93NUMPY\x01\x00")
		_ = binary.Write(w, binary.LittleEndian, uint16(len(head)))
		fmt.Fprint(w, head)
		if err := binary.Write(w, binary.LittleEndian, values); err != nil {
			t.Fatal(err)
		}
	}
	array("input", "<f4", fmt.Sprintf("(%d, 3, %d, %d)", n, size, size), x)
	if labels {
		array("label", "<i8", fmt.Sprintf("(%d,)", n), y)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func small(t *testing.T) config {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	smallModel(t, in("model.onnx"))
	images(t, in("calib.npz"), 24, false)
	images(t, in("eval.npz"), 40, false)
	images(t, in("labelled.npz"), 32, true)
	return config{fewbit: in("fewbit"), dir: in("run"), models: []model{{"small", in("model.onnx"), true}}, calib: in("calib.npz"), eval: in("eval.npz"),
		labelled: in("labelled.npz"), samples: 16, evalSamples: 16, limit: 2 << 30, out: &bytes.Buffer{}}
}

// TestShortForm runs the whole scenario with a small network, and a second time,
// which repeats nothing.
func TestShortForm(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this builds and runs the command line")
	}
	c := small(t)
	drivetest.Programs(t, filepath.Dir(c.fewbit), "fewbit")
	c.result, c.page = filepath.Join(t.TempDir(), "result.json"), filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(c.page, []byte("# page\n<!-- output --><!-- /output -->\nend\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	if err := run(ctx, c); err != nil {
		t.Fatalf("%v\n%s", err, c.out)
	}
	o, err := readOutcome(c.result)
	if err != nil {
		t.Fatal(err)
	}
	if len(o.Results) != len(forms) {
		t.Fatalf("%d results, want %d", len(o.Results), len(forms))
	}
	for _, r := range o.Results {
		if r.Made.PeakMB < 10 || r.Made.PeakMB > o.LimitMB || len(r.Made.Phases) == 0 || len(r.Made.Trace) == 0 {
			t.Errorf("%s: peak %.0f MB, %d phases, %d points", r.Form, r.Made.PeakMB, len(r.Made.Phases), len(r.Made.Trace))
		}
		p, e := r.Photos.Evaluation, r.Unseen.Evaluation
		if p.QuantAccuracy == nil || p.QuantAccuracy.N != 32 || e.Agreement == nil || e.Agreement.N != c.evalSamples || e.Agreement.Value < 0.7 || e.Latency == nil {
			t.Errorf("%s: photos %+v, agreement %+v", r.Form, p.QuantAccuracy, e.Agreement)
		}
	}
	page, err := os.ReadFile(c.page)
	if err != nil || !strings.Contains(string(page), strings.TrimSpace(o.text())) {
		t.Errorf("%v, page:\n%s", err, page)
	}
	var second bytes.Buffer
	c.out = &second
	steps := 3*len(forms) + 1 // three of each, and the file for TensorFlow Lite
	if err := run(ctx, c); err != nil || strings.Count(second.String(), "kept from") != steps {
		t.Errorf("%v, the second run:\n%s", err, &second)
	}
}

// TestLimit: a process that wants more than the limit does not get it.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	greedy := filepath.Join(dir, "fewbit")
	script := "#!/bin/sh\nulimit -d\necho 'calibrate 40 %, 3s left' >&2\nsleep 0.3\necho evaluate >&2\n[ \"$(ulimit -d)\" = 65536 ] || echo 'fewbit: no limit' >&2\n[ \"$(ulimit -d)\" = 65536 ]\n"
	if err := os.WriteFile(greedy, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	c := config{fewbit: greedy, limit: 64 << 20, rlimit: true}
	m, err := c.limited(context.Background(), []string{"quantize"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range m.Phases {
		names = append(names, p.Name)
	}
	if strings.Join(names, ", ") != "start, calibrate, evaluate" || m.Phases[1].Seconds < 0.25 || m.Phases[1].PeakMB <= 0 {
		t.Errorf("phases %+v", m.Phases)
	}
	if err := os.WriteFile(greedy, []byte("#!/bin/sh\necho 'prepare' >&2\necho 'fewbit: quantize: not enough memory' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := c.limited(context.Background(), []string{"quantize"}); err == nil || err.Error() != "fewbit: quantize: not enough memory" {
		t.Errorf("error %v", err)
	}
}

// TestPassedLimit: a process that takes more is killed, and the error says when.
func TestPassedLimit(t *testing.T) {
	hungry := filepath.Join(t.TempDir(), "fewbit")
	if err := os.WriteFile(hungry, []byte("#!/bin/sh\necho calibrate >&2\nexec sleep 60\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := config{fewbit: hungry, limit: 100 << 10} // less than any process has
	start := time.Now()
	if _, err := c.limited(context.Background(), []string{"quantize"}); err == nil || !strings.Contains(err.Error(), "MB are allowed") || time.Since(start) > 30*time.Second {
		t.Errorf("error %v after %v", err, time.Since(start))
	}
}

// TestMissing: one line says what is missing and what makes it.
func TestMissing(t *testing.T) {
	c := small(t)
	if _, err := check(c); err == nil || !strings.Contains(err.Error(), "run make build") {
		t.Errorf("without the program: %v", err)
	}
	if err := os.Remove(c.labelled); err != nil {
		t.Fatal(err)
	}
	if _, err := check(c); err == nil || !strings.Contains(err.Error(), "labelled.npz is missing; run examples/image-classification/run.sh") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without the photos: %v", err)
	}
}

// TestThin: the peak stays.
func TestThin(t *testing.T) {
	var all []point
	for i := range 1000 {
		all = append(all, point{float64(i), float64(i % 10)})
	}
	all[777].ResidentMB = 99
	got := thin(all, 50)
	most := 0.0
	for _, p := range got {
		most = max(most, p.ResidentMB)
	}
	if len(got) != 50 || most != 99 {
		t.Errorf("%d points, most %g", len(got), most)
	}
}

// TestPage: the walk-through shows what the committed result says.
func TestPage(t *testing.T) {
	drivetest.Page(t, "example_image.json", "example-image", func(path string) (string, error) {
		o, err := readOutcome(path)
		if err != nil {
			return "", err
		}
		return o.text(), nil
	})
}

package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
	"github.com/fewbit/fewbit/tools/drive/drivetest"
)

const (
	root       = "../.."
	classes    = 4
	tokens     = 8
	smallVocab = 2048
	width      = 32
)

// smallModel writes a network with the inputs, outputs and names of the real one:
// a convolution, an embedding, a cross-attention, projections. Its weights are
// random: nothing of it is right, but both versions must answer the same.
func smallModel(t *testing.T, path string) {
	t.Helper()
	r := rand.New(rand.NewPCG(1, 1))
	node := func(op, name, in, out string) *graph.Node {
		return graph.NewNode("", op, name, strings.Fields(in), strings.Fields(out))
	}
	batch := graph.Dim{N: -1, Name: "batch"}
	perm := node("Transpose", "tokens", "flat", "tokens")
	perm.Attrs = append(perm.Attrs, graph.AttrInts("perm", 0, 2, 1))
	turn := node("Transpose", "match.cross.k/heads", "ck", "ckt")
	turn.Attrs = append(turn.Attrs, graph.AttrInts("perm", 0, 2, 1))
	stem := node("Conv", "image.stem0", "pixel_values stem", "s")
	stem.Attrs = append(stem.Attrs, graph.AttrInts("strides", 4, 4), graph.AttrInts("kernel_shape", 4, 4))
	mean := func(name, in, out string, axis int64) *graph.Node {
		n := node("ReduceMean", name, in, out)
		n.Attrs = append(n.Attrs, graph.AttrInts("axes", axis), graph.AttrInt("keepdims", 0))
		return n
	}
	soft := node("Softmax", "match.cross/softmax", "scores", "p")
	soft.Attrs = append(soft.Attrs, graph.AttrInt("axis", -1))
	m := &graph.Model{IR: 8, Opsets: map[string]int64{"": 17}, Metadata: map[string]string{}, Graph: &graph.Graph{
		Name: "small", Info: map[string]*graph.Value{},
		Inputs: []*graph.Value{
			{Name: "pixel_values", Type: tensor.Float32, Dims: []graph.Dim{batch, {N: 1}, {N: side}, {N: side}}},
			{Name: "input_ids", Type: tensor.Int64, Dims: []graph.Dim{batch, {N: -1, Name: "texts"}, {N: tokens}}},
		},
		Outputs: []*graph.Value{
			{Name: "logits_per_image", Type: tensor.Float32, Dims: []graph.Dim{batch, {N: -1, Name: "texts"}}},
			{Name: "image_embeds", Type: tensor.Float32, Dims: []graph.Dim{batch, {N: width}}},
		},
		Nodes: []*graph.Node{
			stem, node("Relu", "image.stem0/relu", "s", "sr"), node("Reshape", "flat", "sr flat_shape", "flat"), perm,
			mean("pool", "tokens", "pooled", 1), node("MatMul", "image.projection", "pooled wi", "image_embeds"),
			node("Gather", "text.embedding", "table input_ids", "words"), mean("sentence", "words", "sentence", 2),
			node("MatMul", "text.projection", "sentence wt", "te"),
			node("MatMul", "match.cross.q", "te wq", "cq"), node("MatMul", "match.cross.k", "tokens wk", "ck"), node("MatMul", "match.cross.v", "tokens wv", "cv"),
			turn, node("MatMul", "match.cross/scores", "cq ckt", "scores"), soft, node("MatMul", "match.cross/context", "p cv", "context"),
			node("MatMul", "match.cross.o", "context wo", "co"), node("Add", "match.cross/residual", "te co", "fused"),
			node("Unsqueeze", "column", "image_embeds two", "column"), node("MatMul", "logits/product", "fused column", "product"),
			node("Squeeze", "logits", "product two", "logits_per_image"),
		},
	}}
	random := func(name string, scale float64, dims ...int64) {
		n := int64(1)
		for _, d := range dims {
			n *= d
		}
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(scale * r.NormFloat64())
		}
		m.Graph.SetInit(name, tensor.From(v, dims...))
	}
	random("stem", .3, width, 1, 4, 4)
	random("table", 1, smallVocab, width)
	for _, w := range []string{"wi", "wt", "wq", "wk", "wv", "wo"} {
		random(w, .2, width, width)
	}
	m.Graph.SetInit("flat_shape", tensor.From([]int64{0, width, -1}, 3))
	m.Graph.SetInit("two", tensor.From([]int64{2}, 1))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	if err := m.Save(path, onnx.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
}

// idx writes n arrays of bytes in the form of MNIST.
func idx(t *testing.T, path string, n int, value func() byte, dims ...int) {
	t.Helper()
	b := []byte{0, 0, 8, byte(1 + len(dims))}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	size := n
	for _, d := range dims {
		b, size = binary.BigEndian.AppendUint32(b, uint32(d)), size*d
	}
	for range size {
		b = append(b, value())
	}
	packed(t, path, b)
}

func packed(t *testing.T, path string, b []byte) {
	t.Helper()
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, z.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// short is the scenario with the small model, made-up images and counts that take
// seconds.
func short(t *testing.T, out io.Writer) config {
	t.Helper()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	smallModel(t, in("model.onnx"))
	r := rand.New(rand.NewPCG(2, 2))
	rec := receipt{Mean: .29, Std: .35, Classes: []string{"a", "b", "c", "d"}, Images: 100, Prompts: map[string][][]int{}}
	for range classes {
		var ids []int
		for range tokens {
			ids = append(ids, r.IntN(smallVocab))
		}
		rec.Prompts["seen"] = append(rec.Prompts["seen"], ids)
	}
	b, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in("receipt.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]int{"train": 180, "t10k": 60} {
		idx(t, in(name+"-images-idx3-ubyte.gz"), n, func() byte { return byte(r.UintN(256)) }, side, side)
		idx(t, in(name+"-labels-idx1-ubyte.gz"), n, func() byte { return byte(r.UintN(classes)) })
	}
	return config{serve: in("serve"), fewbit: in("fewbit"), dir: in("run"), model: dir, data: dir, out: out, traffic: 30, samples: 8, gate: 24, held: 50, operators: -1, judge: 8,
		batch: 20, rounds: 6, latency: 2 * time.Second, ticks: 8, tick: 60 * time.Millisecond, force: true, targetMS: 50}
}

// TestShortForm runs the whole scenario: it is interrupted while the job is at
// work, goes on without repeating what was done, and a third run measures nothing.
func TestShortForm(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this builds and runs the server")
	}
	runtime.LockOSThread() // the server ends with the thread that started it
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	first, stop := context.WithCancel(ctx)
	defer stop()
	out := &drivetest.StopAt{Text: "running", Stop: stop}
	c := short(t, out)
	drivetest.Programs(t, filepath.Dir(c.serve), "serve", "fewbit")
	if err := run(first, c, false); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted at the job: %v\n%s", err, out)
	}
	var second bytes.Buffer
	c.out, c.result, c.page = &second, filepath.Join(c.dir, "result.json"), filepath.Join(c.dir, "page.md")
	if err := os.WriteFile(c.page, []byte("# page\n<!-- output --><!-- /output -->\nend\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(ctx, c, false); err != nil {
		t.Fatalf("%v\n%s", err, &second)
	}
	if n := strings.Count(second.String(), "kept from"); n != 5 { // upload, capture, sensitivity, gate, submit
		t.Errorf("%d steps were kept, want 5:\n%s", n, &second)
	}
	o, err := readOutcome(c.result)
	if err != nil {
		t.Fatal(err)
	}
	if a := o.Accuracy; a.N != c.held || a.Paired.N() != c.held || a.Agree < c.held*8/10 || a.Cosine < .99 {
		t.Errorf("accuracy %+v", a)
	}
	if o.Captured.Samples < c.samples || o.Job.Version == o.Float || o.Job.Report.Calibration == nil || o.Job.Report.Calibration.Samples != int64(c.samples) {
		t.Errorf("captured %+v, version %q after %q, calibration %+v", o.Captured, o.Job.Version, o.Float, o.Job.Report.Calibration)
	}
	// The recipe: 8-bit convolution, half precision for queries, keys and values, 4 bits for the table.
	p := o.Job.Precisions
	if p["Conv int8"] != 1 || o.Job.Cross["match.cross.q"] != "fp16" || o.Job.Cross["match.cross.k"] != "fp16" || o.Job.Cross["match.cross.v"] != "fp16" || o.Job.Cross["match.cross.o"] != "int8" {
		t.Errorf("precisions %v, cross-attention %v", p, o.Job.Cross)
	}
	if o.size() > maxSize {
		t.Errorf("size %.2f of FP32", o.size())
	}
	var names []string
	for _, b := range o.Sensitivity.Blocks {
		names = append(names, b.Name)
	}
	if got := strings.Join(names, ", "); got != "image.projection, image.stem0, match cross-attention, text.projection" {
		t.Errorf("blocks %s", got)
	}
	if len(o.Patrol.Ticks) != c.ticks || o.Patrol.Frames == 0 || o.Patrol.Power == "" {
		t.Errorf("flight %+v", o.Patrol)
	}
	page, err := os.ReadFile(c.page)
	if err != nil || !strings.Contains(string(page), strings.TrimSpace(o.text())) || !strings.HasSuffix(string(page), "\nend\n") {
		t.Errorf("%v, page:\n%s", err, page)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "captured.npz")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what the camera saw lies there in clear: %v", err)
	}
	var third bytes.Buffer
	c.out = &third
	if err := run(ctx, c, false); err != nil || strings.Count(third.String(), "kept from") != 9 {
		t.Errorf("%v, the third run:\n%s", err, &third)
	}
}

// TestMissing: one line says what is missing or damaged, and what makes it.
func TestMissing(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		edit       func(t *testing.T, c *config)
	}{
		{"no model", "model.onnx is missing; run examples/vision-language/run.sh", func(t *testing.T, c *config) { c.model = t.TempDir() }},
		{"no images", "train-images-idx3-ubyte.gz is missing; run examples/vision-language/run.sh", func(t *testing.T, c *config) { c.data = t.TempDir() }},
		{"cut images", "is cut off", func(t *testing.T, c *config) {
			packed(t, filepath.Join(c.data, "t10k-images-idx3-ubyte.gz"), []byte{0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, side, 0, 0, 0, side, 1, 2})
		}},
		{"other images", "an array of another size", func(t *testing.T, c *config) {
			packed(t, filepath.Join(c.data, "t10k-images-idx3-ubyte.gz"), []byte{0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 32, 0, 0, 0, 32, 1, 2})
		}},
		{"too many", "it holds 4294967295 values", func(t *testing.T, c *config) {
			packed(t, filepath.Join(c.data, "t10k-labels-idx1-ubyte.gz"), []byte{0, 0, 8, 1, 255, 255, 255, 255, 1})
		}},
		{"more than it says", "it is longer than it says", func(t *testing.T, c *config) {
			packed(t, filepath.Join(c.data, "t10k-labels-idx1-ubyte.gz"), []byte{0, 0, 8, 1, 0, 0, 0, 1, 1, 1})
		}},
		{"labels of others", "60 t10k images have 1 labels", func(t *testing.T, c *config) {
			packed(t, filepath.Join(c.data, "t10k-labels-idx1-ubyte.gz"), []byte{0, 0, 8, 1, 0, 0, 0, 1, 1})
		}},
		{"another class", "label 9 of an image is none of the model's 4 classes", func(t *testing.T, c *config) {
			idx(t, filepath.Join(c.data, "t10k-labels-idx1-ubyte.gz"), 60, func() byte { return 9 })
		}},
		{"nothing left", "more than 90 must be left", func(t *testing.T, c *config) { c.gate = 90 }},
		{"no server", "serve is missing; run make build", func(*testing.T, *config) {}},
	} {
		c := short(t, io.Discard)
		tc.edit(t, &c)
		if _, err := check(c); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestBlocks: an operator belongs to the part that its name says.
func TestBlocks(t *testing.T) {
	for op, want := range map[string]string{
		"text.2.attn.q": "text.2 attention", "match.cross.k": "match cross-attention", "image.0.up": "image.0 perceptron", "match.0.down": "match.0 perceptron",
		"image.stem0": "image.stem0", "image.projection": "image.projection", "Conv_0": "Conv_0", "": "",
	} {
		if got := blockOf(op); got != want {
			t.Errorf("%q belongs to %q, want %q", op, got, want)
		}
	}
}

// TestPage: the walk-through shows what the committed result says.
func TestPage(t *testing.T) {
	drivetest.Page(t, "example_drone.json", "example-drone", func(path string) (string, error) {
		o, err := readOutcome(path)
		if err != nil {
			return "", err
		}
		return o.text(), nil
	})
}

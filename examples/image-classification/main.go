// Command image-classification is the first field scenario: image classifiers for
// a device with 2 GB of memory.
//
//	examples/image-classification/run.sh     (make example-image)
//
// It quantizes EfficientNet-lite0 (real weights) and the graph of ResNet-50
// (random weights: size, speed and memory only) in three forms, each in a process
// that may hold no more memory than the device has, follows that memory by phase,
// and compares every result with FP32 on images that calibration never saw. Steps
// that are done are kept: after Ctrl-C the next run goes on.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/tools/drive"
)

const (
	fetchHint = "run examples/image-classification/run.sh, which fetches and makes it"
	// needBytes is what the results take.
	needBytes = 400 << 20
)

// model is a classifier of images.
type model struct {
	name, path string
	trained    bool // its answers mean something
}

// form is one way to quantize.
type form struct {
	name  string
	flags []string
}

var forms = []form{
	{"static", []string{"--scheme", "int8"}},
	{"dynamic", []string{"--scheme", "int8-dynamic"}},
	{"QDQ", []string{"--scheme", "int8", "--target", "qdq"}},
}

type config struct {
	fewbit, dir           string
	models                []model
	calib, eval, labelled string // .npz files
	result, page          string // where the results go, and the page that shows them; "" for nowhere
	samples, evalSamples  int    // 0: all
	limit                 int64  // bytes
	rlimit                bool   // let the kernel limit it too
	out                   io.Writer
}

func main() {
	c := config{out: os.Stdout, samples: 32, evalSamples: 200, models: []model{
		{"EfficientNet-lite0", ".deps/models/efficientnet-lite0/model.onnx", true},
		{"ResNet-50 (random weights)", ".deps/models/resnet50-random/model.onnx", false},
	}}
	flag.StringVar(&c.fewbit, "fewbit", "bin/fewbit", "the command line to run")
	flag.StringVar(&c.dir, "dir", "fewbit-data/image-classification", "folder for the quantized models and what is done already")
	flag.StringVar(&c.calib, "calib", ".deps/data/stamps/calib.npz", "images that calibrate")
	flag.StringVar(&c.eval, "eval", ".deps/data/stamps/eval.npz", "other images, without labels")
	flag.StringVar(&c.labelled, "labelled", ".deps/data/stamps/labelled.npz", "photos with labels")
	flag.StringVar(&c.result, "result", "", "write the results to this file (benchmarks/results/example_image.json)")
	flag.StringVar(&c.page, "page", "", "write the output into this page (examples/image-classification/README.md)")
	megabytes := flag.Int64("limit-mb", 2048, "memory that fewbit quantize may take, in MiB")
	flag.BoolVar(&c.rlimit, "rlimit", false, "let the kernel limit its private memory too (RLIMIT_DATA, which counts what is reserved as well)")
	flag.IntVar(&c.samples, "samples", c.samples, "images that calibrate")
	full := flag.Bool("full", false, "the counts that claims rest on")
	flag.Parse()
	c.limit = *megabytes << 20
	if *full {
		c.samples, c.evalSamples = 64, 0
		os.Setenv("FEWBIT_BENCH", "full") // for harness.Full
	}
	drive.Main(func(ctx context.Context) error { return run(ctx, c) })
}

// check finds out before anything is started what would fail later, and returns
// what tells one set of inputs from another.
func check(c config) (stamp string, err error) {
	stamp = fmt.Sprint(c.samples, c.evalSamples, c.limit, c.rlimit)
	files := []string{c.calib, c.eval, c.labelled}
	for _, m := range c.models {
		files = append(files, m.path)
	}
	for _, f := range files {
		st, err := os.Stat(f)
		if err != nil {
			return "", fmt.Errorf("%s is missing; %s", f, fetchHint)
		}
		stamp += fmt.Sprint(" ", f, " ", st.Size())
	}
	if _, err := os.Stat(c.fewbit); err != nil {
		return "", fmt.Errorf("%s is missing; run make build", c.fewbit)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "steps.json")); err == nil {
		return stamp, nil // the space is taken already
	}
	return stamp, drive.NeedSpace(c.dir, needBytes)
}

func run(ctx context.Context, c config) error {
	stamp, err := check(c)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	steps, err := drive.OpenSteps(filepath.Join(c.dir, "steps.json"), stamp, c.out)
	if err != nil {
		return err
	}
	o := &outcome{LimitMB: float64(c.limit) / 1e6, Samples: c.samples, Cores: engine.AvailableCPUs(), Load: harness.LoadAverage()}
	for i, m := range c.models {
		for _, f := range forms {
			r, err := c.one(ctx, steps, i, m, f)
			if err != nil {
				return err
			}
			o.Results = append(o.Results, r)
			if f.name == "static" {
				o.Models = append(o.Models, traced{m.name, r.Made.Trace})
			}
		}
	}
	return drive.Publish(c.out, o.text(), c.page, c.result, o.write)
}

// one quantizes a model in one form and compares the result with FP32.
func (c config) one(ctx context.Context, steps *drive.Steps, i int, m model, f form) (result, error) {
	r := result{Model: m.name, Form: f.name, Trained: m.trained}
	out := filepath.Join(c.dir, fmt.Sprintf("model%d-%s.onnx", i, f.name))
	what := m.name + ", " + f.name + ": "
	var err error
	if r.Made, err = drive.Do(steps, what+"quantize", what+fmt.Sprintf("quantizing within %d MiB", c.limit>>20), func() (made, error) {
		args := append([]string{"quantize", m.path, "-o", out, "--calib", c.calib, "--samples", strconv.Itoa(c.samples), "--eval", c.eval, "--eval-samples", "16", "--no-latency", "--force"}, f.flags...)
		return c.limited(ctx, args)
	}); err != nil {
		return r, err
	}
	if f.name == "QDQ" {
		if r.Lite, err = drive.Do(steps, what+"tflite", what+"writing it for TensorFlow Lite", func() (*lite, error) { return c.lite(ctx, out) }); err != nil {
			return r, err
		}
	}
	compare := func(data string, more ...string) func() (compared, error) {
		return func() (compared, error) {
			return c.compare(ctx, append([]string{"compare", m.path, out, "--data", data, "--json"}, more...))
		}
	}
	if r.Unseen, err = drive.Do(steps, what+"compare", what+"comparing with FP32 on images that did not calibrate", compare(c.eval, "--samples", strconv.Itoa(c.evalSamples))); err != nil {
		return r, err
	}
	if m.trained {
		r.Photos, err = drive.Do(steps, what+"photos", what+"asking about photos with labels", compare(c.labelled, "--no-latency"))
	}
	return r, err
}

// compared is what fewbit compare found.
type compared struct {
	Evaluation eval.Result    `json:"evaluation"`
	Memory     report.Memory  `json:"memory"`
	FP32Bytes  int64          `json:"fp32_bytes"`
	Bytes      int64          `json:"bytes"`
	Integer    report.Integer `json:"integer"`
	Engine     string         `json:"engine"`
}

func (c config) compare(ctx context.Context, args []string) (compared, error) {
	out, err := c.output(ctx, args)
	if err != nil {
		return compared{}, err
	}
	r, err := report.ReadJSON(bytes.NewReader(out))
	if err != nil {
		return compared{}, err
	}
	if r.Evaluation == nil {
		return compared{}, errors.New("fewbit compare found nothing to compare")
	}
	e := *r.Evaluation
	e.Tensors, e.Outputs = nil, nil // long, and not shown
	return compared{e, r.Memory, r.Model.Bytes, r.Quantized.Bytes, r.Integer, drive.EngineVersion(*r)}, nil
}

// output runs fewbit and returns what it printed.
func (c config) output(ctx context.Context, args []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.fewbit, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, failure(ctx, args[0], err, errs.Bytes())
	}
	return out.Bytes(), nil
}

// lite is what fewbit tflite says of the file that it wrote.
type lite struct {
	Bytes   int64 `json:"bytes"`
	Integer int   `json:"integer_operators"`
	Float   int   `json:"float_operators"`
}

// lite writes a quantized model for TensorFlow Lite, beside it.
func (c config) lite(ctx context.Context, model string) (*lite, error) {
	out, err := c.output(ctx, []string{"tflite", model, "-o", strings.TrimSuffix(model, ".onnx") + ".tflite", "--json"})
	if err != nil {
		return nil, err
	}
	l := &lite{}
	return l, json.Unmarshal(out, l)
}

// failure words what a command said last.
func failure(ctx context.Context, name string, err error, stderr []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	lines := bytes.Split(bytes.TrimSpace(stderr), []byte("\n"))
	if i := slices.IndexFunc(lines, func(l []byte) bool { return bytes.HasPrefix(l, []byte("fewbit: ")) }); i >= 0 {
		return fmt.Errorf("%s", lines[i])
	}
	return fmt.Errorf("fewbit %s: %w: %s", name, err, lines[0])
}

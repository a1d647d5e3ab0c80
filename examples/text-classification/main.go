// Command text-classification is the second field scenario: a BERT-base text
// classifier on a server without a GPU that has to answer within 50 ms.
//
//	examples/text-classification/run.sh     (make example-text)
//
// It starts the server with the FP32 model, sends it live traffic that the server
// captures, quantizes by a job that calibrates on what was captured, promotes the
// result and measures both versions over HTTP: accuracy on texts that nothing was
// trained, calibrated or chosen on, latency over batch size and sequence length,
// and Poisson arrivals against the target. Steps that are done are kept: after
// Ctrl-C the next run goes on.
package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/tools/drive"
)

const (
	modelName = "reviews"
	gateName  = "reviews-gate"
	// needBytes is what the server's folder takes: FP32 and INT8 of BERT-base, and room to write them.
	needBytes = 2 << 30
	// maxLine bounds one line of the data.
	maxLine = 1 << 20
)

// modelFiles are what the classifier consists of, in upload order.
var modelFiles = []string{"model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "labels.txt"}

// config is where things lie, and how much is done. The short form of the test
// has other models and smaller counts.
type config struct {
	serve, dir, model string
	live, test        string // .jsonl files: what the users send, and what judges
	result, page      string // where the results go, and the page that shows them; "" for nowhere
	rule              string // precision of the last operator
	out               io.Writer

	traffic  int     // texts sent while the server captures
	rate     float64 // of them a second
	samples  int     // of the captured ones that calibrate; 0 is the server's default
	gate     int     // texts of live, its last, that are not sent: the job's gate judges by their labels
	held     int     // texts that judge, at most
	batches  []int
	lengths  []int // tokens
	rounds   int   // of each cell
	cell     time.Duration
	rates    []float64 // Poisson arrivals a second
	load     time.Duration
	force    bool // keep a result that the gate refuses: the test's machine is busy
	targetMS float64
}

func main() {
	c := config{
		out: os.Stdout, rule: "head/logits=fp16", traffic: 600, rate: 15, gate: 1000, batches: []int{1, 2, 4, 8}, lengths: []int{16, 32, 64, 128},
		rounds: 20, cell: 8 * time.Second, rates: []float64{5, 10, 20, 30, 40, 50, 60}, load: 10 * time.Second, targetMS: 50,
	}
	flag.StringVar(&c.serve, "serve", "bin/serve", "the server to start")
	flag.StringVar(&c.dir, "dir", "fewbit-data/text-classification", "folder for the server's data and what is done already")
	flag.StringVar(&c.model, "model", ".deps/models/movies", "folder of the FP32 classifier (tools/newsmodel)")
	flag.StringVar(&c.live, "live", ".deps/data/movies/live.jsonl", "what the users send")
	flag.StringVar(&c.test, "test", ".deps/data/movies/test.jsonl", "labelled texts that judge")
	flag.IntVar(&c.held, "held-out", 2000, "use this many of them")
	flag.StringVar(&c.result, "result", "", "write the results to this file (benchmarks/results/example_text.json)")
	flag.StringVar(&c.page, "page", "", "write the output into this page (examples/text-classification/README.md)")
	full := flag.Bool("full", false, "the counts that claims rest on (about half an hour)")
	again := flag.Bool("again", false, "measure again; the quantized model is kept")
	flag.Parse()
	if *full {
		c.rounds, c.cell, c.load = 100, time.Minute, time.Minute
		os.Setenv("FEWBIT_BENCH", "full") // for harness.Full
	}
	drive.Main(func(ctx context.Context) error { return run(ctx, c, *again) })
}

// steps that -again repeats, by name: another count is another step.
func (c config) accuracyStep() string { return fmt.Sprintf("accuracy on %d", c.held) }
func (c config) latencyStep() string {
	return fmt.Sprintf("latency of %v x %v, %d rounds, %v", c.batches, c.lengths, c.rounds, c.cell)
}
func (c config) loadStep() string { return fmt.Sprintf("load at %v for %v", c.rates, c.load) }

func run(ctx context.Context, c config, again bool) error {
	data, err := check(c)
	if err != nil {
		return err
	}
	steps, err := drive.OpenSteps(filepath.Join(c.dir, "steps.json"), data.stamp, c.out)
	if err != nil {
		return err
	}
	if again {
		if err := steps.Forget(c.accuracyStep(), c.latencyStep(), c.loadStep()); err != nil {
			return err
		}
	}
	srv, api, err := drive.StartCapturing(ctx, c.out, c.serve, c.dir)
	if err != nil {
		return err
	}
	defer srv.Stop()
	e := &example{config: c, data: data, steps: steps, api: api}
	o, err := e.all(ctx)
	if err != nil {
		return srv.Explain(err)
	}
	return drive.Publish(c.out, o.text(), c.page, c.result, o.write)
}

// example is one run of the scenario.
type example struct {
	config
	data  *inputs
	steps *drive.Steps
	api   *drive.Client
}

// all does the steps that are left, in their order.
func (e *example) all(ctx context.Context) (*outcome, error) {
	o := &outcome{TargetMS: e.targetMS, Cores: engine.AvailableCPUs(), Labels: len(e.data.labels)}
	var err error
	if o.Float, err = drive.Do(e.steps, "upload", "uploading the FP32 classifier ("+e.model+")", func() (string, error) {
		return e.api.PutModel(ctx, modelName, e.model, e.data.files)
	}); err != nil {
		return nil, err
	}
	if o.Captured, err = drive.Do(e.steps, "capture", fmt.Sprintf("users ask: %d texts at %g a second while the server captures", e.traffic, e.rate), func() (captured, error) {
		return e.capture(ctx)
	}); err != nil {
		return nil, err
	}
	if _, err = drive.Do(e.steps, "gate", fmt.Sprintf("uploading %d labelled texts for the job's gate", len(e.data.gate)), func() (int, error) {
		return len(e.data.gate), e.uploadGate(ctx)
	}); err != nil {
		return nil, err
	}
	if o.Job, err = e.quantize(ctx, o.Float); err != nil {
		return nil, err
	}
	if o.Accuracy, err = drive.Do(e.steps, e.accuracyStep(), fmt.Sprintf("asking both versions about %d held-out texts", len(e.data.test)), func() (accuracy, error) {
		return e.accuracy(ctx, o)
	}); err != nil {
		return nil, err
	}
	if o.Latency, err = drive.Do(e.steps, e.latencyStep(), "latency over batch size and sequence length, both versions in turn", func() (grid, error) {
		return e.latency(ctx, o)
	}); err != nil {
		return nil, err
	}
	o.Load, err = drive.Do(e.steps, e.loadStep(), fmt.Sprintf("Poisson arrivals, %v at each rate", e.load), func() (loads, error) {
		return e.underLoad(ctx, o)
	})
	return o, err
}

// inputs are what a run reads.
type inputs struct {
	live, gate, test []row
	labels           []string
	files            []string // of the model, those of modelFiles that are there
	stamp            string
}

type row struct {
	Text  string `json:"text"`
	Label string `json:"label"`
}

const fetchHint = "run examples/text-classification/run.sh, which fetches and makes it"

// check finds out before anything is started what would fail later.
func check(c config) (*inputs, error) {
	d := &inputs{}
	h := sha256.New()
	fmt.Fprint(h, c.rule, c.traffic, c.samples, c.gate)
	for _, f := range modelFiles {
		st, err := os.Stat(filepath.Join(c.model, f))
		switch {
		case err == nil:
			d.files = append(d.files, f)
			fmt.Fprint(h, f, st.Size())
		case !errors.Is(err, os.ErrNotExist) || f != "model.onnx.data":
			return nil, fmt.Errorf("%s is missing in %s; %s", f, c.model, fetchHint)
		}
	}
	b, err := os.ReadFile(filepath.Join(c.model, "labels.txt"))
	if err != nil {
		return nil, err
	}
	d.labels = strings.Fields(string(b))
	if d.live, err = rows(c.live, h); err != nil {
		return nil, err
	}
	if d.test, err = rows(c.test, h); err != nil {
		return nil, err
	}
	if len(d.live) <= c.gate {
		return nil, fmt.Errorf("%s has %d texts, more than %d are needed", c.live, len(d.live), c.gate)
	}
	d.live, d.gate = d.live[:len(d.live)-c.gate], d.live[len(d.live)-c.gate:]
	d.test = d.test[:min(len(d.test), c.held)]
	for _, r := range slices.Concat(d.gate, d.test) {
		if !slices.Contains(d.labels, r.Label) {
			return nil, fmt.Errorf("%s: label %q of a text is none of the model's %v", c.model, r.Label, d.labels)
		}
	}
	if _, err := os.Stat(c.serve); err != nil {
		return nil, fmt.Errorf("%s is missing; run make build", c.serve)
	}
	d.stamp = hex.EncodeToString(h.Sum(nil))
	if _, err := os.Stat(filepath.Join(c.dir, "steps.json")); err == nil {
		return d, nil // the space is taken already
	}
	return d, drive.NeedSpace(c.dir, needBytes)
}

// rows reads the texts of a .jsonl file.
func rows(path string, h io.Writer) ([]row, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s is missing; %s", path, fetchHint)
	}
	defer f.Close()
	var all []row
	lines := bufio.NewScanner(io.TeeReader(f, h))
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var r row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil || r.Text == "" {
			return nil, fmt.Errorf("%s, line %d: expected {\"text\", \"label\"}", path, len(all)+1)
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s is empty; %s", path, fetchHint)
	}
	return all, nil
}

// Command vision-language is the third field scenario: a CLIP model on a drone,
// under limits of power and heat.
//
//	examples/vision-language/run.sh     (make example-drone)
//
// It starts the server with the FP32 model, lets it capture what the device's own
// camera sees, measures which operators suffer most from INT8, quantizes by a job
// with the precisions of the recipe multimodal, calibrated on what was captured,
// and compares both versions over HTTP on the 10,000 test images of Fashion-MNIST.
// Then the device flies: a governor trades precision and rate for power and
// temperature. Steps that are done are kept: after Ctrl-C the next run goes on.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/tools/drive"
)

const (
	modelName = "drone"
	gateName  = "drone-gate"
	fetchHint = "run examples/vision-language/run.sh, which fetches and makes it"
	// needBytes is what the server's folder takes; the large model takes bigBytes more.
	needBytes = 200 << 20
	bigBytes  = 1500 << 20
)

// rules are those of the recipe multimodal (cmd/fewbit/recipes): all else is INT8.
var rules = []string{"@embeddings=int4", "@attention=fp16", "@head=fp16"}

// config is where things lie, and how much is done. The short form of the test
// has another model and smaller counts.
type config struct {
	serve, fewbit, dir string
	model, data        string
	big                string // CLIP at full size with random weights; "" leaves it out
	result, page       string // where the results go, and the page that shows them; "" for nowhere
	out                io.Writer

	traffic    int // frames that the camera takes while the server captures
	samples    int // of the captured ones that calibrate; 0 is the server's default
	gate       int // labelled images that the job's gate judges by
	held       int // test images, at most
	operators  int // measured by themselves; -1 is all
	judge      int // images that judge each operator
	batch      int // images a request while accuracy is measured
	rounds     int // of the latency
	latency    time.Duration
	ticks      int
	tick       time.Duration
	force      bool // keep a result that the gate refuses: the test's machine is busy
	targetMS   float64
	bigSamples int
}

func main() {
	c := config{out: os.Stdout, traffic: 600, gate: 1000, held: 10000, operators: -1, judge: 32, batch: 50, rounds: 200, latency: 20 * time.Second,
		ticks: 80, tick: 500 * time.Millisecond, targetMS: 50, bigSamples: 4}
	flag.StringVar(&c.serve, "serve", "bin/serve", "the server to start")
	flag.StringVar(&c.fewbit, "fewbit", "bin/fewbit", "the command line to run")
	flag.StringVar(&c.dir, "dir", "fewbit-data/vision-language", "folder for the server's data and what is done already")
	flag.StringVar(&c.model, "model", ".deps/models/clip-fashion", "folder of the FP32 model (tools/models/clip.py)")
	flag.StringVar(&c.data, "data", ".deps/data/fashion-mnist", "folder of Fashion-MNIST")
	flag.StringVar(&c.big, "big", "", "measure size, memory and speed of this model too (tools/models/clip.py --random)")
	flag.IntVar(&c.held, "held-out", c.held, "use this many of the test images")
	flag.StringVar(&c.result, "result", "", "write the results to this file (benchmarks/results/example_drone.json)")
	flag.StringVar(&c.page, "page", "", "write the output into this page (examples/vision-language/README.md)")
	full := flag.Bool("full", false, "the counts that claims rest on")
	again := flag.Bool("again", false, "measure again; the quantized model is kept")
	flag.Parse()
	if *full {
		c.rounds, c.latency, c.ticks = 1000, time.Minute, 160
		os.Setenv("FEWBIT_BENCH", "full") // for harness.Full
	}
	drive.Main(func(ctx context.Context) error { return run(ctx, c, *again) })
}

// steps that -again repeats, by name: another count is another step.
func (c config) accuracyStep() string { return fmt.Sprintf("accuracy on %d", c.held) }
func (c config) latencyStep() string {
	return fmt.Sprintf("latency, %d rounds, %v", c.rounds, c.latency)
}
func (c config) patrolStep() string { return fmt.Sprintf("patrol of %d x %v", c.ticks, c.tick) }

const bigStep = "full size"

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
		if err := steps.Forget(c.accuracyStep(), c.latencyStep(), c.patrolStep(), bigStep); err != nil {
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
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return srv.Explain(err)
	}
	srv.Stop() // the large model is measured alone
	if c.big != "" {
		if o.Big, err = drive.Do(steps, bigStep, "CLIP ViT-B/32 at full size, random weights: size, memory and speed only", func() (*bigModel, error) {
			return c.measureBig(ctx)
		}); err != nil {
			return err
		}
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
	o := &outcome{Cores: engine.AvailableCPUs(), Model: e.data.receipt}
	o.Model.Prompts = nil // long
	var err error
	if o.Float, err = drive.Do(e.steps, "upload", "uploading the FP32 model ("+e.model+")", func() (string, error) {
		return e.api.PutModel(ctx, modelName, e.model, []string{"model.onnx"})
	}); err != nil {
		return nil, err
	}
	if o.Captured, err = drive.Do(e.steps, "capture", fmt.Sprintf("the camera takes %d frames while the server captures", e.traffic), func() (captured, error) {
		return e.capture(ctx, o.Float)
	}); err != nil {
		return nil, err
	}
	if o.Sensitivity, err = drive.Do(e.steps, "sensitivity", "measuring what INT8 costs each operator, on captured frames", func() (sensitivity, error) {
		return e.sensitivity(ctx)
	}); err != nil {
		return nil, err
	}
	if _, err = drive.Do(e.steps, "gate", fmt.Sprintf("uploading %d labelled images for the job's gate", e.data.gate.n()), func() (int, error) {
		return e.data.gate.n(), e.uploadGate(ctx)
	}); err != nil {
		return nil, err
	}
	if o.Job, err = e.quantize(ctx, o.Float); err != nil {
		return nil, err
	}
	if o.Accuracy, err = drive.Do(e.steps, e.accuracyStep(), fmt.Sprintf("asking both versions about %d test images", e.data.test.n()), func() (accuracy, error) {
		return e.accuracy(ctx, o)
	}); err != nil {
		return nil, err
	}
	if o.Latency, err = drive.Do(e.steps, e.latencyStep(), "latency of one frame with its captions, both versions in turn", func() (latency, error) {
		return e.measureLatency(ctx, o)
	}); err != nil {
		return nil, err
	}
	o.Patrol, err = drive.Do(e.steps, e.patrolStep(), fmt.Sprintf("flying for %v under a budget of power, heat and latency", time.Duration(e.ticks)*e.tick), func() (patrol, error) {
		return e.fly(ctx, o)
	})
	return o, err
}

// inputs are what a run reads.
type inputs struct {
	receipt receipt
	// camera and gate are training images that trained nothing; test are the test images.
	camera, gate, test images
	stamp              string
}

// check finds out before anything is started what would fail later.
func check(c config) (*inputs, error) {
	d := &inputs{}
	h := sha256.New()
	fmt.Fprint(h, rules, c.traffic, c.samples, c.gate, c.operators, c.judge)
	for _, f := range []string{filepath.Join(c.model, "model.onnx"), filepath.Join(c.model, "receipt.json")} {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("%s is missing; %s", f, fetchHint)
		}
		h.Write(b)
	}
	var err error
	if d.receipt, err = readReceipt(filepath.Join(c.model, "receipt.json")); err != nil {
		return nil, err
	}
	train, err := readImages(c.data, "train")
	if err != nil {
		return nil, err
	}
	if d.test, err = readImages(c.data, "t10k"); err != nil {
		return nil, err
	}
	if left := train.n() - d.receipt.Images; left <= c.gate || d.receipt.Images < 0 {
		return nil, fmt.Errorf("%s has %d training images, of which %d trained the model; more than %d must be left", c.data, train.n(), d.receipt.Images, c.gate)
	}
	for _, l := range append(append([]byte{}, train.labels...), d.test.labels...) {
		if int(l) >= len(d.receipt.Classes) {
			return nil, fmt.Errorf("%s: label %d of an image is none of the model's %d classes", c.data, l, len(d.receipt.Classes))
		}
	}
	cut := train.n() - c.gate
	d.camera, d.gate = train.slice(d.receipt.Images, cut), train.slice(cut, train.n())
	d.test = d.test.slice(0, min(d.test.n(), c.held))
	for _, program := range []string{c.serve, c.fewbit} {
		if _, err := os.Stat(program); err != nil {
			return nil, fmt.Errorf("%s is missing; run make build", program)
		}
	}
	need := int64(needBytes)
	if c.big != "" {
		if _, err := os.Stat(c.big); err != nil {
			return nil, fmt.Errorf("%s is missing; run tools/models/prepare.sh clip-random", c.big)
		}
		need += bigBytes
	}
	d.stamp = hex.EncodeToString(h.Sum(nil))
	if _, err := os.Stat(filepath.Join(c.dir, "steps.json")); err == nil && c.big == "" {
		return d, nil // the space is taken already
	}
	return d, drive.NeedSpace(c.dir, need)
}

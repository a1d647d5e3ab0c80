// Command load measures the server under load, with this process as its client:
// BERT-base INT8 saturated against the same file in a session, Poisson arrivals
// at 80 % of that, ten times what it can do, and 1,000 times load and unload. It
// writes load.json and cycles.json in benchmarks/results and is run by
// benchmarks/run.sh.
//
// Requests go out when they are due, whatever became of those before (an open
// loop), and latency counts from that instant. A request that does nothing is
// measured in the same way first.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fewbit/fewbit/benchmarks/harness"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
)

const how = `The server under load, this process as the client over loopback on the same cores, BERT-base INT8, sequence 128, one text a request, binary tensors. ` +
	`Saturation: 16 clients in a closed loop, in turn with the same file in a session of this process; median of the pairwise ratios. ` +
	`Poisson and overload: an open loop, latency from the scheduled instant; overloaded requests carry the target as their deadline.`

const modelName = "bert"

func main() {
	o := options{}
	flag.StringVar(&o.serve, "serve", "bin/serve", "the server")
	flag.StringVar(&o.fewbit, "fewbit", "bin/fewbit", "the command line, to quantize the model with")
	flag.StringVar(&o.model, "model", "", "model to serve (default: BERT-base INT8 in .deps/bench, made when it is not there)")
	flag.StringVar(&o.results, "o", "benchmarks/results", "the folder that the results go into")
	flag.StringVar(&o.only, "only", "saturation,poisson,overload,cycles", "what to measure; poisson and overload need saturation; sides is what else the cores could do while requests wait")
	flag.IntVar(&o.cycles, "cycles", 1000, "how often a model is loaded and unloaded")
	flag.DurationVar(&o.target, "target", 0, "deadline of overloaded requests (default: 50 ms, or five times the session's p50 when that is more)")
	args := flag.String("args", "", "more arguments for the server")
	flag.Parse()
	o.args = strings.Fields(*args)
	if err := run(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

type options struct {
	serve, fewbit, model, results, only string
	cycles                              int
	target                              time.Duration
	args                                []string
}

func (o options) wants(what string) bool { return slices.Contains(strings.Split(o.only, ","), what) }

func run(ctx context.Context, o options) error {
	e, err := ort.New(ort.Config{})
	if err != nil {
		return err
	}
	device, err := e.Probe(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "fewbit-load")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.wants("saturation") {
		res := harness.NewResult("load", "The server under load", how, device.Version)
		if err := underLoad(ctx, o, e, res, dir); err != nil {
			return err
		}
		if err := res.Write(harness.Path(o.results, "load")); err != nil {
			return err
		}
	}
	if o.wants("sides") {
		if o.model == "" {
			if o.model, err = quantized(o.fewbit); err != nil {
				return err
			}
		}
		res := harness.NewResult("sides", "One run at a time or several", howSides, device.Version)
		res.Command = command("sides")
		if err := sides(ctx, o, e, res); err != nil {
			return err
		}
		if err := res.Write(harness.Path(o.results, "sides")); err != nil {
			return err
		}
	}
	if o.wants("cycles") {
		res := harness.NewResult("cycles", "Models that come and go", howCycles, device.Version)
		res.Command = command("cycles")
		if err := cycles(o, res, filepath.Join(dir, "cycles")); err != nil {
			return err
		}
		return res.Write(harness.Path(o.results, "cycles"))
	}
	return nil
}

// command measures one thing by itself.
func command(what string) string {
	return "FEWBIT_BENCH=" + harness.Mode() + " go run ./benchmarks/load -only " + what
}

// underLoad measures one server with the model, and the same file in a session.
func underLoad(ctx context.Context, o options, e *ort.Engine, res *harness.Result, dir string) error {
	if o.model == "" {
		var err error
		if o.model, err = quantized(o.fewbit); err != nil {
			return err
		}
	}
	session, err := e.OpenFile(ctx, o.model, engine.Options{})
	if err != nil {
		return err
	}
	defer session.Close()
	srv, err := harness.Start(o.serve, filepath.Join(dir, "data"), o.args...)
	if err != nil {
		return err
	}
	defer srv.Stop()
	if err := upload(srv, modelName, o.model); err != nil {
		return err
	}
	ask, err := newAsker(srv, session.Spec())
	if err != nil {
		return err
	}
	null, err := nullEndpoint(res, ask)
	if err != nil {
		return err
	}
	full, p50, err := saturation(ctx, res, ask, session)
	if err != nil {
		return err
	}
	target := o.target
	if target == 0 {
		target = max(50*time.Millisecond, 5*p50).Round(time.Millisecond)
	}
	if null > target/10 {
		harness.Say("too noisy for latencies: a request that does nothing has a p99 of %v", null)
	}
	if o.wants("poisson") {
		poisson(res, ask, full)
	}
	if o.wants("overload") {
		overload(res, ask, full, target)
	}
	return nil
}

// quantized returns BERT-base INT8, as benchmarks/bert_speed.py leaves it, or
// makes it.
func quantized(fewbit string) (string, error) {
	const source, calib, out = ".deps/models/bert-base/model.onnx", ".deps/data/bbc/calib.jsonl", ".deps/bench/bert-int8-load.onnx"
	for _, path := range []string{".deps/bench/bert-int8.onnx", out} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	if _, err := os.Stat(source); err != nil {
		return "", fmt.Errorf("%w; run make deps-bench", err)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return "", err
	}
	harness.Say("quantizing BERT-base")
	cmd := exec.Command(fewbit, "quantize", source, "-o", out, "--scheme", "int8", "--calib", calib, "--samples", "64", "--force", "--no-latency")
	cmd.Stderr = os.Stderr
	return out, cmd.Run()
}

// upload sends a model's file and waits until it is served.
func upload(srv *harness.Server, name, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := harness.Call(http.DefaultClient, http.MethodPut, srv.Base+"/models/"+name, "application/octet-stream", nil, f); err != nil {
		return err
	}
	return harness.Wait(srv.Base + "/v2/models/" + name + "/ready")
}

// errNoAnswer: nothing was answered, so that there is nothing to tell.
var errNoAnswer = errors.New("no request was answered")

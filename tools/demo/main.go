// Command demo is what `make run` shows: it starts the server, uploads the news
// classifier and its data, has it quantized, prints FP32 against INT8, and
// keeps serving until it is interrupted. It speaks only HTTP, as any client.
//
// A second run finds the quantized model in the data folder, skips the job and
// serves at once.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/fewbit/fewbit/internal/jobs"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/tools/drive"
)

const (
	modelName = "news"
	calibName = "news-calib"
	testName  = "news-test"
	// jobTimeout bounds the quantization job.
	jobTimeout = 20 * time.Minute
)

// modelFiles are what the classifier consists of, in upload order.
var modelFiles = []string{"model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "labels.txt"}

type config struct {
	serve, listen, dataDir, model, data string
	once                                bool
}

func main() {
	// The server asks the kernel to be told when the thread that started it
	// ends (Pdeathsig), so that thread must live as long as the program.
	runtime.LockOSThread()
	var c config
	flag.StringVar(&c.serve, "serve", "bin/serve", "the server to start")
	flag.StringVar(&c.listen, "listen", "127.0.0.1:8080", "address to serve on")
	flag.StringVar(&c.dataDir, "data-dir", "fewbit-data", "the server's folder")
	flag.StringVar(&c.model, "model", ".deps/models/news", "folder of the FP32 classifier")
	flag.StringVar(&c.data, "data", ".deps/data/bbc", "folder of calib.jsonl and test.jsonl")
	flag.BoolVar(&c.once, "once", false, "stop after the demonstration instead of serving on")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			return
		}
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, c config) error {
	stamp, err := fingerprint(c)
	if err != nil {
		return err
	}
	step("starting %s on %s (log: %s)", c.serve, c.listen, filepath.Join(c.dataDir, "serve.log"))
	srv, err := drive.Start(drive.Config{Program: c.serve, Listen: c.listen, DataDir: c.dataDir, Another: "make run LISTEN=127.0.0.1:8090"})
	if err != nil {
		return err
	}
	defer srv.Stop()
	api := drive.NewClient("http://" + srv.Addr)
	if err := srv.UntilReady(ctx, api); err != nil {
		return err
	}
	statePath := filepath.Join(c.dataDir, "demo.json")
	state := readState(statePath)
	if state == nil || state.Stamp != stamp || !api.Ready(ctx, modelName) {
		if state, err = quantize(ctx, api, c, stamp); err != nil {
			return srv.Explain(err)
		}
		if err := state.write(statePath); err != nil {
			return err
		}
	} else {
		step("model %q was quantized on %s, serving it", modelName, state.Finished.Format("2006-01-02 15:04"))
	}
	fmt.Println()
	if err := report.Text(os.Stdout, state.Report); err != nil {
		return err
	}
	fmt.Println()
	if err := showRequests(ctx, api); err != nil {
		return srv.Explain(err)
	}
	if c.once {
		return nil
	}
	step("serving on http://%s (console at /), Ctrl-C stops", c.listen)
	select {
	case <-ctx.Done():
		step("stopping")
		return nil
	case <-srv.Exited:
		return srv.Explain(errors.New("the server ended by itself"))
	}
}

// quantize uploads model and data, runs the job and returns what it found.
func quantize(ctx context.Context, api *drive.Client, c config, stamp string) (*state, error) {
	ctx, cancel := context.WithTimeout(ctx, jobTimeout)
	defer cancel()
	step("uploading the FP32 classifier (%s)", c.model)
	version, err := api.PutModel(ctx, modelName, c.model, modelFiles)
	if err != nil {
		return nil, err
	}
	for _, d := range []struct{ name, file string }{{calibName, "calib.jsonl"}, {testName, "test.jsonl"}} {
		step("uploading %s as data set %s", d.file, d.name)
		if err := api.PutDataset(ctx, d.name, filepath.Join(c.data, d.file)); err != nil {
			return nil, err
		}
	}
	step("POST /quantize: int8, calibrated on %s, judged on %s", calibName, testName)
	id, err := api.Submit(ctx, jobs.Spec{
		Model: modelName, Version: version, Scheme: "int8",
		Calibration: &jobs.Calibration{Dataset: calibName},
		Evaluation:  &jobs.Evaluation{Dataset: testName},
		MaxLoss:     0.01, SLOms: 50, Promote: true,
	})
	if err != nil {
		return nil, err
	}
	p := drive.NewProgress(os.Stdout)
	status, err := api.Follow(ctx, id, p.Show)
	p.Done()
	if err != nil {
		return nil, err
	}
	if status.Status != jobs.Succeeded {
		return nil, fmt.Errorf("job %s %s: %s", id, status.Status, status.Error)
	}
	rep, err := api.Report(ctx, status)
	if err != nil {
		return nil, err
	}
	return &state{Stamp: stamp, Finished: time.Now(), Report: *rep}, nil
}

// state remembers a finished demonstration beside the server's data.
type state struct {
	Stamp    string        `json:"stamp"`
	Finished time.Time     `json:"finished"`
	Report   report.Report `json:"report"`
}

func readState(path string) *state {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	s := &state{}
	if json.Unmarshal(b, s) != nil {
		return nil
	}
	return s
}

func (s *state) write(path string) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	tmp := path + ".part"
	if err := os.WriteFile(tmp, b, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

func step(f string, a ...any) { fmt.Printf("==> "+f+"\n", a...) }

// fingerprint identifies the model and data: another one is quantized anew.
func fingerprint(c config) (string, error) {
	h := sha256.New()
	for _, path := range []string{filepath.Join(c.model, "head.sha256"), filepath.Join(c.data, "calib.jsonl"), filepath.Join(c.data, "test.jsonl")} {
		b, err := os.ReadFile(path)
		if err != nil {
			return "", fmt.Errorf("%w; run make deps and make run", err)
		}
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

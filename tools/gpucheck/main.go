// Command gpucheck is what `make gpu-check` packs for a machine with a GPU. It runs
// the tests of the kernels, the device and the executor there, some of them under
// compute-sanitizer, then the benchmarks beside cuBLASLt and PyTorch where these are
// installed, watches the GPU by NVML meanwhile, and writes one JSON. It needs no
// network and stops at its budget, with what it has.
//
//	gpucheck [-dir BUNDLE] [-out gpu-check.json] [-budget 9m] [-only unit,bench]
//
// It exits 0 when every step passed, 1 when one did not, and 3 without a usable GPU.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/fewbit/fewbit/internal/engine/cuda/device"
	"github.com/fewbit/fewbit/internal/telemetry"
)

var version = "unknown" // set by the build

const noGPU = 3

// result is the JSON.
type result struct {
	Version    string          `json:"version"`
	Started    time.Time       `json:"started"`
	Seconds    float64         `json:"seconds"`
	OK         bool            `json:"ok"`
	Device     device.Info     `json:"device"`
	FreeBytes  int64           `json:"free_bytes"`
	CublasLt   string          `json:"cublaslt"` // its version, or why it is not used
	Before     []telemetry.GPU `json:"nvml_before"`
	After      []telemetry.GPU `json:"nvml_after"`
	NVMLError  string          `json:"nvml_error,omitempty"`
	Steps      []step          `json:"steps"`
	Benchmarks []benchmark     `json:"benchmarks"`
	// Peers are what peers.py said, by step.
	Peers map[string]json.RawMessage `json:"peers,omitempty"`
	// Goals are the figures that the version is to reach, as far as this run has
	// measured them.
	Goals []goal `json:"goals"`
}

func main() {
	dir := flag.String("dir", ".", "the unpacked bundle")
	out := flag.String("out", "gpu-check.json", "where the result goes")
	budget := flag.Duration("budget", 9*time.Minute, "stop after this time")
	only := flag.String("only", "", "run these kinds of steps: "+strings.Join(kinds, ","))
	flag.Parse()
	code, err := run(*dir, *out, *budget, *only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gpu-check:", err)
	}
	os.Exit(code)
}

func run(dir, out string, budget time.Duration, only string) (int, error) {
	wanted, err := parseKinds(only)
	if err != nil {
		return 2, err
	}
	r := &result{Version: version, Started: time.Now().UTC()}
	if err := describe(r); err != nil {
		return noGPU, fmt.Errorf("no GPU to check on: %w", err)
	}
	fmt.Printf("gpu-check %s on %s, driver for CUDA %d.%d\n", version, r.Device, r.Device.Driver/1000, r.Device.Driver%1000/10)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A little is kept back for the end.
	ctx, cancel := context.WithDeadline(ctx, r.Started.Add(budget-10*time.Second))
	defer cancel()

	sensors := telemetry.NewNVML(nvml.New())
	watch := func() watcher { return watcher{} }
	if err := sensors.Open(); err != nil {
		r.NVMLError = err.Error()
	} else {
		defer sensors.Close()
		watch = func() watcher { return watchGPU(sensors, r.Device.UUID) }
		r.Before, _ = sensors.Read()
	}
	models, err := os.MkdirTemp("", "gpu-check-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(models)
	all, err := plan(dir, models)
	if err != nil {
		return 1, err
	}
	r.OK = true
	for _, s := range all {
		if !wanted[s.Kind] {
			continue
		}
		s.run(ctx, watch)
		fmt.Println(s.line())
		r.OK = r.OK && s.Status != failed
		r.Benchmarks = append(r.Benchmarks, s.benchmarks...)
		if s.peers != nil {
			if r.Peers == nil {
				r.Peers = map[string]json.RawMessage{}
			}
			r.Peers[s.args[2]] = s.peers // gpu or cpu
		}
		r.Goals = goals(r.Benchmarks, r.Peers)
		r.Steps = append(r.Steps, *s)
		// After every step: what a machine that is taken away leaves is not nothing.
		if err := r.write(out, sensors); err != nil {
			return 1, err
		}
	}
	for _, g := range r.Goals {
		fmt.Println(g)
	}
	fmt.Printf("%s: %s\n", map[bool]string{true: "passed", false: "FAILED"}[r.OK], out)
	if !r.OK {
		return 1, nil
	}
	return 0, nil
}

// describe opens the device, which is the first check, and gives it back.
func describe(r *result) error {
	d, err := device.Open(0)
	if err != nil {
		return err
	}
	r.Device = d.Info()
	r.FreeBytes, _, err = d.MemInfo()
	r.CublasLt = cublasLt(d)
	return errors.Join(err, d.Close())
}

func (r *result) write(path string, sensors *telemetry.NVML) error {
	r.Seconds = time.Since(r.Started).Seconds()
	if r.NVMLError == "" {
		r.After, _ = sensors.Read()
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func parseKinds(only string) (map[string]bool, error) {
	wanted := map[string]bool{}
	names := kinds
	if only != "" {
		names = strings.Split(only, ",")
	}
	for _, n := range names {
		known := false
		for _, k := range kinds {
			known = known || k == n
		}
		if !known {
			return nil, fmt.Errorf("there are no steps of kind %q, only %s", n, strings.Join(kinds, ", "))
		}
		wanted[n] = true
	}
	return wanted, nil
}

package main

import (
	"context"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/telemetry"
)

const output = `=== RUN   TestA
--- PASS: TestA (0.01s)
    --- PASS: TestA/small (0.00s)
--- FAIL: TestB (0.01s)
    --- FAIL: TestB/m=1 (0.00s)
--- SKIP: TestC (0.00s)
goos: linux
BenchmarkGemmS8/4096x4096x4096-16         	     100	     91234 ns/op	      1506.5 TOPS
BenchmarkNothing-16
========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)
`

func TestRead(t *testing.T) {
	s := &step{Name: "cuda"}
	s.read(output)
	if s.Passed != 1 || !reflect.DeepEqual(s.Failed, []string{"TestB", "TestB/m=1"}) || !reflect.DeepEqual(s.Skipped, []string{"TestC"}) || s.Summary != "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)" {
		t.Errorf("%+v", s)
	}
	want := []benchmark{{Package: "cuda", Name: "GemmS8/4096x4096x4096", N: 100, Metrics: map[string]float64{"ns/op": 91234, "TOPS": 1506.5}}}
	if !reflect.DeepEqual(s.benchmarks, want) {
		t.Errorf("%+v", s.benchmarks)
	}
}

// bundle makes a bundle whose tests are shell scripts.
func bundle(t *testing.T, tests map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, script := range tests {
		path := filepath.Join(dir, "tests", name, "pkg.test")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPlan(t *testing.T) {
	t.Setenv("PATH", "")
	all, err := plan(bundle(t, map[string]string{"cuda": "", "internal/engine/cuda/device": ""}), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range all {
		got = append(got, s.Kind+" "+s.Name+" "+s.missing)
	}
	want := []string{"unit cuda ", "unit internal/engine/cuda/device ", "bench cuda ", "bench internal/engine/cuda/device ",
		"peers cuBLASLt and PyTorch no python3", "peers ONNX Runtime's calibrator no python3", "sanitize memcheck no compute-sanitizer", "sanitize racecheck no compute-sanitizer"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	if _, err := plan(t.TempDir(), ""); err == nil {
		t.Error("an empty folder is no bundle")
	}
}

func TestSteps(t *testing.T) {
	nobody := func() watcher { return watcher{} }
	for name, c := range map[string]struct {
		kind, script string
		limit        time.Duration
		status, why  string
	}{
		"passes":                        {unit, "echo '--- PASS: TestA (0s)'", time.Minute, passed, ""},
		"fails":                         {unit, "echo '--- FAIL: TestA (0s)'; exit 1", time.Minute, failed, "exit status 1"},
		"a failure with exit 0":         {unit, "echo '--- FAIL: TestA (0s)'", time.Minute, failed, ""},
		"hangs, with a child":           {unit, "sleep 60 & sleep 60", 300 * time.Millisecond, failed, "stopped after"},
		"sanitizer finds":               {sanitize, "echo '========= ERROR SUMMARY: 1 error'; exit 99", time.Minute, failed, "exit status 99"},
		"sanitizer is slow":             {sanitize, "echo '--- PASS: TestA (0s)'; sleep 60", 300 * time.Millisecond, passed, "stopped after"},
		"sanitizer is slow, and finds":  {sanitize, "echo '========= Invalid __global__ read of size 4 bytes'; sleep 60", 300 * time.Millisecond, failed, "stopped after"},
		"sanitizer refuses the machine": {sanitize, "echo '========= Error: Device not supported'; exit 1", time.Minute, skipped, "Device not supported"},
		"no PyTorch":                    {peers, "echo 'no PyTorch with CUDA: x'; exit 1", time.Minute, skipped, "no PyTorch"},
		"peers":                         {peers, `echo noise; echo '{"rows": []}'`, time.Minute, passed, ""},
		"peers without JSON":            {peers, "echo noise", time.Minute, failed, "no JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := bundle(t, map[string]string{"x": c.script})
			s := &step{Kind: c.kind, dir: dir, limit: c.limit, args: []string{filepath.Join(dir, "tests/x/pkg.test")}}
			start := time.Now()
			s.run(context.Background(), nobody)
			if s.Status != c.status || !strings.Contains(s.Why, c.why) || time.Since(start) > 30*time.Second {
				t.Errorf("%+v", s)
			}
			if (s.peers != nil) != (name == "peers") {
				t.Errorf("peers: %s", s.peers)
			}
		})
	}
	spent, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s := &step{Kind: unit, args: []string{"true"}}
	if s.run(spent, nobody); s.Status != skipped {
		t.Errorf("started with a second left: %+v", s)
	}
}

func TestReading(t *testing.T) {
	p := func(v float64) *float64 { return &v }
	var r reading
	r.add(&telemetry.GPU{PowerW: p(100), TemperatureC: p(40), ClockSMMHz: p(1900), Throttle: []string{"power cap"}})
	r.add(&telemetry.GPU{PowerW: p(300), TemperatureC: p(50), ClockSMMHz: p(1700), Throttle: []string{"power cap", "idle"}})
	want := reading{Samples: 2, PowerMeanW: 200, PowerMaxW: 300, TemperatureMaxC: 50, ClockMinMHz: 1700, ClockMaxMHz: 1900, Throttle: []string{"power cap", "idle"}}
	if !reflect.DeepEqual(r, want) {
		t.Errorf("%+v", r)
	}
	var none watcher
	if none.stop() != nil {
		t.Error("a reading of nothing")
	}
}

// Without a GPU it says so, writes nothing and exits with a code of its own.
func TestWithoutGPU(t *testing.T) {
	out := filepath.Join(t.TempDir(), "r.json")
	code, err := run(bundle(t, map[string]string{"cuda": ""}), out, time.Minute, "")
	if err == nil {
		t.Skip("there is a GPU here")
	}
	if code != noGPU || !strings.Contains(err.Error(), "no GPU to check on") {
		t.Errorf("%d, %v", code, err)
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a result without a GPU")
	}
	if code, err := run(".", out, time.Minute, "unit,nonsense"); code != 2 || err == nil {
		t.Errorf("%d, %v", code, err)
	}
}

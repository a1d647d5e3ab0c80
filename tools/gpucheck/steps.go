package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The kinds of steps, in the order in which they run: what tells most comes first.
const (
	unit     = "unit"
	bench    = "bench"
	peers    = "peers"
	sanitize = "sanitize"
)

var kinds = []string{unit, bench, peers, sanitize}

// How a step ended.
const (
	passed  = "passed"
	failed  = "failed"
	skipped = "skipped" // what it needs is not here, or the budget is spent
)

// step is one command and what came of it.
type step struct {
	Kind    string   `json:"kind"`
	Name    string   `json:"name"`
	Status  string   `json:"status"`
	Seconds float64  `json:"seconds"`
	Why     string   `json:"why,omitempty"` // failed or skipped
	Passed  int      `json:"tests_passed"`
	Failed  []string `json:"tests_failed,omitempty"`
	Skipped []string `json:"tests_skipped,omitempty"`
	Summary string   `json:"summary,omitempty"` // of the sanitizer
	Output  string   `json:"output,omitempty"`  // the end of it, where it failed
	GPU     *reading `json:"gpu,omitempty"`

	dir     string
	args    []string
	env     []string
	limit   time.Duration
	missing string // why it cannot run

	benchmarks []benchmark
	peers      json.RawMessage
}

// benchmark is one line of go test -bench.
type benchmark struct {
	Package string             `json:"package"`
	Name    string             `json:"name"`
	N       int64              `json:"n"`
	Metrics map[string]float64 `json:"metrics"` // by unit, "ns/op"
}

// Time limits of one command. Together they are more than the budget: a machine on
// which everything takes long does the first steps.
const (
	unitLimit     = 150 * time.Second
	benchLimit    = 120 * time.Second
	peersLimit    = 60 * time.Second
	toolLimit     = 45 * time.Second
	sanitizeLimit = 90 * time.Second
	maxOutput     = 8 << 10
)

// plan lists the steps for what the bundle in dir holds: tests/PACKAGE/pkg.test, each
// beside its testdata, and peers.py.
//
// models is a folder in which the benchmarks leave a model for the peers.
func plan(dir, models string) ([]*step, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	var tests []string
	err = filepath.WalkDir(filepath.Join(dir, "tests"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Name() == "pkg.test" {
			tests = append(tests, path)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(tests) == 0 {
		return nil, fmt.Errorf("%s holds no tests; this is not an unpacked bundle", dir)
	}
	slices.Sort(tests)
	env := []string{"FEWBIT_GPU_CHECK=1"}
	if models != "" {
		env = append(env, "FEWBIT_GPU_CHECK_MODELS="+models)
	}
	if libs, _ := filepath.Glob(filepath.Join(dir, "lib", "libonnxruntime.so*")); len(libs) == 1 {
		env = append(env, "FEWBIT_ORT_LIB="+libs[0])
	}
	name := func(path string) string {
		n, _ := filepath.Rel(filepath.Join(dir, "tests"), filepath.Dir(path))
		return n
	}
	var all []*step
	for _, t := range tests {
		all = append(all, &step{Kind: unit, Name: name(t), dir: filepath.Dir(t), env: env, limit: unitLimit,
			args: []string{t, "-test.v", "-test.timeout", unitLimit.String()}})
	}
	for _, t := range tests {
		all = append(all, &step{Kind: bench, Name: name(t), dir: filepath.Dir(t), env: env, limit: benchLimit,
			args: []string{t, "-test.run", "^$", "-test.bench", ".", "-test.benchtime", "200ms"}})
	}
	all = append(all, peersStep(dir, "cuBLASLt and PyTorch", peersLimit, "gpu"),
		peersStep(dir, "ONNX Runtime's calibrator", toolLimit, "cpu", filepath.Join(models, "bert-base.onnx")))
	for _, t := range tests {
		if name(t) == "cuda" { // the kernels themselves
			all = append(all, sanitizer(t, "memcheck"), sanitizer(t, "racecheck"))
		}
	}
	return all, nil
}

func peersStep(dir, name string, limit time.Duration, args ...string) *step {
	s := &step{Kind: peers, Name: name, dir: dir, limit: limit}
	python, err := exec.LookPath("python3")
	if err != nil {
		s.missing = "no python3"
		return s
	}
	s.args = append([]string{python, filepath.Join(dir, "peers.py")}, args...)
	return s
}

// sanitizer runs the kernels' tests on the small shapes of -test.short.
func sanitizer(test, tool string) *step {
	s := &step{Kind: sanitize, Name: tool, dir: filepath.Dir(test), limit: sanitizeLimit,
		// The sanitizer does not expect the signals by which Go stops goroutines.
		env: []string{"GODEBUG=asyncpreemptoff=1", "FEWBIT_GPU_CHECK=1"}}
	for _, program := range []string{"compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"} {
		if p, err := exec.LookPath(program); err == nil {
			s.args = []string{p, "--tool", tool, "--error-exitcode", "99", test, "-test.short", "-test.v"}
			return s
		}
	}
	s.missing = "no compute-sanitizer"
	return s
}

// sanitizerRefuses is said where the tool is installed and this machine does not let it work.
var sanitizerRefuses = regexp.MustCompile(`Device not supported|Unable to (?:attach|launch)|Failed to initialize`)

// sanitizerFinds begins each of its reports (compute-sanitizer's manual, the output of its tools).
var sanitizerFinds = regexp.MustCompile(`(?m)^========= (?:Invalid|Misaligned|Out-of-range|Barrier error|Program hit|Error: (?:Race|Potential)|Warning: Race)`)

func (s *step) run(ctx context.Context, watch func() watcher) {
	if s.missing != "" {
		s.Status, s.Why = skipped, s.missing
		return
	}
	const least = 5 * time.Second
	if end, ok := ctx.Deadline(); ok && time.Until(end) < least {
		s.Status, s.Why = skipped, "the time is spent"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, s.limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.args[0], s.args[1:]...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), s.env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// The sanitizer starts the test as its child: end both.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	gpu := watch()
	start := time.Now()
	err := cmd.Run()
	s.Seconds = time.Since(start).Seconds()
	s.GPU = gpu.stop()
	s.read(out.String())
	switch {
	case err == nil && len(s.Failed) == 0:
		s.Status = passed
		if s.Kind == peers {
			s.readPeers(out.Bytes())
		}
	case s.Kind == peers, s.Kind == sanitize && sanitizerRefuses.Match(out.Bytes()):
		// Not a fault of what is checked.
		s.Status, s.Why = skipped, lastLine(out.String())
	case ctx.Err() != nil && s.Kind == sanitize && len(s.Failed) == 0 && !sanitizerFinds.Match(out.Bytes()):
		// It is slow: what it has seen was in order.
		s.Status, s.Why = passed, fmt.Sprintf("stopped after %.0f s", s.Seconds)
	default:
		s.Status, s.Output = failed, tail(out.String())
		s.Why = fmt.Sprint(err)
		if ctx.Err() != nil {
			s.Why = fmt.Sprintf("stopped after %.0f s", s.Seconds)
		}
	}
}

var (
	testLine    = regexp.MustCompile(`^(\s*)--- (PASS|FAIL|SKIP): (\S+)`)
	benchLine   = regexp.MustCompile(`^(Benchmark\S+?)(?:-\d+)?\s+(\d+)\s+(.*)$`)
	summaryLine = regexp.MustCompile(`^========= ((?:ERROR|RACECHECK) SUMMARY: .*)$`)
)

// read takes tests, benchmarks and the sanitizer's summary out of the output.
func (s *step) read(out string) {
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		if m := testLine.FindStringSubmatch(line); m != nil {
			switch {
			case m[2] == "FAIL":
				s.Failed = append(s.Failed, m[3])
			case m[2] == "SKIP":
				s.Skipped = append(s.Skipped, m[3])
			case m[1] == "":
				s.Passed++
			}
		} else if m := summaryLine.FindStringSubmatch(line); m != nil {
			s.Summary = m[1]
		} else if m := benchLine.FindStringSubmatch(line); m != nil {
			if b, ok := parseBenchmark(s.Name, m); ok {
				s.benchmarks = append(s.benchmarks, b)
			}
		}
	}
}

// parseBenchmark reads "NAME N VALUE UNIT VALUE UNIT...".
func parseBenchmark(pkg string, m []string) (benchmark, bool) {
	b := benchmark{Package: pkg, Name: strings.TrimPrefix(m[1], "Benchmark"), Metrics: map[string]float64{}}
	var err error
	if b.N, err = strconv.ParseInt(m[2], 10, 64); err != nil {
		return b, false
	}
	f := strings.Fields(m[3])
	for i := 0; i+1 < len(f); i += 2 {
		v, err := strconv.ParseFloat(f[i], 64)
		if err != nil {
			return b, false
		}
		b.Metrics[f[i+1]] = v
	}
	return b, len(b.Metrics) > 0
}

// readPeers keeps the last line, which is the JSON.
func (s *step) readPeers(out []byte) {
	last := []byte(lastLine(string(out)))
	if !json.Valid(last) {
		s.Status, s.Why = failed, "peers.py printed no JSON"
		return
	}
	s.peers = last
}

// line is what a person reads while it runs.
func (s *step) line() string {
	text := fmt.Sprintf("%-8s %-28s %-7s %6.1f s", s.Kind, s.Name, s.Status, s.Seconds)
	if n := len(s.Failed) + s.Passed; n > 0 {
		text += fmt.Sprintf("  %d passed, %d failed, %d skipped", s.Passed, len(s.Failed), len(s.Skipped))
	}
	if n := len(s.benchmarks); n > 0 {
		text += fmt.Sprintf("  %d benchmarks", n)
	}
	for _, more := range []string{s.Summary, s.Why} {
		if more != "" {
			text += "  " + more
		}
	}
	if s.Output != "" {
		text += "\n" + s.Output
	}
	return text
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

func tail(out string) string {
	if len(out) > maxOutput {
		out = "..." + out[len(out)-maxOutput:]
	}
	return strings.ToValidUTF8(out, "?")
}

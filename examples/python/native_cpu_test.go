// Package python tests the examples in Python.
package python

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/engine/native"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
)

// interpreter has onnxruntime and numpy (make deps-bench).
const interpreter = "../../.deps/venv-peers/bin/python"

// leastCosine is what 8 bits keep of a model with random weights.
const leastCosine = 0.99

func TestNativeInPython(t *testing.T) {
	if _, err := os.Stat(interpreter); err != nil {
		t.Skip("needs .deps/venv-peers (make deps-bench)")
	}
	e, err := ort.New(ort.Config{})
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	if ok, why := e.Int8(); !ok {
		t.Skipf("needs bin/libfewbit_cpu.so (make build) and a processor that it has kernels for: %s", why)
	}
	float := opstest.TinyBERT.Model()
	source, packed := opstest.Save(t, float), filepath.Join(t.TempDir(), "packed.onnx")
	if _, err := native.New(e, "").Pack(context.Background(), opstest.Save(t, opstest.Native(t, float, quant.INT8Dynamic)), packed); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) (string, error) {
		out, err := exec.Command(interpreter, append([]string{"native_cpu.py", packed, "--seq", "9", "--runs", "2"}, args...)...).CombinedOutput()
		return string(out), err
	}
	out, err := run("--library", e.Kernels().Path, "--vs", source)
	m := regexp.MustCompile(`(?m)^cosine (\S+)$`).FindStringSubmatch(out)
	if err != nil || m == nil {
		t.Fatalf("%v: %s", err, out)
	}
	if cosine, err := strconv.ParseFloat(m[1], 64); err != nil || cosine < leastCosine {
		t.Errorf("cosine %s to the float model, want %v", m[1], leastCosine)
	}
	// Without the library the error names what is missing, in one line.
	out, err = run("--library", "")
	if err == nil || !strings.Contains(out, "fewbit:") || strings.Count(strings.TrimSpace(out), "\n") != 0 {
		t.Errorf("without the library: %v: %s", err, out)
	}
}

//go:build cuda && cudaemu

package cuda

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// withoutEnv is FILE:LINE of the barrier that the tests of this process run without.
const withoutEnv = "FEWBIT_EMULATE_WITHOUT"

func prepare() {
	file, text, _ := strings.Cut(os.Getenv(withoutEnv), ":")
	if line, err := strconv.Atoi(text); err == nil {
		leaveOut(file, line)
	}
}

// barrierTests are the tests that meet the barriers of a source.
var barrierTests = map[string]string{
	"attention.cu":       "^TestAttention$",
	"attention.cuh":      "^TestAttention$",
	"common.cuh":         "^Test(LayerNorm|Softmax)$",
	"conv.cuh":           "^TestConvS8(Configs|Epilogues|Picked)$",
	"conv_depthwise.cuh": "^TestConvS8",
	"conv_float.cu":      "^TestConvFloat$",
	"conv_float.cuh":     "^TestConvFloat$",
	"epilogue.cuh":       "^TestGemmFloat$",
	"gemm_float.cu":      "^TestGemmFloat$",
	"gemm_float.cuh":     "^TestGemmFloat$",
	"gemm_s8.cuh":        "^TestGemmS8(Configs|Epilogues|Picked)$|OtherDevices$",
	"gemm_s8_sm90.cuh":   "^TestGemmS8",
	"gemm_w4.cuh":        "^TestGemmW4",
	"histogram.cu":       "^Test(Histogram|Range|ChannelMax|KL)",
	"layout.cu":          "^Test(Copy|ImageLayouts)$",
	"pool.cu":            "^Test(PoolF32|PoolS8|Means)$",
	"reduce.cu":          "^TestReduce$",
	"splitk.cuh":         "^TestGemmS8",
}

// unseen are barriers, by their comments, whose absence emulation cannot show, and why.
var unseen = map[string]string{
	"everybody's part is written before it is counted": "blocks run one after another",
	"the last fragments are read: the stages are free": "what a late warp would read there is of no use",
}

var barrier = regexp.MustCompile(`__syncthreads\(\)|__syncwarp\(\)|fb_cp_wait<[^;]*>\(\)`)

// TestEveryBarrierIsNeeded: without any one of the kernels' barriers and waits for
// copies, some test fails on some schedule. It runs this program once for each.
func TestEveryBarrierIsNeeded(t *testing.T) {
	if testing.Short() {
		t.Skip("runs other tests once for each barrier")
	}
	program, err := os.Executable()
	ok(t, err)
	entries, err := Sources.ReadDir(".")
	ok(t, err)
	count := 0
	for _, e := range entries {
		if e.IsDir() || e.Name() == "fb_ptx.cuh" { // which defines them
			continue
		}
		source, err := Sources.ReadFile(e.Name())
		ok(t, err)
		for i, line := range strings.Split(string(source), "\n") {
			code, comment, _ := strings.Cut(line, "//")
			if !barrier.MatchString(code) || unseen[strings.TrimSpace(comment)] != "" {
				continue
			}
			count++
			tests := barrierTests[e.Name()]
			if tests == "" {
				t.Errorf("%s has barriers: name the tests that meet them in barrierTests", e.Name())
				continue
			}
			at := fmt.Sprintf("%s:%d", e.Name(), i+1)
			t.Run(at, func(t *testing.T) {
				t.Parallel()
				c := exec.Command(program, "-test.run", tests, "-test.failfast", "-test.timeout", "2m")
				c.Env = append(os.Environ(), withoutEnv+"="+at)
				if out, err := c.CombinedOutput(); err == nil {
					t.Errorf("%s passes without %q", tests, strings.TrimSpace(code))
				} else if !strings.Contains(string(out), "--- FAIL") {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
	}
	if count < 50 {
		t.Errorf("%d barriers were found in the sources", count)
	}
}

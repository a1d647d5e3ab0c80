package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/engine/ort"
	"github.com/fewbit/fewbit/internal/eval"
)

// row is one line of the README's table; see benchmarks/common.py.
type row struct {
	What    string   `json:"what"`
	Ours    string   `json:"ours"`
	Peer    string   `json:"peer"`
	Ratio   *float64 `json:"ratio"`
	Bar     string   `json:"bar"`
	Holds   *bool    `json:"holds"`
	Details any      `json:"details"`
}

const how = `Server overhead: one client, one connection, loopback, the small model 64 -> 256 -> 8 at batch 1; the same file in a session of this process. The three are called in turn; the client's own cost counts as the server's.`

func writeResult(path string, e *ort.Engine, l *eval.Latency, loadBefore float64) error {
	here, binary, asJSON := l.Candidates[0], l.Candidates[1], l.Candidates[2]
	line := func(what string, c eval.LatencyStats, judged bool) row {
		added := c.P50MS - here.P50MS
		r := row{What: "server overhead, " + what, Ours: fmt.Sprintf("p50 +%.3f ms", added), Peer: fmt.Sprintf("in process: p50 %.3f ms", here.P50MS),
			Details: map[string]any{"in_process": plain(here), "over_http": plain(c), "added_p50_ms": added}}
		if judged {
			holds := added <= barMS
			r.Bar, r.Holds = fmt.Sprintf("<= %.1f ms", barMS), &holds
		}
		fmt.Fprintf(os.Stderr, "bench: %s: %s | %s\n", r.What, r.Ours, r.Peer)
		return r
	}
	device, err := e.Probe(context.Background())
	if err != nil {
		return err
	}
	loadAfter, _ := loadAverage()
	mode := "quick"
	if os.Getenv("FEWBIT_BENCH") == "full" {
		mode = "full"
	}
	b, err := json.MarshalIndent(map[string]any{
		"name": "overhead", "title": "Server overhead", "how": how, "mode": mode,
		"rows":     []row{line("binary tensors", binary, true), line("JSON tensors", asJSON, true)},
		"machine":  map[string]any{"cores": engine.AvailableCPUs(), "cpu": cpuName(), "system": runtime.GOOS + "/" + runtime.GOARCH},
		"versions": map[string]string{"onnxruntime": device.Version, "go": runtime.Version()},
		"commit":   git("rev-parse", "HEAD"), "changed_files": len(strings.Fields(git("status", "--porcelain"))) / 2,
		"noise": map[string]any{"load1_before": loadBefore, "load1_after": loadAfter, "stolen_share": l.Noise.Stolen},
		"when":  time.Now().UTC().Format(time.RFC3339),
	}, "", " ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".part"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// plain drops the curve, which a committed result does not need.
func plain(s eval.LatencyStats) eval.LatencyStats {
	s.CurveMS = nil
	return s
}

func cpuName() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for _, l := range strings.Split(string(b), "\n") {
		if name, ok := strings.CutPrefix(l, "model name"); ok {
			return strings.TrimLeft(name, "\t :")
		}
	}
	return "unknown CPU"
}

func git(args ...string) string {
	b, err := exec.Command("git", args...).Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

package doccheck

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

// promises are the measured lines of the first version and the rows of the
// benchmarks that show them: those of the result whose text begins like row.
var promises = []struct{ text, bar, result, row string }{
	{"INT8 BERT-base, sequence 128, batch 1, 2 threads, against ONNX Runtime FP32, the two cores sharing a cache", "2.8 times as fast", "bert_speed", "BERT-base INT8 speed, cores close"},
	{"the same, the two cores far apart", "2.8 times as fast", "bert_speed", "BERT-base INT8 speed, cores far apart"},
	{"the same, p50 on an idle pair of AVX-512-VNNI cores", "below 50 ms", "bert_speed", "BERT-base INT8 latency, cores close"},
	{"the same, the two cores far apart", "below 50 ms", "bert_speed", "BERT-base INT8 latency, cores far apart"},
	{"calibration of BERT-base, time against onnxruntime's entropy at its 128 bins", "a third", "calibration", "calibration time, * samples, against 128 bins"},
	{"the same at 2048 bins", "a tenth", "calibration", "calibration time, * samples, against 2048 bins"},
	{"the same, peak memory, at 128 bins", "a fifth", "calibration", "calibration peak memory, against 128 bins"},
	{"the same, peak memory, at 2048 bins", "a fifth", "calibration", "calibration peak memory, against 2048 bins"},
	{"peak memory with eight times the samples", "within 5 %", "calibration", "calibration peak memory, * against * samples"},
	{"all-MiniLM-L6-v2, 200 sentences, cosine with smoothing, the default", "mean 0.997", "fidelity", "cosine, MiniLM plain file, default"},
	{"the same without smoothing", "mean 0.993, minimum 0.978", "fidelity", "cosine, MiniLM plain file, static, no smoothing"},
	{"the same with dynamic ranges", "mean 0.993, minimum 0.978", "fidelity", "cosine, MiniLM plain file, int8-dynamic"},
	{"the fused file, the default", "mean 0.997", "fidelity", "cosine, MiniLM fused file, default"},
	{"EfficientNet-lite0, top-1 agreement with FP32", "above onnxruntime's per-channel Min-Max", "vision", "EfficientNet-lite0 top-1 agreement"},
	{"news classifier, accuracy on 1,000 texts", "within 0.5 points of FP32", "news", "news accuracy"},
	{"server at concurrency 1 over loopback, p50 against the same session in process, binary tensors", "0.4 ms more at most", "overhead", "server overhead, binary"},
}

const (
	promisesBegin = "<!-- promises -->"
	promisesEnd   = "<!-- /promises -->"
)

type resultRow struct {
	What  string   `json:"what"`
	Ours  string   `json:"ours"`
	Peer  string   `json:"peer"`
	Ratio *float64 `json:"ratio"`
	Holds *bool    `json:"holds"`
}

// rowsOf returns the rows of one result that begin with the pattern (path.Match),
// nil when there is none.
func rowsOf(t *testing.T, name, pattern string) (rows []resultRow) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "benchmarks/results", name+".json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Rows []resultRow `json:"rows"`
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	for _, row := range r.Rows {
		if ok, err := path.Match(pattern+"*", row.What); err != nil {
			t.Fatal(err)
		} else if ok {
			rows = append(rows, row)
		}
	}
	return rows
}

func promiseTable(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| promise | bar | measured | |\n|---|---|---|---|\n")
	for _, p := range promises {
		rows := rowsOf(t, p.result, p.row)
		if len(rows) > 1 {
			t.Errorf("promise %q: %d rows of %s.json begin with %q, expected one", p.text, len(rows), p.result, p.row)
		}
		if rows == nil {
			fmt.Fprintf(&b, "| %s | %s | not measured | |\n", p.text, p.bar)
		}
		for _, r := range rows {
			verdict := ""
			if r.Holds != nil {
				verdict = map[bool]string{true: "holds", false: "**missed**"}[*r.Holds]
			}
			shown := r.Ours
			if r.Peer != "" {
				shown += "; " + r.Peer
			}
			if r.Ratio != nil {
				shown += fmt.Sprintf("; %.2fx", *r.Ratio)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", p.text, p.bar, strings.ReplaceAll(shown, "|", `\|`), verdict)
		}
	}
	return b.String()
}

// TestPromises: docs/roadmap.md shows what the committed results say.
func TestPromises(t *testing.T) {
	const file = root + "/docs/roadmap.md"
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(old), promisesBegin)
	_, tail, ok2 := strings.Cut(rest, promisesEnd)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no markers %s ... %s", file, promisesBegin, promisesEnd)
	}
	text := head + promisesBegin + "\n" + promiseTable(t) + promisesEnd + tail
	if text == string(old) {
		return
	}
	if !*update {
		t.Fatal("docs/roadmap.md does not show benchmarks/results; run go test ./tools/doccheck -update")
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

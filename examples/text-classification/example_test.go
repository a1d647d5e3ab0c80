package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/tools/drive/drivetest"
)

const root = "../.."

// short is the scenario with the small encoder and the news texts, which make
// deps fetches, and counts that take seconds.
func short(t *testing.T, out io.Writer) config {
	t.Helper()
	c := config{
		serve: filepath.Join(t.TempDir(), "serve"), dir: filepath.Join(t.TempDir(), "run"),
		model: root + "/.deps/models/news", live: root + "/.deps/data/bbc/train.jsonl", test: root + "/.deps/data/bbc/test.jsonl",
		out: out, rule: "head/logits=fp16", traffic: 24, rate: 60, samples: 8, gate: 16, held: 24,
		batches: []int{1, 2}, lengths: []int{16}, rounds: 6, cell: 2 * time.Second, rates: []float64{5, 10}, load: time.Second,
		force: true, targetMS: 50,
	}
	for _, f := range []string{c.model + "/model.onnx", c.live, c.test} {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("%s is missing: make deps, then go run ./tools/newsmodel", strings.TrimPrefix(f, root+"/"))
		}
	}
	drivetest.Programs(t, filepath.Dir(c.serve), "serve")
	return c
}

// TestShortForm runs the whole scenario: it is interrupted while the job is at
// work, goes on without repeating what was done, and a third run measures nothing.
func TestShortForm(t *testing.T) {
	if testing.Short() {
		t.Skip("short: this quantizes a real encoder")
	}
	runtime.LockOSThread() // the server ends with the thread that started it
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	first, stop := context.WithCancel(ctx)
	out := &drivetest.StopAt{Text: "running", Stop: stop}
	c := short(t, out)
	if err := run(first, c, false); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted at the job: %v\n%s", err, out)
	}
	if first.Err() == nil {
		t.Fatalf("nothing interrupted it:\n%s", out)
	}
	var second bytes.Buffer
	c.out, c.result, c.page = &second, filepath.Join(c.dir, "result.json"), filepath.Join(c.dir, "page.md")
	if err := os.WriteFile(c.page, []byte("# page\n<!-- output --><!-- /output -->\nend\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(ctx, c, false); err != nil {
		t.Fatalf("%v\n%s", err, &second)
	}
	for _, step := range []string{"uploading the FP32", "users ask", "POST /quantize"} {
		if !strings.Contains(second.String(), step) || !strings.Contains(lineWith(second.String(), step), "kept from") {
			t.Errorf("%q was not kept:\n%s", step, &second)
		}
	}
	o, err := readOutcome(c.result)
	if err != nil {
		t.Fatal(err)
	}
	if o.Accuracy.N != c.held || o.Accuracy.Paired.N() != c.held || o.Accuracy.Agree < c.held-3 || o.Accuracy.Paired.Quant().Value < 0.8 {
		t.Errorf("accuracy %+v", o.Accuracy)
	}
	if o.Captured.Samples < c.samples || o.Job.Version == o.Float || o.Job.Report.Calibration == nil || o.Job.Report.Calibration.Samples != int64(c.samples) {
		t.Errorf("captured %+v, version %q after %q, calibration %+v", o.Captured, o.Job.Version, o.Float, o.Job.Report.Calibration)
	}
	if o.Job.Report.Recipe.Scheme == "" || len(o.Latency.Cells) != 2 || len(o.Load.INT8) == 0 || o.Load.INT8[0].Ms.Answered == 0 {
		t.Errorf("recipe %+v, %d cells, loads %+v", o.Job.Report.Recipe, len(o.Latency.Cells), o.Load.INT8)
	}
	page, err := os.ReadFile(c.page)
	if err != nil || !strings.Contains(string(page), strings.TrimSpace(o.text())) || !strings.HasSuffix(string(page), "\nend\n") {
		t.Errorf("%v, page:\n%s", err, page)
	}
	var third bytes.Buffer
	c.out = &third
	if err := run(ctx, c, false); err != nil || strings.Count(third.String(), "kept from") != 8 {
		t.Errorf("%v, the third run:\n%s", err, &third)
	}
}

func lineWith(text, part string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, part) {
			return line
		}
	}
	return ""
}

// TestMissingData: one line says what is missing and what makes it.
func TestMissingData(t *testing.T) {
	good := t.TempDir()
	for name, text := range map[string]string{"model.onnx": "x", "tokenizer.json": "{}", "tokenizer_config.json": "{}", "labels.txt": "no\nyes\n",
		"live.jsonl": "{\"text\":\"a\",\"label\":\"no\"}\n{\"text\":\"b\",\"label\":\"yes\"}\n", "test.jsonl": "{\"text\":\"c\",\"label\":\"no\"}\n", "serve": "x",
		"bad.jsonl": "{\"text\":\"a\"\n", "empty.jsonl": "", "other.jsonl": "{\"text\":\"a\",\"label\":\"maybe\"}\n"} {
		if err := os.WriteFile(filepath.Join(good, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	in := func(name string) string { return filepath.Join(good, name) }
	base := config{serve: in("serve"), dir: in("run"), model: good, live: in("live.jsonl"), test: in("test.jsonl"), held: 10, gate: 1}
	if _, err := check(base); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name, want string
		edit       func(*config)
	}{
		{"no model", "model.onnx is missing in", func(c *config) { c.model = filepath.Join(good, "none") }},
		{"no texts", "none.jsonl is missing; run examples/text-classification/run.sh", func(c *config) { c.test = in("none.jsonl") }},
		{"a cut line", "line 1: expected", func(c *config) { c.live = in("bad.jsonl") }},
		{"no lines", "is empty", func(c *config) { c.live = in("empty.jsonl") }},
		{"another label", `"maybe" of a text is none of the model's [no yes]`, func(c *config) { c.test = in("other.jsonl") }},
		{"too few for the gate", "more than 2 are needed", func(c *config) { c.gate = 2 }},
		{"no server", "run make build", func(c *config) { c.serve = in("none") }},
	} {
		c := base
		tc.edit(&c)
		if _, err := check(c); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", tc.name, err, tc.want)
		}
	}
}

// TestPage: the walk-through shows what the committed result says.
func TestPage(t *testing.T) {
	drivetest.Page(t, "example_text.json", "example-text", func(path string) (string, error) {
		o, err := readOutcome(path)
		if err != nil {
			return "", err
		}
		return o.text(), nil
	})
}

// TestHighest: the rate that holds is the last before the first that does not.
func TestHighest(t *testing.T) {
	o := &outcome{TargetMS: 50}
	for i, p99 := range []float64{20, 40, 60, 30} {
		l := loaded{Rate: float64(10 * (i + 1))}
		l.Ms.Answered, l.Ms.P99MS = 100, p99
		o.Load.INT8 = append(o.Load.INT8, l)
	}
	best, missed := o.highest()
	if best == nil || best.Rate != 20 || missed == nil || missed.Rate != 30 {
		t.Errorf("highest %+v, missed %+v", best, missed)
	}
	o.Load.INT8[0].Ms.Refused = 1
	if best, missed := o.highest(); best != nil || missed.Rate != 10 {
		t.Errorf("refused requests: highest %+v, missed %+v", best, missed)
	}
	if text := fmt.Sprint(o.text()); !strings.Contains(text, "no rate was within the target") {
		t.Errorf("text:\n%s", text)
	}
}

package app

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDocs runs the shell lines of docs/http.md, in order, against a server.
func TestDocs(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "python3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	page, err := os.ReadFile(filepath.Join(root, "docs/http.md"))
	if err != nil {
		t.Fatal(err)
	}
	key := keyFile(t, 'd')
	s := start(t, "", func(c *Config) { c.CaptureKey = key })
	script := "set -euo pipefail\ncurl() { command curl --fail-with-body --show-error --max-time 120 \"$@\"; echo; }\n"
	blocks := 0
	for _, rest := range strings.Split(string(page), "```sh\n")[1:] {
		block, _, _ := strings.Cut(rest, "```")
		script += block
		blocks++
	}
	if blocks < 8 || strings.Count(script, "localhost:8080") < 20 {
		t.Fatalf("found %d blocks in docs/http.md", blocks)
	}
	script = strings.ReplaceAll(script, "localhost:8080", strings.TrimPrefix(s.base, "http://"))
	dir := t.TempDir()
	for name, b := range map[string][]byte{
		"model.onnx": onnxBytes(t, textGraph()), "tokenizer.json": tokenizer(t), "labels.txt": []byte(strings.Join(topicNames, "\n")),
		"calib.jsonl": texts(1, 40), "test.jsonl": texts(2, 40),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"version":"1"`, `"status":"succeeded"`, `"label":`, `"outputs":[{`, `nv_inference_request_success`, `"promoted":true`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %s:\n%s", want, out)
		}
	}
	for _, name := range []string{"report.json", "report.html"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Size() < 1000 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine/ort"
)

// TestSecurityDoc runs the shell lines of docs/security.md, in order, with this
// program and the ports of the page replaced by free ones.
func TestSecurityDoc(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"bash", "curl", "openssl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	lib, err := ort.FindLibrary("")
	if err != nil {
		t.Skipf("needs ONNX Runtime (make deps): %v", err)
	}
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -euo pipefail\n" +
		"curl() { command curl --fail-with-body --show-error --max-time 60 \"$@\"; local rc=$?; echo; return $rc; }\n" +
		"trap 'kill $(jobs -p); wait' EXIT\n"
	blocks := 0
	for _, rest := range strings.Split(string(page), "```sh\n")[1:] {
		block, _, _ := strings.Cut(rest, "```")
		script += block
		blocks++
	}
	if blocks < 6 {
		t.Fatalf("found %d blocks", blocks)
	}
	for _, port := range []string{"8080", "8082", "8443", "8444"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		script = strings.ReplaceAll(script, "localhost:"+port, fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port))
		script = strings.ReplaceAll(script, "127.0.0.1:"+port, l.Addr().String())
		if port == "8080" {
			script = strings.ReplaceAll(script, "--data-dir data ", fmt.Sprintf("--listen %s --grpc-listen '' --data-dir data ", l.Addr()))
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "bin", "fewbit")); err != nil { // see testscript.Main
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(dir, "bin")+":"+os.Getenv("PATH"), ort.EnvLibrary+"="+lib)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"admin  ops", "infer  shop", `{"models":[]}`, `{"jobs":[]}`, "ccess-Control-Allow-Origin: https://app.example.org", `"name":"fewbit"`, `"who":"ops"`, `"path":"/datasets/d","status":201`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the output lacks %s:\n%s", want, out)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "heap.pprof")); err != nil || st.Size() < 100 {
		t.Errorf("heap.pprof: %v", err)
	}
}

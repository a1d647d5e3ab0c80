package app

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/access"
)

// TestKeys: beyond loopback the admin routes are off without keys; with keys
// they want one everywhere, and the file takes effect while the server runs.
func TestKeys(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	key, err := access.Add(file, "ops", access.Admin, "")
	if err != nil {
		t.Fatal(err)
	}
	s := start(t, "", func(c *Config) { c.Keys = file })
	s.refused(t, s.do("GET", "/models", nil), 401, "key")
	s.do("GET", "/v2", nil).into(t, 200, nil)
	s.key = key
	s.do("GET", "/models", nil).into(t, 200, nil)

	// A key for inference closes the rest, at once by SIGHUP.
	shop, err := access.Add(file, "shop", access.Infer, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually := func(what string, status int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			a := s.do("GET", "/v2/models", nil)
			if a.status == status {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v, want %d", what, a, status)
			}
		}
	}
	s.key = ""
	eventually("without a key", 401)
	s.key = shop
	eventually("with the new key", 200)
	s.refused(t, s.do("GET", "/models", nil), 403, "shop", "infer")
	// Taken back, which the server sees by itself; a broken file changes nothing.
	if err := access.Remove(file, "shop"); err != nil {
		t.Fatal(err)
	}
	eventually("with a key that was taken back", 401)
	if err := os.WriteFile(file, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.guards.keys.Reload(); err == nil {
		t.Error("a broken file was read")
	}
	s.key = key
	s.do("GET", "/models", nil).into(t, 200, nil)

	open := exposed(t)
	open.refused(t, open.do("PUT", "/models/m", mlp(t)), 403, "--keys")
	open.refused(t, open.do("POST", "/quantize", longJob()), 403, "--keys")
	open.do("GET", "/v2/health/ready", nil).into(t, 200, nil)
}

// Without keys and certificates there is nothing to follow.
func TestFollowWithoutFiles(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { (&guards{}).follow(ctx); close(done) }()
	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("it does not end with its context")
	}
}

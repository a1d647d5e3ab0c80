package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A disk that is full when a job comes and when another ends, and has room
// again later.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Skipf("cannot mount a small tmpfs: %v; run the tests as root to have this one", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	gate := make(chan struct{})
	q := open(t, Options{Dir: filepath.Join(dir, "jobs"), Runner: func(_ context.Context, _ string, s Spec, _ func(string, float64)) (json.RawMessage, error) {
		if s.Model == "long" {
			<-gate
		}
		return json.RawMessage(`"done"`), nil
	}})
	before := submit(t, q, Spec{Model: "before"})
	await(t, q, before, final)
	long := submit(t, q, Spec{Model: "long"})
	await(t, q, long, running)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 32<<20), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	if _, err := q.Submit(t.Context(), Spec{Model: "now"}); !errors.Is(err, ErrNoSpace) || strings.Contains(err.Error(), dir) {
		t.Errorf("with a full disk: %v", err)
	}
	if s, err := q.Get(t.Context(), before); err != nil || s.Status != Succeeded {
		t.Errorf("what was stored before: %+v, %v", s, err)
	}
	// Past the guard: what happens when the disk fills up between guard and write.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for range 100 {
		if err := q.store.create(ctx, record{Status: Status{ID: newID(""), Status: Failed, Error: strings.Repeat("x", 60_000)}}); err != nil {
			break
		}
	}
	if ctx.Err() == nil {
		t.Error("the disk is not full")
	}
	close(gate)
	time.Sleep(50 * time.Millisecond)
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	after := submit(t, q, Spec{Model: "after"})
	for _, id := range []string{long, after} {
		if s := await(t, q, id, final); s.Status != Succeeded || string(s.Result) != `"done"` || s.Attempts != 1 {
			t.Errorf("with room again: %+v", s)
		}
	}
	if s, err := q.Get(t.Context(), before); err != nil || string(s.Result) != `"done"` {
		t.Errorf("what was stored before: %+v, %v", s, err)
	}
}

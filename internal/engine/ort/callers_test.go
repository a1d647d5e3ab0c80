package ort

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// onThreads makes the next runs of s long ones.
func onThreads(s *Session) { s.took.Store(int64(time.Hour)) }

// callerThreads counts the threads of callers.c, -1 where that cannot be seen.
func callerThreads(t *testing.T) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return -1
	}
	n := 0
	for _, task := range tasks {
		if name, err := os.ReadFile("/proc/self/task/" + task.Name() + "/comm"); err == nil && strings.TrimSpace(string(name)) == "fewbit-run" {
			n++
		}
	}
	return n
}

func TestLongRuns(t *testing.T) {
	s := open(t, add("n"), engine.Options{})
	var wg sync.WaitGroup
	for g := range 16 {
		wg.Go(func() {
			for i := range 200 {
				onThreads(s)
				x := float32(g*1000 + i)
				r, err := s.Run(t.Context(), engine.Feeds{"a": tensor.From([]float32{x, 1}, 2), "b": tensor.From([]float32{1, x}, 2)}, nil)
				if err != nil {
					t.Error(err)
					return
				}
				if got := tensor.View[float32](r.Tensors()["sum"]); got[0] != x+1 || got[1] != x+1 {
					t.Errorf("%v, want %v twice", got, x+1)
				}
				r.Close()
			}
		})
	}
	wg.Wait()
	if n := callerThreads(t); n == 0 || n > 4 { // FBORT_IDLE_CALLERS, once they are idle
		time.Sleep(100 * time.Millisecond)
		if n = callerThreads(t); n == 0 || n > 4 {
			t.Errorf("%d threads are left, want 1 to 4", n)
		}
	}
	onThreads(s)
	if _, err := s.Run(t.Context(), engine.Feeds{"a": tensor.From([]float32{1, 2}, 2), "b": tensor.From([]float32{1, 2, 3}, 3)}, nil); !errors.Is(err, engine.ErrInput) {
		t.Errorf("shapes that do not go together: %v", err)
	}
}

func TestLongRunIsStopped(t *testing.T) {
	s := open(t, endless(), engine.Options{})
	for range 3 {
		onThreads(s)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		start := time.Now()
		_, err := s.Run(ctx, engine.Feeds{"n": tensor.From([]int64{forever})}, nil)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
			t.Fatalf("%v after %v", err, time.Since(start))
		}
	}
}

// What takes a millisecond is long after a few runs, without anybody saying so.
func TestRunsBecomeLong(t *testing.T) {
	s := open(t, endless(), engine.Options{})
	n := int64(20_000)
	for i := 0; s.took.Load() < int64(longRun); i++ {
		if i == 100 {
			t.Fatalf("runs of %v are not long", time.Duration(s.took.Load()))
		}
		r, err := s.Run(t.Context(), engine.Feeds{"n": tensor.From([]int64{n})}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	r, err := s.Run(t.Context(), engine.Feeds{"n": tensor.From([]int64{n})}, nil)
	if err != nil || tensor.View[float32](r.Tensors()["count"])[0] != float32(n) {
		t.Fatal(err)
	}
	r.Close()
}

func TestMeter(t *testing.T) {
	var told []string
	s := open(t, add("n"), engine.Options{Meter: func(gpu string, requests int) func(bool) {
		return func(answered bool) {
			told = append(told, strings.Join([]string{gpu, string(rune('0' + requests)), map[bool]string{true: "answered", false: "failed"}[answered]}, " "))
		}
	}})
	a, b := tensor.From([]float32{1, 2}, 2), tensor.From([]float32{1, 2, 3}, 3)
	r, err := s.Run(engine.WithRequests(t.Context(), 3), engine.Feeds{"a": a, "b": a}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if _, err := s.Run(t.Context(), engine.Feeds{"a": a, "b": b}, nil); err == nil {
		t.Fatal("shapes that do not go together were taken")
	}
	if got := strings.Join(told, ","); got != " 3 answered, 1 failed" {
		t.Errorf("the meter heard %q", got)
	}
}

package jobs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// These variables make the test binary a process that gets killed: it opens
// the store, submits jobs that never end (count of them), prints their ids and
// a line when one runs.
const (
	crashDir  = "FEWBIT_JOBS_CRASH_DIR"
	crashJobs = "FEWBIT_JOBS_CRASH_JOBS"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := runUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func runUntilKilled(dir string) error {
	q, err := Open(context.Background(), Options{
		Dir:     dir,
		Workers: 2,
		Runner: func(ctx context.Context, id string, s Spec, progress func(string, float64)) (json.RawMessage, error) {
			progress("calibrating", 0.25)
			fmt.Println("running", id)
			select {}
		},
	})
	if err != nil {
		return err
	}
	for i := range len(os.Getenv(crashJobs)) {
		id, err := q.Submit(context.Background(), Spec{Model: fmt.Sprint("m", i)})
		if err != nil {
			return err
		}
		fmt.Println("submitted", id)
	}
	select {}
}

// crash starts such a process with n new jobs and kills it when want jobs run.
// It returns the ids that the process had acknowledged.
func crash(t *testing.T, dir string, n, want int) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashJobs+"="+strings.Repeat("x", n))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(patience, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	var ids []string
	runs := 0
	for lines := bufio.NewScanner(out); lines.Scan(); {
		what, id, _ := strings.Cut(lines.Text(), " ")
		switch what {
		case "submitted":
			ids = append(ids, id)
		case "running":
			runs++
		}
		if runs >= want && len(ids) >= n {
			_ = cmd.Process.Kill()
		}
	}
	_ = cmd.Wait()
	if len(ids) < n || runs < want {
		t.Fatalf("the process ended with %d jobs submitted and %d running: %s", len(ids), runs, stderr.String())
	}
	return ids
}

func TestKilledJobsStartAgain(t *testing.T) {
	dir := t.TempDir()
	ids := crash(t, dir, 5, 2)
	runs := make(chan string, 100)
	q := open(t, Options{Dir: dir, Workers: 2, Runner: func(ctx context.Context, id string, s Spec, _ func(string, float64)) (json.RawMessage, error) {
		runs <- id
		return json.Marshal(s.Model)
	}})
	attempts := 0
	for i, id := range ids {
		s := await(t, q, id, final)
		if s.Status != Succeeded || string(s.Result) != fmt.Sprintf("%q", fmt.Sprint("m", i)) {
			t.Errorf("job %d: %+v", i, s)
		}
		attempts += s.Attempts
	}
	if attempts != 7 { // two were running when the process died
		t.Errorf("%d attempts in all, want 7", attempts)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	close(runs)
	seen := map[string]int{}
	for id := range runs {
		seen[id]++
	}
	for _, id := range ids {
		if seen[id] != 1 {
			t.Errorf("job %s ran %d times after the restart, want once", id, seen[id])
		}
	}
	// And nothing is left for a third process.
	q = open(t, Options{Dir: dir, Runner: func(_ context.Context, id string, _ Spec, _ func(string, float64)) (json.RawMessage, error) {
		t.Errorf("job %s ran again", id)
		return nil, nil
	}})
	info, err := q.queue.Info(t.Context())
	if err != nil || info.State.Msgs != 0 {
		t.Errorf("%d messages are left, %v", info.State.Msgs, err)
	}
	if all, err := q.List(t.Context()); err != nil || len(all) != 5 {
		t.Errorf("%d jobs are remembered, %v", len(all), err)
	}
}

func TestJobThatKillsTheServerIsGivenUp(t *testing.T) {
	dir := t.TempDir()
	id := crash(t, dir, 1, 1)[0]
	crash(t, dir, 0, 1)
	q := open(t, Options{Dir: dir, MaxAttempts: 2, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) {
		t.Error("it ran again")
		return nil, nil
	}})
	s := await(t, q, id, final)
	if s.Status != Failed || !strings.Contains(s.Error, "2 times") || s.Attempts != 2 || s.Finished == nil {
		t.Errorf("%+v", s)
	}
}

func TestCancelSurvivesACrash(t *testing.T) {
	dir := t.TempDir()
	ids := crash(t, dir, 3, 2)
	q := open(t, Options{Dir: dir}) // no workers yet
	for _, id := range ids {
		if err := q.Cancel(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, Options{Dir: dir, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) {
		t.Error("a cancelled job ran")
		return nil, nil
	}})
	for _, id := range ids {
		if s := await(t, q, id, final); s.Status != Cancelled {
			t.Errorf("%+v", s)
		}
	}
}

func TestSecondProcessIsRefused(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Options{Dir: dir})
	if _, err := Open(t.Context(), Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("second start: %v", err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, Options{Dir: dir})
}

func TestStoreThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"", file, filepath.Join(file, "below")} {
		if _, err := Open(t.Context(), Options{Dir: dir}); err == nil {
			t.Errorf("%q was accepted", dir)
		}
	}
	if _, err := Open(t.Context(), Options{URL: "nats://user:secret@127.0.0.1:1"}); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("unreachable cluster: %v", err)
	}
}

// A process that dies between the record and the message.
func TestRecordWithoutMessage(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Options{Dir: dir})
	id := submit(t, q, Spec{Model: "m"})
	if err := q.queue.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, Options{Dir: dir, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) { return nil, nil }})
	if s := await(t, q, id, final); s.Status != Succeeded {
		t.Errorf("%+v", s)
	}
}

// TestForgottenJobsStayForgotten: the store of a process that was killed gives back
// old records of jobs that had ended and were forgotten. None of them runs again.
func TestForgottenJobsStayForgotten(t *testing.T) {
	dir, after := t.TempDir(), filepath.Join(t.TempDir(), "after")
	var runs atomic.Int32
	o := Options{Dir: dir, Keep: 1, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) {
		runs.Add(1)
		return json.RawMessage(`{}`), nil
	}}
	q := open(t, o)
	const n = 5
	var ids []string
	for range n {
		id := submit(t, q, Spec{Model: "m", Scheme: "int8"})
		await(t, q, id, final)
		ids = append(ids, id)
	}
	waitFor(t, func() bool {
		l, err := q.List(t.Context())
		return err == nil && len(l) == 1
	})
	if err := os.CopyFS(after, os.DirFS(dir)); err != nil { // what a killed process leaves
		t.Fatal(err)
	}
	o.Dir = after
	q = open(t, o)
	waiting := submit(t, q, Spec{Model: "m", Scheme: "int8"})
	await(t, q, waiting, final)
	if got := runs.Load(); got != n+1 {
		t.Errorf("%d runs of %d jobs", got, n+1)
	}
	for _, id := range ids[:n-1] {
		if s, err := q.Get(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("forgotten job %s is back: %+v, %v", id, s, err)
		}
	}
}

// More jobs without a message than the queue has places do not keep it from starting.
func TestMoreRecordsThanPlaces(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Options{Dir: dir})
	first := submit(t, q, Spec{Model: "m"})
	for range 3 {
		submit(t, q, Spec{Model: "m"})
	}
	if err := q.queue.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	q = open(t, Options{Dir: dir, MaxQueued: 2, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) { return nil, nil }})
	if s := await(t, q, first, final); s.Status != Succeeded {
		t.Errorf("the oldest: %+v", s)
	}
}

package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const patience = 20 * time.Second // a busy two-core machine, with fsync

func open(t *testing.T, o Options) *JetStream {
	t.Helper()
	if o.Dir == "" && o.URL == "" {
		o.Dir = t.TempDir()
	}
	q, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.Close() })
	return q
}

func submit(t *testing.T, q Queue, s Spec) string {
	t.Helper()
	id, err := q.Submit(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// await reads events until f holds.
func await(t *testing.T, q Queue, id string, f func(Status) bool) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ch, err := q.Events(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	var last Status
	for s := range ch {
		last = s
		if f(s) {
			return s
		}
	}
	t.Fatalf("job %s never got there; last: %+v", id, last)
	return last
}

func final(s Status) bool   { return s.Status.Final() }
func running(s Status) bool { return s.Status == Running }

func TestLifeOfAJob(t *testing.T) {
	step := make(chan struct{})
	q := open(t, Options{
		ProgressEvery: 5 * time.Millisecond,
		Runner: func(ctx context.Context, id string, s Spec, progress func(string, float64)) (json.RawMessage, error) {
			progress("calibrating", 0.5)
			<-step
			return json.RawMessage(fmt.Sprintf(`{"model":%q,"id":%q}`, s.Model, id)), Owned(ctx)
		},
	})
	id := submit(t, q, Spec{Model: "m", Scheme: "int8"})
	s := await(t, q, id, func(s Status) bool { return s.Phase == "calibrating" })
	if s.Status != Running || s.Progress != 0.5 || s.Attempts != 1 || s.Started == nil || s.Spec.Model != "m" {
		t.Errorf("while running: %+v", s)
	}
	close(step)
	s = await(t, q, id, final)
	if s.Status != Succeeded || s.Progress != 1 || s.Finished == nil || s.ETASeconds != nil || s.Error != "" {
		t.Errorf("at the end: %+v", s)
	}
	if want := fmt.Sprintf(`{"model":"m","id":%q}`, id); string(s.Result) != want {
		t.Errorf("result %s, want %s", s.Result, want)
	}
	got, err := q.Get(t.Context(), id)
	if err != nil || string(got.Result) != string(s.Result) {
		t.Errorf("Get: %+v, %v", got, err)
	}
	all, err := q.List(t.Context())
	if err != nil || len(all) != 1 || all[0].ID != id || all[0].Result != nil {
		t.Errorf("List: %+v, %v", all, err)
	}
	if err := q.Cancel(t.Context(), id); !errors.Is(err, ErrFinished) {
		t.Errorf("cancelling a finished job: %v", err)
	}
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name   string
		runner func() (json.RawMessage, error)
		want   string
	}{
		{"error", func() (json.RawMessage, error) { return nil, errors.New("node 3: no scale") }, "node 3: no scale"},
		{"path", func() (json.RawMessage, error) {
			return nil, &fs.PathError{Op: "open", Path: "/srv/a b/model.onnx", Err: os.ErrNotExist}
		}, "open model.onnx: file does not exist"},
		{"panic", func() (json.RawMessage, error) { panic("/srv/secret") }, "internal error while running the job; the server's log has the details"},
		{"result too large", func() (json.RawMessage, error) { return make([]byte, MaxResultBytes+1), nil }, "the result has 1048577 bytes, at most 1048576 can be stored"},
		{"result not JSON", func() (json.RawMessage, error) { return []byte("{"), nil }, "the result is not JSON"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := open(t, Options{Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) { return c.runner() }})
			s := await(t, q, submit(t, q, Spec{}), final)
			if s.Status != Failed || s.Error != c.want {
				t.Errorf("%s: %q, want %q", s.Status, s.Error, c.want)
			}
		})
	}
}

func TestLargestResultIsStored(t *testing.T) {
	big := json.RawMessage(`"` + strings.Repeat("x", MaxResultBytes-2) + `"`)
	q := open(t, Options{Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) { return big, nil }})
	s := await(t, q, submit(t, q, Spec{}), final)
	if s.Status != Succeeded || len(s.Result) != len(big) {
		t.Errorf("%s %s, %d bytes", s.Status, s.Error, len(s.Result))
	}
}

func TestUnknown(t *testing.T) {
	q := open(t, Options{})
	for _, id := range []string{"", "x", ">", "*", "a.b", "../..", newID(""), strings.Repeat("0", 24), strings.Repeat("9", 10_000)} {
		if _, err := q.Get(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Get(%.30q): %v", id, err)
		}
		if err := q.Cancel(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Cancel(%.30q): %v", id, err)
		}
		if _, err := q.Events(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("Events(%.30q): %v", id, err)
		}
	}
}

func TestCancel(t *testing.T) {
	var runs atomic.Int32
	stopped := make(chan error, 1)
	q := open(t, Options{Runner: func(ctx context.Context, id string, s Spec, _ func(string, float64)) (json.RawMessage, error) {
		runs.Add(1)
		<-ctx.Done()
		stopped <- context.Cause(ctx)
		return nil, ctx.Err()
	}})
	first := submit(t, q, Spec{Model: "first"})
	await(t, q, first, running)
	second := submit(t, q, Spec{Model: "second"})
	if err := q.Cancel(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if s, err := q.Get(t.Context(), second); err != nil || s.Status != Cancelled || s.Finished == nil {
		t.Errorf("a queued job that was cancelled: %+v, %v", s, err)
	}
	if err := q.Cancel(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if s := await(t, q, first, final); s.Status != Cancelled || s.Error != "" {
		t.Errorf("a running job that was cancelled: %+v", s)
	}
	if err := <-stopped; !errors.Is(err, ErrCancelled) {
		t.Errorf("the runner saw %v", err)
	}
	third := submit(t, q, Spec{})
	await(t, q, third, running)
	if err := q.Cancel(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	await(t, q, third, final)
	if n := runs.Load(); n != 2 {
		t.Errorf("%d runs, want 2: the job cancelled while queued ran", n)
	}
}

func TestManyAtOnce(t *testing.T) {
	const n = 50
	var most, now atomic.Int32
	q := open(t, Options{Workers: 3, Runner: func(_ context.Context, id string, s Spec, progress func(string, float64)) (json.RawMessage, error) {
		if c := now.Add(1); c > most.Load() {
			most.Store(c)
		}
		defer now.Add(-1)
		progress("working", 0.5)
		time.Sleep(2 * time.Millisecond)
		return json.Marshal(s.Model)
	}})
	var wg sync.WaitGroup
	ids := make([]string, n)
	for i := range n {
		wg.Go(func() {
			id, err := q.Submit(t.Context(), Spec{Model: fmt.Sprint("m", i)})
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for i, id := range ids {
		s := await(t, q, id, final)
		if s.Status != Succeeded || string(s.Result) != fmt.Sprintf("%q", fmt.Sprint("m", i)) || s.Attempts != 1 {
			t.Errorf("job %d: %+v", i, s)
		}
		seen[id] = true
	}
	if len(seen) != n {
		t.Errorf("%d different ids, want %d", len(seen), n)
	}
	if most.Load() > 3 {
		t.Errorf("%d jobs ran at once, 3 workers", most.Load())
	}
}

func TestSameKeyTwiceAtOnce(t *testing.T) {
	var runs atomic.Int32
	q := open(t, Options{Workers: 2, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) {
		runs.Add(1)
		return nil, nil
	}})
	spec := Spec{Model: "m", Scheme: "int8", Key: "order 66 / with > odd * characters"}
	ids := make([]string, 20)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			id, err := q.Submit(t.Context(), spec)
			if err != nil {
				t.Error(err)
			}
			ids[i] = id
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("ids %s and %s for one key", id, ids[0])
		}
	}
	await(t, q, ids[0], final)
	if submit(t, q, spec) != ids[0] {
		t.Error("the key names another job after the end")
	}
	time.Sleep(50 * time.Millisecond)
	if runs.Load() != 1 {
		t.Errorf("%d runs, want 1", runs.Load())
	}
	if id, err := q.Known(t.Context(), spec); err != nil || id != ids[0] {
		t.Errorf("known: %q, %v", id, err)
	}
	for _, other := range []Spec{{}, {Key: "another"}} {
		if id, err := q.Known(t.Context(), other); err != nil || id != "" {
			t.Errorf("of key %q there is %q, %v", other.Key, id, err)
		}
	}
	spec.Scheme = "int4"
	if _, err := q.Submit(t.Context(), spec); !errors.Is(err, ErrConflict) {
		t.Errorf("same key, other request: %v", err)
	}
	if _, err := q.Known(t.Context(), spec); !errors.Is(err, ErrConflict) {
		t.Errorf("same key, other request: %v", err)
	}
}

func TestBusyAndBounds(t *testing.T) {
	q := open(t, Options{MaxQueued: 2})
	submit(t, q, Spec{})
	submit(t, q, Spec{})
	if _, err := q.Submit(t.Context(), Spec{}); !errors.Is(err, ErrBusy) {
		t.Errorf("third of two: %v", err)
	}
	if l, err := q.List(t.Context()); err != nil || len(l) != 2 {
		t.Errorf("the refused job is listed: %d, %v", len(l), err)
	}
	if _, err := q.Submit(t.Context(), Spec{Model: strings.Repeat("m", MaxSpecBytes)}); !errors.Is(err, ErrSpec) {
		t.Errorf("large request: %v", err)
	}
	if _, err := q.Submit(t.Context(), Spec{Key: strings.Repeat("k", MaxKeyBytes+1)}); !errors.Is(err, ErrSpec) {
		t.Errorf("large key: %v", err)
	}
}

package jobs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func TestCloseReturnsTheJobToTheQueue(t *testing.T) {
	dir := t.TempDir()
	q := open(t, Options{Dir: dir, Runner: func(ctx context.Context, _ string, _ Spec, _ func(string, float64)) (json.RawMessage, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}})
	id := submit(t, q, Spec{})
	await(t, q, id, running)
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"Submit": func() error { _, err := q.Submit(t.Context(), Spec{}); return err }(),
		"Get":    func() error { _, err := q.Get(t.Context(), id); return err }(),
		"List":   func() error { _, err := q.List(t.Context()); return err }(),
		"Events": func() error { _, err := q.Events(t.Context(), id); return err }(),
		"Cancel": q.Cancel(t.Context(), id),
	} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("%s after Close: %v", name, err)
		}
	}
	q = open(t, Options{Dir: dir})
	s, err := q.Get(t.Context(), id)
	if err != nil || s.Status != Queued || s.Error != "" {
		t.Fatalf("%+v, %v", s, err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	// Orderly restarts are no crashes, however many.
	for range 3 {
		q = open(t, Options{Dir: dir, MaxAttempts: 1, Runner: func(ctx context.Context, _ string, _ Spec, _ func(string, float64)) (json.RawMessage, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		await(t, q, id, running)
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	dir := t.TempDir()
	release := make(chan struct{})
	q := open(t, Options{Dir: dir, StopTimeout: 20 * time.Millisecond, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) {
		<-release
		return nil, nil
	}})
	id := submit(t, q, Spec{})
	await(t, q, id, running)
	if err := q.Close(); err == nil || !strings.Contains(err.Error(), "start again") {
		t.Errorf("closing over a deaf job: %v", err)
	}
	close(release)
	q = open(t, Options{Dir: dir})
	if s, err := q.Get(t.Context(), id); err != nil || s.Status != Running {
		t.Errorf("%+v, %v", s, err)
	}
}

// A worker that was presumed dead and comes back must not decide anything.
func TestStaleWorkerIsFencedOff(t *testing.T) {
	type run struct {
		ctx  context.Context
		gate chan string
	}
	runs := make(chan run, 2)
	q := open(t, Options{Workers: 2, Runner: func(ctx context.Context, _ string, _ Spec, _ func(string, float64)) (json.RawMessage, error) {
		r := run{ctx, make(chan string)}
		runs <- r
		return json.Marshal(<-r.gate) // deaf to ctx, as a stalled process is
	}})
	id := submit(t, q, Spec{})
	old := <-runs
	// What a redelivery after AckWait does: the job's message comes again.
	if err := q.queue.Purge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := q.enqueue(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	fresh := <-runs
	<-old.ctx.Done()
	if err := context.Cause(old.ctx); !errors.Is(err, ErrLost) {
		t.Errorf("the stale run saw %v", err)
	}
	if err := Owned(old.ctx); !errors.Is(err, ErrLost) && !errors.Is(err, context.Canceled) {
		t.Errorf("the stale run owns the job: %v", err)
	}
	if err := Owned(fresh.ctx); err != nil {
		t.Errorf("the fresh run does not own the job: %v", err)
	}
	old.gate <- "old"
	time.Sleep(50 * time.Millisecond)
	if s, err := q.Get(t.Context(), id); err != nil || s.Status != Running || s.Attempts != 2 {
		t.Errorf("after the stale run ended: %+v, %v", s, err)
	}
	fresh.gate <- "new"
	if s := await(t, q, id, final); s.Status != Succeeded || string(s.Result) != `"new"` {
		t.Errorf("%+v", s)
	}
}

// A job that takes many times AckWait is delivered once.
func TestLongJobKeepsItsDelivery(t *testing.T) {
	const ackWait = 300 * time.Millisecond
	var runs atomic.Int32
	q := open(t, Options{Workers: 2, AckWait: ackWait, Runner: func(ctx context.Context, _ string, _ Spec, _ func(string, float64)) (json.RawMessage, error) {
		runs.Add(1)
		time.Sleep(4 * ackWait)
		return nil, ctx.Err()
	}})
	s := await(t, q, submit(t, q, Spec{}), final)
	if s.Status != Succeeded || s.Attempts != 1 || runs.Load() != 1 {
		t.Errorf("%d runs, %+v", runs.Load(), s)
	}
}

func TestProgressIsThrottledMonotoneAndBounded(t *testing.T) {
	const every = 50 * time.Millisecond
	began := make(chan struct{})
	q := open(t, Options{ProgressEvery: every, Runner: func(_ context.Context, _ string, _ Spec, progress func(string, float64)) (json.RawMessage, error) {
		<-began
		end := time.Now().Add(600 * time.Millisecond)
		for i := 0; time.Now().Before(end); i++ {
			progress(strings.Repeat("ü", 500), float64(i)/1e4)
			time.Sleep(100 * time.Microsecond)
		}
		progress("back", 0.01)
		progress("nan", math.NaN())
		progress("past", 17)
		time.Sleep(3 * every)
		return nil, nil
	}})
	id := submit(t, q, Spec{})
	ch, err := q.Events(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	close(began)
	n, last, sawETA := 0, 0.0, false
	for s := range ch {
		n++
		if s.Progress < last || s.Progress > 1 {
			t.Errorf("progress %v after %v", s.Progress, last)
		}
		last = s.Progress
		if len(s.Phase) > maxPhaseBytes {
			t.Errorf("phase of %d bytes", len(s.Phase))
		}
		sawETA = sawETA || s.ETASeconds != nil && *s.ETASeconds > 0
	}
	if most := int(600*time.Millisecond/every) + 8; n > most || n < 3 {
		t.Errorf("%d events, at most %d expected", n, most)
	}
	if last != 1 || !sawETA {
		t.Errorf("last progress %v, time left was shown: %v", last, sawETA)
	}
}

func TestETA(t *testing.T) {
	for _, c := range []struct {
		elapsed time.Duration
		frac    float64
		want    float64 // -1: nil
	}{{time.Second, 0, -1}, {time.Millisecond, 0.5, -1}, {10 * time.Second, 0.25, 30}, {10 * time.Second, 1, 0}} {
		got := eta(c.elapsed, c.frac)
		if (got == nil) != (c.want < 0) || got != nil && *got != c.want {
			t.Errorf("eta(%v, %v) = %v, want %v", c.elapsed, c.frac, got, c.want)
		}
	}
}

func TestFinishedJobsAreForgotten(t *testing.T) {
	q := open(t, Options{Keep: 3, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) {
		return json.RawMessage(`"r"`), nil
	}})
	var ids []string
	for i := range 6 {
		ids = append(ids, submit(t, q, Spec{Model: fmt.Sprint(i)}))
		await(t, q, ids[i], final)
	}
	waitFor(t, func() bool { l, err := q.List(t.Context()); return err == nil && len(l) == 3 })
	l, err := q.List(t.Context())
	if err != nil || l[0].ID != ids[5] || l[2].ID != ids[3] {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := q.Get(t.Context(), ids[0]); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if e, err := q.store.result(t.Context(), ids[0], 1); e != nil || err != nil {
		t.Errorf("the result of a forgotten job stays: %s, %v", e, err)
	}
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not happen")
		}
	}
}

// Two processes on one external server: one submits, the other works.
func TestExternalServer(t *testing.T) {
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	defer ns.WaitForShutdown()
	defer ns.Shutdown()
	if !ns.ReadyForConnections(patience) {
		t.Fatal("the NATS server does not start")
	}
	front := open(t, Options{URL: ns.ClientURL()})
	release := make(chan struct{})
	back := open(t, Options{URL: ns.ClientURL(), Runner: func(ctx context.Context, id string, s Spec, progress func(string, float64)) (json.RawMessage, error) {
		if s.Model == "endless" {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		<-release
		return json.Marshal(s.Model)
	}})
	first := submit(t, front, Spec{Model: "m"})
	await(t, front, first, running)
	// A front that starts now must not disturb the job that runs elsewhere.
	open(t, Options{URL: ns.ClientURL()})
	close(release)
	if s := await(t, front, first, final); s.Status != Succeeded || string(s.Result) != `"m"` || s.Attempts != 1 {
		t.Errorf("%+v", s)
	}
	second := submit(t, front, Spec{Model: "endless"})
	await(t, front, second, running)
	if err := front.Cancel(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	if s := await(t, front, second, final); s.Status != Cancelled {
		t.Errorf("%+v", s)
	}
	if err := back.Close(); err != nil {
		t.Error(err)
	}
}

func TestPublicError(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("layer 3/12: text/plain, 1/2 of a/b"), "layer 3/12: text/plain, 1/2 of a/b"},
		{errors.New("open /srv/data/tmp/s-1/model.onnx: no such file"), "open model.onnx: no such file"},
		{errors.New(`read "/srv/x.json" (/etc/y), path=/a/b/c`), `read "x.json" (y), path=c`},
		{errors.New("upload it with PUT /datasets/news first"), "upload it with PUT /datasets/news first"},
		{errors.New("two\nlines\tand  tabs"), "two lines and tabs"},
		{fmt.Errorf("job: %w", &fs.PathError{Op: "open", Path: "/srv/my data/x.onnx", Err: os.ErrNotExist}), "job: open x.onnx: file does not exist"},
		{fmt.Errorf("job: %w", &os.LinkError{Op: "rename", Old: "/srv/a b/x", New: "/srv/c d/y", Err: syscall.ENOSPC}), "job: rename x y: no space left on device"},
		{fmt.Errorf("job: %w", &fs.PathError{Op: "open", Err: os.ErrNotExist}), "job: open : file does not exist"},
		{fmt.Errorf("job: %w", &os.LinkError{Op: "symlink", New: "/srv/c d/y", Err: syscall.ENOENT}), "job: symlink y: no such file or directory"},
		{errors.New("bad \xff\xfe bytes"), "bad \uFFFD bytes"},
	} {
		if got := PublicError(c.err); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	if got := PublicError(errors.New(strings.Repeat("ü", maxErrorBytes))); len(got) > maxErrorBytes {
		t.Errorf("%d bytes", len(got))
	}
}

func BenchmarkSubmit(b *testing.B) {
	q, err := Open(b.Context(), Options{Dir: b.TempDir(), MaxQueued: 1 << 20})
	if err != nil {
		b.Fatal(err)
	}
	defer q.Close()
	for b.Loop() {
		if _, err := q.Submit(b.Context(), Spec{Model: "m", Scheme: "int8"}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		q, err := Open(b.Context(), Options{Dir: dir, Runner: func(context.Context, string, Spec, func(string, float64)) (json.RawMessage, error) { return nil, nil }})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := q.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// TestProgressSurvivesRestarts: a client that watches through orderly stops and
// a takeover sees the progress stand still while the work is repeated, and the
// estimate follow the new attempt.
func TestProgressSurvivesRestarts(t *testing.T) {
	dir := t.TempDir()
	var id string
	last := 0.0
	for _, reached := range []float64{0.6, 0.2, 0.8} {
		q := open(t, Options{Dir: dir, ProgressEvery: time.Millisecond, Runner: func(ctx context.Context, _ string, _ Spec, progress func(string, float64)) (json.RawMessage, error) {
			for f := 0.1; f < reached+0.05; f += 0.1 {
				progress(fmt.Sprintf("at %.1f", f), f)
				time.Sleep(20 * time.Millisecond)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if id == "" {
			id = submit(t, q, Spec{})
		}
		await(t, q, id, func(s Status) bool {
			if s.Progress < last {
				t.Errorf("progress %v after %v (%s, attempt %d)", s.Progress, last, s.Phase, s.Attempts)
			}
			last = s.Progress
			return s.Phase == fmt.Sprintf("at %.1f", reached)
		})
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if last < 0.79 || last > 0.81 {
		t.Errorf("at the end the progress is %v", last)
	}
	q := open(t, Options{Dir: dir})
	if s, err := q.Get(t.Context(), id); err != nil || s.Status != Queued || s.Progress != last {
		t.Errorf("%+v, %v", s, err)
	}
}

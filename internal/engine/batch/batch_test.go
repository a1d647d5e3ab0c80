package batch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// encoder is a session that takes fixed + each per padded token, and answers
// with each row's sum of ids, and the ids themselves by token.
type encoder struct {
	fixed, each time.Duration
	fail        int64                // an id that no run may contain
	noise       func() time.Duration // more that a run takes; nil for nothing
	mixes       bool                 // answers with one row for the whole batch

	mu       sync.Mutex
	runs     []string
	requests []int // rows x width of each
}

var batchDim, lengthDim = "batch", "sequence"

func (e *encoder) Spec() engine.IOSpec {
	two := func(n string) engine.IO {
		return engine.IO{Name: n, Type: tensor.Int64, Dims: []int64{-1, -1}, DimNames: []string{batchDim, lengthDim}}
	}
	return engine.IOSpec{
		Inputs: []engine.IO{two("input_ids"), two("attention_mask")},
		Outputs: []engine.IO{
			{Name: "sum", Type: tensor.Int64, Dims: []int64{-1, 1}, DimNames: []string{batchDim, ""}},
			{Name: "tokens", Type: tensor.Int64, Dims: []int64{-1, -1, 2}, DimNames: []string{batchDim, lengthDim, ""}},
		},
	}
}

func (e *encoder) Run(ctx context.Context, in engine.Feeds, _ []string) (engine.Result, error) {
	ids := in["input_ids"]
	rows, width := ids.Dims[0], ids.Dims[1]
	e.mu.Lock()
	e.runs = append(e.runs, fmt.Sprintf("%dx%d", rows, width))
	e.requests = append(e.requests, engine.Requests(ctx))
	e.mu.Unlock()
	took := e.fixed + time.Duration(rows*width)*e.each
	if e.noise != nil {
		took += e.noise()
	}
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	v := tensor.View[int64](ids)
	sum, tokens := make([]int64, rows), make([]int64, 0, 2*len(v))
	for i, id := range v {
		if e.fail != 0 && id == e.fail {
			return nil, engine.ErrInput
		}
		sum[int64(i)/width] += id
		tokens = append(tokens, id, -id)
	}
	if e.mixes {
		sum, rows = sum[:1], 1
	}
	return result{"sum": tensor.From(sum, rows, 1), "tokens": tensor.From(tokens, ids.Dims[0], width, 2)}, nil
}

func (e *encoder) Close() error { return nil }

type result engine.Feeds

func (r result) Tensors() engine.Feeds { return engine.Feeds(r) }
func (r result) Close()                {}

// text is one request of rows x width tokens, each of value v.
func text(rows, width, v int64) engine.Feeds {
	ids, mask := make([]int64, rows*width), make([]int64, rows*width)
	for i := range ids {
		ids[i], mask[i] = v, 1
	}
	return engine.Feeds{"input_ids": tensor.From(ids, rows, width), "attention_mask": tensor.From(mask, rows, width)}
}

// ask runs a request and checks that the answer is its own.
func ask(ctx context.Context, q *Queue, rows, width, v int64) (Timing, error) {
	res, timing, err := q.Run(ctx, text(rows, width, v), nil)
	if err != nil {
		return timing, err
	}
	defer res.Close()
	out := res.Tensors()
	want := slices.Repeat([]int64{v * width}, int(rows))
	if got := tensor.View[int64](out["sum"]); !slices.Equal(got, want) {
		return timing, fmt.Errorf("sum is %v, want %v", got, want)
	}
	if got, want := tensor.View[int64](out["tokens"]), slices.Repeat([]int64{v, -v}, int(rows*width)); !slices.Equal(got, want) || !slices.Equal(out["tokens"].Dims, []int64{rows, width, 2}) {
		return timing, fmt.Errorf("tokens are %v %v, want %v", out["tokens"].Dims, got, want)
	}
	return timing, nil
}

// crowd sends n requests at once and returns their errors.
func crowd(q *Queue, n int, ctx func(i int) context.Context, width func(i int) int64) []error {
	return crowdOf(q, n, 1, ctx, width)
}

// crowdOf is crowd with requests of so many rows.
func crowdOf(q *Queue, n int, rows int64, ctx func(i int) context.Context, width func(i int) int64) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _, errs[i] = ask(ctx(i), q, rows, width(i), int64(i+1)) })
		synctest.Wait() // in this order
	}
	wg.Wait()
	return errs
}

func background(int) context.Context { return context.Background() }

// learn shows the queue runs of two sizes.
func learn(t *testing.T, q *Queue) {
	t.Helper()
	for _, w := range []int64{8, 64, 8, 64} {
		if _, err := ask(t.Context(), q, 1, w, 3); err != nil {
			t.Fatal(err)
		}
	}
}

func TestIdleRunsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 5 * time.Millisecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		timing, err := ask(t.Context(), q, 2, 7, 5)
		if err != nil || timing.Queue != 0 || timing.Infer != 5*time.Millisecond || timing.Rows != 2 {
			t.Errorf("%+v, %v", timing, err)
		}
	})
}

func TestJoinsWhatPiledUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 4 * time.Millisecond, each: 100 * time.Microsecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		learn(t, q)
		e.runs, e.requests = nil, nil
		for i, err := range crowd(q, 9, background, func(i int) int64 { return []int64{8, 8, 9, 8, 10, 8, 9, 8, 8}[i] }) {
			if err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		}
		if want := []string{"1x8", "8x10"}; !slices.Equal(e.runs, want) {
			t.Errorf("runs %v, want %v", e.runs, want)
		}
		if want := []int{1, 8}; !slices.Equal(e.requests, want) {
			t.Errorf("the engine was told of %v requests, want %v", e.requests, want)
		}
	})
}

// What joining costs is followed up to twice the largest run measured, not from
// two short ones to a run that takes all that waits; and not from a single run of two.
func TestBatchesGrowByTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 4 * time.Millisecond, each: 100 * time.Microsecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		for _, err := range crowd(q, 31, background, func(int) int64 { return 8 }) {
			if err != nil {
				t.Error(err)
			}
		}
		if want := []string{"1x8", "2x8", "1x8", "4x8", "8x8", "15x8"}; !slices.Equal(e.runs, want) {
			t.Errorf("runs %v, want %v", e.runs, want)
		}
	})
}

// Padding a short request to a long one costs more than a run of its own.
func TestPaddingThatDoesNotPayIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 2 * time.Millisecond, each: 100 * time.Microsecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		learn(t, q)
		e.runs = nil
		for _, err := range crowd(q, 5, background, func(i int) int64 { return []int64{8, 100, 8, 100, 8}[i] }) {
			if err != nil {
				t.Error(err)
			}
		}
		if want := []string{"1x8", "2x100", "2x8"}; !slices.Equal(e.runs, want) {
			t.Errorf("runs %v, want %v", e.runs, want)
		}
	})
}

// Without a cost of its own for each run, joining only delays, as a few trials show.
func TestJoiningThatSavesNothingIsNotDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{each: 100 * time.Microsecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		learn(t, q)
		e.runs = nil
		crowd(q, 4, background, func(int) int64 { return 8 })
		crowd(q, 4, background, func(int) int64 { return 8 })
		if want := []string{"1x8", "2x8", "1x8", "1x8", "2x8", "1x8"}; !slices.Equal(e.runs, want) {
			t.Errorf("runs %v, want %v", e.runs, want)
		}
	})
}

func within(d time.Duration) func(int) context.Context {
	return func(int) context.Context {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		context.AfterFunc(ctx, cancel)
		return ctx
	}
}

// Every request that is answered is answered in time; the others are told so
// before they wait.
func TestDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 2 * time.Millisecond, each: time.Millisecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		learn(t, q)
		start := time.Now()
		answered, refused := 0, 0
		for i, err := range crowd(q, 10, within(45*time.Millisecond), func(int) int64 { return 8 }) {
			var over *Overloaded
			switch {
			case err == nil:
				answered++
			case errors.As(err, &over) && over.RetryAfter > 0:
				refused++
			default:
				t.Errorf("request %d: %v", i, err)
			}
		}
		if answered < 4 || refused == 0 {
			t.Errorf("%d answered, %d refused", answered, refused)
		}
		if d := time.Since(start); d > 45*time.Millisecond {
			t.Errorf("the last answer came after %v", d)
		}
	})
}

// What Refuses says beforehand is what happens then, and asking changes nothing.
func TestRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 2 * time.Millisecond, each: time.Millisecond}
		q := New(Options{MaxWaiting: 6}).Queue(e, QueueOptions{Alone: true})
		size := func(width int64) float64 { return q.Size(text(1, width, 1)) }
		if err := q.Refuses(size(8), time.Now().Add(time.Microsecond)); err != nil {
			t.Errorf("nothing ran yet: %v", err)
		}
		for range 3 {
			if _, err := ask(t.Context(), q, 1, 8, 3); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		refused := 0
		for i := range 10 {
			deadline := time.Now().Add(35 * time.Millisecond)
			said, again := q.Refuses(size(8), deadline), q.Refuses(size(8), deadline)
			if (said == nil) != (again == nil) {
				t.Errorf("request %d: %v, then %v", i, said, again)
			}
			if said != nil {
				refused++
			}
			if i < 8 && q.Refuses(0, deadline) != nil {
				t.Errorf("request %d: refused though nothing is known of it", i)
			}
			wg.Go(func() {
				ctx, cancel := context.WithDeadline(context.Background(), deadline)
				defer cancel()
				if _, err := ask(ctx, q, 1, 8, 1); (said != nil) != errors.Is(err, ErrOverloaded) {
					t.Errorf("request %d: said %v, was %v", i, said, err)
				}
			})
			synctest.Wait()
		}
		if refused < 5 || refused > 8 {
			t.Errorf("%d of 10 refused", refused)
		}
		wg.Wait()
		for range 7 { // one runs, six wait
			wg.Go(func() { _, _ = ask(context.Background(), q, 1, 8, 1) })
			synctest.Wait()
		}
		if err := q.Refuses(0, time.Time{}); !errors.Is(err, ErrOverloaded) || !strings.Contains(err.Error(), "6 requests wait") {
			t.Errorf("all places are taken: %v", err)
		}
		wg.Wait()
		if err := q.Refuses(size(8), time.Now().Add(time.Second)); err != nil {
			t.Errorf("nothing waits: %v", err)
		}
	})
}

// Ten times too many requests, on a machine whose runs vary: of those that are
// admitted nearly all are answered in time, and the engine is kept busy.
func TestOverloadOnANoisyMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		const run, limit, every, n = 20 * time.Millisecond, 125 * time.Millisecond, 2 * time.Millisecond, 40_000
		e := &encoder{each: (run - 4*time.Millisecond) / 8, noise: func() time.Duration {
			d := time.Duration(r.Float64() * float64(8*time.Millisecond))
			if r.IntN(50) == 0 {
				d += 30 * time.Millisecond
			}
			return d
		}}
		q := New(Options{}).Queue(e, QueueOptions{Alone: true})
		var mu sync.Mutex
		var good, late, refused int
		var wg sync.WaitGroup
		start := time.Now()
		for i := range n {
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), limit)
				defer cancel()
				sent := time.Now()
				_, err := ask(ctx, q, 1, 8, 1)
				took := time.Since(sent)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case i < n/4: // while it learns
				case err == nil && took <= limit-answering:
					good++
				case err == nil || took > 0: // or told so after it had waited
					late++
				default:
					refused++
				}
			})
			time.Sleep(every)
		}
		wg.Wait()
		could := (time.Since(start) * 3 / 4).Seconds() / (run + 600*time.Microsecond).Seconds()
		t.Logf("%d in time, %d late, %d refused at once; the engine could answer %.0f", good, late, refused, could)
		if share := float64(late) / float64(good+late); share > 0.02 {
			t.Errorf("%.1f %% of the admitted missed their deadline", 100*share)
		}
		if share := float64(good) / could; share < 0.95 {
			t.Errorf("%.1f %% of what the engine could do", 100*share)
		}
	})
}

// The earliest deadline is served first, whoever came first.
func TestEarliestDeadlineFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{each: time.Millisecond}
		q := New(Options{}).Queue(e, QueueOptions{Alone: true})
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for i, d := range []time.Duration{time.Hour, 0, 3 * time.Second, time.Second, 2 * time.Second} {
			wg.Go(func() {
				ctx := context.Background()
				if d > 0 {
					ctx = within(d)(0)
				}
				if _, err := ask(ctx, q, 1, 8, 1); err != nil {
					t.Error(err)
				}
				mu.Lock()
				order = append(order, i)
				mu.Unlock()
			})
			synctest.Wait()
		}
		wg.Wait()
		if want := []int{0, 3, 4, 2, 1}; !slices.Equal(order, want) {
			t.Errorf("served %v, want %v", order, want)
		}
	})
}

// A request without one of the inputs is the session's to judge. It must not
// hold up those after it.
func TestMissingInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{}).Queue(&encoder{fixed: time.Millisecond}, QueueOptions{})
		whole := text(1, 3, 5)
		for _, in := range []engine.Feeds{{"input_ids": whole["input_ids"]}, {"attention_mask": whole["attention_mask"]}, nil} {
			_, _, err := q.Run(t.Context(), in, nil)
			if in["input_ids"] == nil && !errors.Is(err, ErrPanic) { // the encoder reads it without looking
				t.Errorf("%v: %v", in, err)
			}
		}
		if _, err := ask(t.Context(), q, 1, 3, 5); err != nil {
			t.Errorf("the next request: %v", err)
		}
	})
}

func TestClientsThatLeftAreDropped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 10 * time.Millisecond}
		s := New(Options{})
		q := s.Queue(e, QueueOptions{})
		ctx, leave := context.WithCancel(context.Background())
		go func() {
			time.Sleep(time.Millisecond)
			leave()
		}()
		errs := crowd(q, 3, func(i int) context.Context {
			if i == 1 {
				return ctx
			}
			return context.Background()
		}, func(int) int64 { return 8 })
		if errs[0] != nil || !errors.Is(errs[1], context.Canceled) || errs[2] != nil {
			t.Error(errs)
		}
		if want := []string{"1x8", "1x8"}; !slices.Equal(e.runs, want) {
			t.Errorf("runs %v, want %v", e.runs, want)
		}
		if s.waiting != 0 || s.free != 1 || len(s.queues) != 0 {
			t.Errorf("left behind: %d waiting, %d free, %d queues", s.waiting, s.free, len(s.queues))
		}
	})
}

// One bad request fails alone, not with its batch.
func TestOneBadRequestFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 4 * time.Millisecond, each: 100 * time.Microsecond, fail: 3}
		q := New(Options{}).Queue(e, QueueOptions{})
		for i, err := range crowd(q, 5, background, func(int) int64 { return 8 }) {
			if (i == 2) != errors.Is(err, engine.ErrInput) || i != 2 && err != nil {
				t.Errorf("request %d: %v", i, err)
			}
		}
	})
}

// A model that does not keep rows apart is found out, and not joined again.
func TestMixingModelIsNotJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{fixed: 4 * time.Millisecond, mixes: true}
		q := New(Options{}).Queue(e, QueueOptions{})
		for range 2 {
			for i, err := range crowd(q, 4, background, func(int) int64 { return 8 }) {
				if err != nil {
					t.Errorf("request %d: %v", i, err)
				}
			}
		}
		if q.Joins() {
			t.Error("the model's requests are still joined")
		}
	})
}

func TestWaitingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := New(Options{MaxWaiting: 2}).Queue(&encoder{fixed: time.Second}, QueueOptions{Alone: true})
		errs := crowd(q, 5, background, func(int) int64 { return 8 })
		for i, err := range errs {
			if (i > 2) != errors.Is(err, ErrOverloaded) {
				t.Errorf("request %d: %v", i, err)
			}
		}
	})
}

// A model with ten times the requests does not starve another.
func TestFairBetweenModels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		slow, fast := &encoder{fixed: 10 * time.Millisecond}, &encoder{fixed: 10 * time.Millisecond}
		busy, calm := s.Queue(slow, QueueOptions{Alone: true}), s.Queue(fast, QueueOptions{Alone: true})
		if _, err := ask(t.Context(), busy, 1, 8, 1); err != nil {
			t.Fatal(err)
		}
		if _, err := ask(t.Context(), calm, 1, 8, 1); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() { _, _ = ask(context.Background(), busy, 1, 8, 1) })
		}
		synctest.Wait()
		start := time.Now()
		for range 4 {
			wg.Go(func() {
				if _, err := ask(context.Background(), calm, 1, 8, 1); err != nil {
					t.Error(err)
				}
				if d := time.Since(start); d > 100*time.Millisecond {
					t.Errorf("answered after %v, with its share it is 90 ms", d)
				}
			})
		}
		wg.Wait()
	})
}

// Predictions that are too long are found out: a machine that was slow for a
// while must not refuse everything from then on.
func TestSlowTimesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &encoder{each: time.Millisecond}
		q := New(Options{}).Queue(e, QueueOptions{})
		e.fixed = 200 * time.Millisecond
		for range 50 {
			if _, err := ask(t.Context(), q, 1, 20, 1); err != nil {
				t.Fatal(err)
			}
		}
		e.fixed = 0
		start, refused := time.Now(), 0
		for last := start; time.Since(start) < 5*time.Second; {
			_, err := ask(within(50*time.Millisecond)(0), q, 1, 20, 1)
			if errors.Is(err, ErrOverloaded) {
				refused++
				last = time.Now()
				time.Sleep(10 * time.Millisecond)
			} else if err != nil {
				t.Fatal(err)
			}
			if time.Since(last) > time.Second {
				t.Logf("%d refused, the last after %v", refused, last.Sub(start))
				if took := last.Sub(start); took > 3*time.Second || refused == 0 {
					t.Errorf("%d refused, the last after %v", refused, took)
				}
				return
			}
		}
		t.Error("requests are still refused")
	})
}

// What counts between models is the time that their runs take, not their number.
func TestFairByTimeTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		slow, fast := &encoder{each: 10 * time.Millisecond}, &encoder{each: time.Millisecond}
		a, b := s.Queue(slow, QueueOptions{Alone: true}), s.Queue(fast, QueueOptions{Alone: true})
		var wg sync.WaitGroup
		for range 60 { // 10 ms each against 1 ms
			wg.Go(func() { _, _ = ask(context.Background(), a, 1, 1, 1) })
			wg.Go(func() { _, _ = ask(context.Background(), b, 1, 1, 1) })
		}
		time.Sleep(200 * time.Millisecond)
		slow.mu.Lock()
		fast.mu.Lock()
		x, y := len(slow.runs), len(fast.runs)
		fast.mu.Unlock()
		slow.mu.Unlock()
		if y != 60 || x < 10 || x > 16 {
			t.Errorf("after 200 ms %d runs of 10 ms and %d of 1 ms: not half of the time each", x, y)
		}
		wg.Wait()
	})
}

// What another model has waiting does not make a request late that fairness
// serves in time: it is not refused.
func TestAdmittedByItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{})
		busy, calm := s.Queue(&encoder{fixed: 10 * time.Millisecond}, QueueOptions{Alone: true}), s.Queue(&encoder{fixed: 10 * time.Millisecond}, QueueOptions{Alone: true})
		for _, q := range []*Queue{busy, calm} {
			if _, err := ask(t.Context(), q, 1, 8, 1); err != nil {
				t.Fatal(err)
			}
		}
		var wg sync.WaitGroup
		for range 40 { // 400 ms of work
			wg.Go(func() { _, _ = ask(context.Background(), busy, 1, 8, 1) })
		}
		synctest.Wait()
		if _, err := ask(within(60*time.Millisecond)(0), calm, 1, 8, 1); err != nil {
			t.Errorf("its turn comes after 30 ms: %v", err)
		}
		wg.Wait()
	})
}

// A model that fills the places gives them up for another.
func TestPlacesAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Options{MaxWaiting: 4})
		busy, calm := s.Queue(&encoder{fixed: time.Second}, QueueOptions{Alone: true}), s.Queue(&encoder{fixed: time.Second}, QueueOptions{Alone: true})
		var refused atomic.Int32
		var wg sync.WaitGroup
		for range 7 { // one runs, four wait
			wg.Go(func() {
				if _, err := ask(context.Background(), busy, 1, 8, 1); errors.Is(err, ErrOverloaded) {
					refused.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := refused.Load(); n != 2 {
			t.Errorf("%d refused", n)
		}
		for range 2 {
			wg.Go(func() {
				if _, err := ask(context.Background(), calm, 1, 8, 1); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		if n := refused.Load(); n != 4 {
			t.Errorf("%d refused, two places were given up", n)
		}
		if _, err := ask(context.Background(), calm, 1, 8, 1); !errors.Is(err, ErrOverloaded) {
			t.Errorf("more than its half: %v", err)
		}
		wg.Wait()
	})
}

// One limit for single and batch requests: both are measured by the time that
// they take.
func TestBatchRequestsHaveTheSameLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, rows := range map[string]int64{"single": 1, "in batches of 8": 8} {
			s := New(Options{})
			q := s.Queue(&encoder{each: time.Millisecond}, QueueOptions{})
			for _, n := range []int64{1, 8} {
				if _, err := ask(t.Context(), q, n, 1, 1); err != nil {
					t.Fatal(err)
				}
			}
			admitted := int64(0)
			for _, err := range crowdOf(q, int(64/rows), rows, within(33*time.Millisecond), func(int) int64 { return 1 }) {
				if err == nil {
					admitted += rows
				}
			}
			if admitted < 24 || admitted > 33 {
				t.Errorf("%s: %d rows of 1 ms admitted within 33 ms", name, admitted)
			}
		}
	})
}

func TestRule(t *testing.T) {
	io := func(name string, names ...string) engine.IO {
		v := engine.IO{Name: name, Type: tensor.Float32, DimNames: names}
		for range names {
			v.Dims = append(v.Dims, -1)
		}
		return v
	}
	fixed := engine.IO{Name: "y", Type: tensor.Float32, Dims: []int64{1, 2}, DimNames: []string{"", ""}}
	for name, c := range map[string]struct {
		spec engine.IOSpec
		want bool
	}{
		"batch in, batch out": {engine.IOSpec{Inputs: []engine.IO{io("x", "n", "")}, Outputs: []engine.IO{io("y", "n")}}, true},
		"without names":       {engine.IOSpec{Inputs: []engine.IO{io("x", "")}, Outputs: []engine.IO{io("y", "")}}, true},
		"other dimension":     {engine.IOSpec{Inputs: []engine.IO{io("x", "n")}, Outputs: []engine.IO{io("y", "boxes")}}, false},
		"fixed output":        {engine.IOSpec{Inputs: []engine.IO{io("x", "n")}, Outputs: []engine.IO{fixed}}, false},
		"scalar":              {engine.IOSpec{Inputs: []engine.IO{io("x")}, Outputs: []engine.IO{io("y", "n")}}, false},
	} {
		if got := ruleFor(c.spec) != nil; got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Many goroutines over two queues for the race detector; every answer is the
// request's own.
func TestConcurrent(t *testing.T) {
	s := New(Options{Runs: 2})
	var wg sync.WaitGroup
	for range 2 {
		q := s.Queue(&encoder{fixed: 50 * time.Microsecond, each: time.Microsecond}, QueueOptions{})
		for g := range 16 {
			wg.Go(func() {
				for i := range int64(50) {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(5+g)*time.Millisecond)
					_, err := ask(ctx, q, 1+i%3, 1+(i*int64(g))%20, i+1)
					cancel()
					if err != nil && !errors.Is(err, ErrOverloaded) && !errors.Is(err, context.DeadlineExceeded) {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	if s.waiting != 0 || s.free != 2 {
		t.Errorf("left behind: %d waiting, %d free", s.waiting, s.free)
	}
}

func BenchmarkAlone(b *testing.B) {
	q := New(Options{}).Queue(nothing{&encoder{}}, QueueOptions{})
	feeds := text(1, 8, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := q.Run(context.Background(), feeds, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// nothing answers at once.
type nothing struct{ *encoder }

func (nothing) Run(context.Context, engine.Feeds, []string) (engine.Result, error) { return nil, nil }

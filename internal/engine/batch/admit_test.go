package batch

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

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

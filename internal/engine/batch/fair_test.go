package batch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

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

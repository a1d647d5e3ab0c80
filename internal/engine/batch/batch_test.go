package batch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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

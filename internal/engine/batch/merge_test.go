package batch

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

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

package data

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/rollout/capture"
	"github.com/fewbit/fewbit/internal/tensor"
)

// snapshotOf captures requests and returns the file of a snapshot and its key.
func snapshotOf(t *testing.T, requests ...engine.Feeds) (string, *capture.Key) {
	t.Helper()
	key, err := capture.ParseKey([]byte(strings.Repeat("0a", 32)))
	if err != nil {
		t.Fatal(err)
	}
	s, err := capture.Open(t.TempDir(), key)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Start("m", capture.Settings{PerSecond: 1e9}); err != nil {
		t.Fatal(err)
	}
	for _, r := range requests {
		rows := int64(0)
		for _, x := range r {
			rows = x.Dims[0]
		}
		s.Offer("m", "1", "infer", r, rows)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if st, err := s.Status("m"); err == nil && int64(st.Samples) == st.Seen {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the samples were not written within 30 s")
		}
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "data.captured"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := s.Snapshot("m", f); err != nil {
		t.Fatal(err)
	}
	return f.Name(), key
}

func TestCaptured(t *testing.T) {
	text := func(ids ...int64) *tensor.Tensor { return tensor.From(ids, 2, int64(len(ids)/2)) }
	path, key := snapshotOf(t, engine.Feeds{"input_ids": text(2, 7, 3, 0, 2, 8, 9, 3), "attention_mask": text(1, 1, 1, 0, 1, 1, 1, 1)})
	in := func(name string, dims ...int64) engine.IO {
		return engine.IO{Name: name, Type: tensor.Int64, Dims: dims}
	}
	spec := engine.IOSpec{Inputs: []engine.IO{in("input_ids", -1, -1), in("attention_mask", -1, -1)}}
	ds, err := Open(path, Options{Spec: spec, CaptureKey: key})
	if err != nil {
		t.Fatal(err)
	}
	defer ds.Close()
	if ds.Len() != 2 || ds.Kind() != "captured" || ds.Labelled() {
		t.Errorf("%d samples of kind %s", ds.Len(), ds.Kind())
	}
	for range 2 { // twice, from the start
		for i, want := range [][]int64{{2, 7, 3}, {2, 8, 9, 3}} {
			s, err := ds.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got := tensor.View[int64](s.Feeds["input_ids"]); !slices.Equal(got, want) || s.Tokens != len(want) {
				t.Errorf("sample %d: %v with %d tokens, want %v without padding", i, got, s.Tokens, want)
			}
		}
		if _, err := ds.Next(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("behind the last: %v", err)
		}
		if err := ds.Reset(); err != nil {
			t.Fatal(err)
		}
	}
	if err := RequireLabels(ds); !errors.Is(err, ErrNoLabels) || !strings.Contains(err.Error(), "captured inputs have none") {
		t.Errorf("labels: %v", err)
	}
	for name, c := range map[string]struct {
		o     Options
		want  error
		words string
	}{
		"no key":        {Options{Spec: spec}, ErrUnsupported, "samples.npz"},
		"another input": {Options{Spec: engine.IOSpec{Inputs: append([]engine.IO{in("token_type_ids", -1, -1)}, spec.Inputs...)}, CaptureKey: key}, ErrMismatch, "token_type_ids"},
	} {
		if _, err := Open(path, c.o); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
	narrow, err := Open(path, Options{Spec: engine.IOSpec{Inputs: []engine.IO{in("input_ids", -1, 3), in("attention_mask", -1, 3)}}, CaptureKey: key})
	if err != nil {
		t.Fatal(err)
	}
	defer narrow.Close()
	if _, err := narrow.Next(t.Context()); !errors.Is(err, ErrMismatch) {
		t.Errorf("another shape: %v", err)
	}
	if _, err := Check(t.Context(), path); !errors.Is(err, ErrFormat) {
		t.Errorf("a snapshot as an upload: %v", err)
	}
}

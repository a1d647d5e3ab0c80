package fake

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

var spec = engine.IOSpec{
	Inputs:  []engine.IO{{Name: "x", Type: tensor.Float32, Dims: []int64{1, -1}, DimNames: []string{"", "n"}}},
	Outputs: []engine.IO{{Name: "y", Type: tensor.Float32, Dims: []int64{1, -1}}},
}

func feeds(v ...float32) engine.Feeds { return engine.Feeds{"x": tensor.From(v, 1, int64(len(v)))} }

func open(t *testing.T, m Model) (*Engine, engine.Session) {
	t.Helper()
	e := &Engine{}
	e.Add("model.onnx", m)
	s, err := e.OpenFile(t.Context(), "/any/where/model.onnx", engine.Options{Threads: 3})
	if err != nil {
		t.Fatal(err)
	}
	return e, s
}

func TestRun(t *testing.T) {
	double := func(in engine.Feeds) (engine.Feeds, error) {
		out := in["x"].Clone()
		for i, v := range tensor.View[float32](out) {
			tensor.View[float32](out)[i] = 2 * v
		}
		return engine.Feeds{"y": out}, nil
	}
	for _, tc := range []struct {
		name string
		run  func(engine.Feeds) (engine.Feeds, error)
		want float32
	}{{"function", double, 6}, {"echo", nil, 3}} {
		t.Run(tc.name, func(t *testing.T) {
			e, s := open(t, Model{Spec: spec, Run: tc.run})
			r, err := s.Run(t.Context(), feeds(3), []string{"y"})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got := tensor.View[float32](r.Tensors()["y"])[0]; got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
			if o := e.Opens(); len(o) != 1 || o[0].Options.Threads != 3 {
				t.Errorf("opens %+v", o)
			}
		})
	}
}

func TestRules(t *testing.T) {
	boom := errors.New("boom")
	e, s := open(t, Model{Spec: spec, Run: func(engine.Feeds) (engine.Feeds, error) { return nil, boom }})
	done, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tc := range []struct {
		name string
		ctx  context.Context
		in   engine.Feeds
		outs []string
		want error
	}{
		{"missing input", t.Context(), engine.Feeds{}, nil, engine.ErrInput},
		{"unknown output", t.Context(), feeds(1), []string{"z"}, engine.ErrInput},
		{"function fails", t.Context(), feeds(1), nil, boom},
		{"cancelled before", done, feeds(1), nil, context.Canceled},
	} {
		if _, err := s.Run(tc.ctx, tc.in, tc.outs); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.want)
		}
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	if _, err := s.Run(t.Context(), feeds(1), nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := e.OpenFile(t.Context(), "other.onnx", engine.Options{}); !errors.Is(err, engine.ErrModel) {
		t.Errorf("unknown path: %v", err)
	}
	e.Add(Any, Model{OpenErr: boom})
	if _, err := e.OpenFile(t.Context(), "other.onnx", engine.Options{}); !errors.Is(err, boom) {
		t.Errorf("OpenErr: %v", err)
	}
}

func TestGateDelayAndClose(t *testing.T) {
	gate := make(chan struct{})
	e, s := open(t, Model{Spec: spec, Gate: gate})
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error, 2)
	for _, c := range []context.Context{ctx, t.Context()} {
		go func() {
			_, err := s.Run(c, feeds(1), nil)
			errs <- err
		}()
	}
	if err := e.WaitRunning(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-errs; !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled run: %v", err)
	}
	closed := make(chan struct{})
	go func() {
		_ = s.Close()
		close(closed)
	}()
	select {
	case <-closed:
		t.Fatal("Close did not wait for the run at the gate")
	case <-time.After(20 * time.Millisecond):
	}
	close(gate)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	<-closed
	if begun, running := e.Runs(); begun != 2 || running != 0 {
		t.Errorf("begun %d, running %d", begun, running)
	}

	_, slow := open(t, Model{Spec: spec, Delay: time.Hour})
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := slow.Run(short, feeds(1), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow run: %v", err)
	}
}

package ort

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

func TestAdd(t *testing.T) {
	s := open(t, add("n", 2), engine.Options{})
	want := engine.IOSpec{
		Inputs: []engine.IO{
			{Name: "a", Type: tensor.Float32, Dims: []int64{-1, 2}, DimNames: []string{"n", ""}},
			{Name: "b", Type: tensor.Float32, Dims: []int64{-1, 2}, DimNames: []string{"n", ""}}},
		Outputs:  []engine.IO{{Name: "sum", Type: tensor.Float32, Dims: []int64{-1, 2}, DimNames: []string{"n", ""}}},
		Metadata: map[string]string{"author": "test", "ключ": "значение"},
	}
	if got := s.Spec(); !reflect.DeepEqual(got, want) {
		t.Errorf("spec %+v\nwant %+v", got, want)
	}
	for _, n := range []int64{1, 3, 0, 7} {
		a, b := make([]float32, 2*n), make([]float32, 2*n)
		for i := range a {
			a[i], b[i] = float32(i), float32(10*i)
		}
		y := run(t, s, engine.Feeds{"a": tensor.From(a, n, 2), "b": tensor.From(b, n, 2)}).Tensors()["sum"]
		if err := y.Check(); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(y.Dims, []int64{n, 2}) || y.Type != tensor.Float32 {
			t.Errorf("n %d: got %v%v", n, y.Type, y.Dims)
		}
		for i, v := range tensor.View[float32](y) {
			if v != a[i]+b[i] {
				t.Errorf("n %d: element %d is %v, want %v", n, i, v, a[i]+b[i])
			}
		}
	}
}

// identityTypes are those for which ONNX Runtime has an Identity on the CPU.
var identityTypes = []tensor.DType{
	tensor.Float32, tensor.Uint8, tensor.Int8, tensor.Uint16, tensor.Int16, tensor.Int32, tensor.Int64, tensor.Bool,
	tensor.Float16, tensor.Float64, tensor.Uint32, tensor.Uint64, tensor.BFloat16,
	tensor.Float8E4M3FN, tensor.Float8E4M3FNUZ, tensor.Float8E5M2, tensor.Float8E5M2FNUZ,
}

func TestEveryType(t *testing.T) {
	for _, dt := range identityTypes {
		t.Run(dt.String(), func(t *testing.T) {
			s := open(t, identity(dt, nil, nil), engine.Options{})
			for _, dims := range [][]int64{{2, 3}, {1, 1}, {0, 4}} {
				x, err := tensor.New(dt, dims...)
				if err != nil {
					t.Fatal(err)
				}
				for i := range x.Data {
					x.Data[i] = byte(37*i + 1)
					if dt == tensor.Bool {
						x.Data[i] &= 1
					}
				}
				y := run(t, s, engine.Feeds{"x": x}).Tensors()["y"]
				if y.Type != dt || !slices.Equal(y.Dims, dims) || !bytes.Equal(y.Data, x.Data) {
					t.Errorf("got %v%v % x, want %v%v % x", y.Type, y.Dims, y.Data, dt, dims, x.Data)
				}
			}
		})
	}
}

func TestScalarAndRankless(t *testing.T) {
	s := open(t, identity(tensor.Int64), engine.Options{})
	if d := s.Spec().Inputs[0].Dims; d == nil || len(d) != 0 {
		t.Errorf("dimensions of a scalar are %v, want an empty list", d)
	}
	y := run(t, s, engine.Feeds{"x": tensor.From([]int64{math.MinInt64})}).Tensors()["y"]
	if len(y.Dims) != 0 || tensor.View[int64](y)[0] != math.MinInt64 {
		t.Errorf("got %v %v", y.Dims, tensor.View[int64](y))
	}

	m := identity(tensor.Float32)
	m.in, m.out = []*pb.ValueInfoProto{rankless("x", tensor.Float32)}, []*pb.ValueInfoProto{rankless("y", tensor.Float32)}
	s = open(t, m, engine.Options{})
	if d := s.Spec().Inputs[0].Dims; d != nil {
		t.Errorf("dimensions of an input of unknown rank are %v, want nil", d)
	}
	for _, dims := range [][]int64{{}, {2}, {1, 2, 1}} {
		n, _ := tensor.Elems(dims)
		y := run(t, s, engine.Feeds{"x": tensor.From(make([]float32, n), dims...)}).Tensors()["y"]
		if !slices.Equal(y.Dims, dims) {
			t.Errorf("got %v, want %v", y.Dims, dims)
		}
	}
}

func TestStrings(t *testing.T) {
	s := open(t, identity(tensor.String, nil), engine.Options{})
	for _, in := range [][][]byte{
		{},
		{[]byte("")},
		{[]byte("one"), nil, []byte("with\x00zero"), []byte("Größe 漢字 \xff\xfe"), bytes.Repeat([]byte("long "), 5000)},
	} {
		x := &tensor.Tensor{Type: tensor.String, Dims: []int64{int64(len(in))}, Strings: in}
		y := run(t, s, engine.Feeds{"x": x}).Tensors()["y"]
		if err := y.Check(); err != nil {
			t.Fatal(err)
		}
		for i := range in {
			if !bytes.Equal(in[i], y.Strings[i]) {
				t.Errorf("string %d is %q, want %q", i, y.Strings[i], in[i])
			}
		}
	}

	m := identity(tensor.String, nil)
	m.nodes[0] = node("StringConcat", []string{"x", "x"}, []string{"y"})
	s = open(t, m, engine.Options{})
	y := run(t, s, engine.Feeds{"x": {Type: tensor.String, Dims: []int64{2}, Strings: [][]byte{[]byte("ab"), []byte("c")}}}).Tensors()["y"]
	if string(y.Strings[0])+","+string(y.Strings[1]) != "abab,cc" {
		t.Errorf("got %q", y.Strings)
	}
}

// TestNoCopies: an output is not copied to the Go heap, an unaligned input works.
func TestNoCopies(t *testing.T) {
	s := open(t, identity(tensor.Float32, nil), engine.Options{})
	raw := make([]byte, 4*5+1)
	x := &tensor.Tensor{Type: tensor.Float32, Dims: []int64{5}, Data: raw[1:]}
	for i := range x.Data {
		x.Data[i] = byte(i)
	}
	r := run(t, s, engine.Feeds{"x": x})
	y := r.Tensors()["y"]
	if !bytes.Equal(y.Data, x.Data) {
		t.Errorf("got % x, want % x", y.Data, x.Data)
	}
	if p := uintptr(unsafe.Pointer(&y.Data[0])); p%16 != 0 {
		t.Errorf("output at %#x is not aligned", p)
	}
	r.Close()
	r.Close()
	if y.Data != nil || r.Tensors() != nil {
		t.Error("tensors are still readable after Close")
	}
}

// TestOutputThatIsAnInput: such an output is the caller's no more than any other. Batches
// are joined in memory that the next one overwrites, while answers are still written.
func TestOutputThatIsAnInput(t *testing.T) {
	x := value("x", tensor.Float32, "n", 2)
	s := open(t, testModel{in: []*pb.ValueInfoProto{x}, out: []*pb.ValueInfoProto{value("y", tensor.Float32, "n", 2), x},
		nodes: []*pb.NodeProto{node("Relu", []string{"x"}, []string{"y"})}}, engine.Options{})
	in := []float32{1, 2, 3, 4}
	res := run(t, s, engine.Feeds{"x": tensor.From(in, 2, 2)})
	clear(in)
	for name, got := range res.Tensors() {
		if v := tensor.View[float32](got); !slices.Equal(v, []float32{1, 2, 3, 4}) {
			t.Errorf("output %s is %v once the input is written to again", name, v)
		}
	}
}

func TestOptionalOutput(t *testing.T) {
	optional := func(name string) *pb.ValueInfoProto {
		v := value(name, tensor.Float32)
		v.Type = &pb.TypeProto{Value: &pb.TypeProto_OptionalType{OptionalType: &pb.TypeProto_Optional{ElemType: tensorType(tensor.Float32)}}}
		return v
	}
	s := open(t, testModel{
		in:  []*pb.ValueInfoProto{value("x", tensor.Float32, 2)},
		out: []*pb.ValueInfoProto{optional("none"), optional("some"), value("y", tensor.Float32, 2)},
		nodes: []*pb.NodeProto{
			node("Optional", nil, []string{"none"}, attrType("type", tensorType(tensor.Float32))),
			node("Optional", []string{"x"}, []string{"some"}),
			node("Neg", []string{"x"}, []string{"y"})},
	}, engine.Options{})
	out := run(t, s, engine.Feeds{"x": tensor.From([]float32{1, 2}, 2)}).Tensors()
	if _, ok := out["none"]; ok || len(out) != 2 {
		t.Errorf("outputs %v, want some and y", out)
	}
	if got := tensor.View[float32](out["some"]); !slices.Equal(got, []float32{1, 2}) {
		t.Errorf("some is %v", got)
	}
}

func TestChosenOutputs(t *testing.T) {
	s := open(t, testModel{
		in:  []*pb.ValueInfoProto{value("x", tensor.Float32, nil), value("i", tensor.Int64, nil)},
		out: []*pb.ValueInfoProto{value("y", tensor.Float32, nil), value("z", tensor.Float32, nil)},
		nodes: []*pb.NodeProto{node("Neg", []string{"x"}, []string{"y"}),
			node("Gather", []string{"x", "i"}, []string{"z"})},
	}, engine.Options{})
	in := engine.Feeds{"x": tensor.From([]float32{1, 2}, 2), "i": tensor.From([]int64{1}, 1)}
	for _, tc := range []struct{ ask, want []string }{
		{nil, []string{"y", "z"}}, {[]string{}, []string{"y", "z"}}, {[]string{"z"}, []string{"z"}},
		{[]string{"z", "y", "z"}, []string{"y", "z"}},
	} {
		out := run(t, s, in, tc.ask...).Tensors()
		if got := slices.Sorted(maps.Keys(out)); !slices.Equal(got, tc.want) {
			t.Errorf("asked for %q, got %q", tc.ask, got)
		}
		if z, ok := out["z"]; ok && tensor.View[float32](z)[0] != 2 {
			t.Errorf("asked for %q: z is %v", tc.ask, tensor.View[float32](z))
		}
		if y, ok := out["y"]; ok && tensor.View[float32](y)[0] != -1 {
			t.Errorf("asked for %q: y is %v", tc.ask, tensor.View[float32](y))
		}
	}
	if _, err := s.Run(t.Context(), in, []string{"y", "nope"}); !errors.Is(err, engine.ErrInput) || !strings.Contains(err.Error(), `"nope"`) {
		t.Errorf("unknown output: %v", err)
	}
	in["i"] = tensor.From([]int64{9}, 1)
	_, err := s.Run(t.Context(), in, []string{"z"})
	if !errors.Is(err, engine.ErrInput) || !strings.Contains(err.Error(), "idx=9") {
		t.Errorf("an index out of range: %v", err)
	}
}

func TestBadFeeds(t *testing.T) {
	s := open(t, identity(tensor.Bool, 3), engine.Options{})
	for name, in := range map[string]engine.Feeds{
		"nothing":      nil,
		"wrong name":   {"q": tensor.From([]bool{true, true, true}, 3)},
		"extra":        {"x": tensor.From([]bool{true, true, true}, 3), "q": tensor.From([]bool{true}, 1)},
		"wrong type":   {"x": tensor.From([]uint8{1, 1, 1}, 3)},
		"wrong rank":   {"x": tensor.From([]bool{true, true, true}, 1, 3)},
		"wrong length": {"x": tensor.From([]bool{true}, 1)},
		"short data":   {"x": {Type: tensor.Bool, Dims: []int64{3}, Data: []byte{1}}},
		"negative":     {"x": {Type: tensor.Bool, Dims: []int64{-3}, Data: []byte{1}}},
		"not a bool":   {"x": {Type: tensor.Bool, Dims: []int64{3}, Data: []byte{0, 1, 2}}},
	} {
		if _, err := s.Run(t.Context(), in, nil); !errors.Is(err, engine.ErrInput) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want ErrInput in one line", name, err)
		}
	}
}

// TestCancel stops a Loop that would run for thousands of years, and uses the
// session again.
func TestCancel(t *testing.T) {
	s := open(t, endless(), engine.Options{})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		start := time.Now()
		_, err := s.Run(ctx, engine.Feeds{"n": tensor.From([]int64{forever})}, nil)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the deadline", err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("stopping took %v", d)
		}
		y := run(t, s, engine.Feeds{"n": tensor.From([]int64{5})}).Tensors()["count"]
		if got := tensor.View[float32](y)[0]; got != 5 {
			t.Errorf("counted %v, want 5", got)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Run(ctx, engine.Feeds{"n": tensor.From([]int64{5})}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before: %v", err)
	}
	if _, err := newEngine(t).OpenFile(ctx, endless().file(t), engine.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("open with a cancelled context: %v", err)
	}
}

func TestClose(t *testing.T) {
	s := open(t, endless(), engine.Options{})
	r := run(t, s, engine.Feeds{"n": tensor.From([]int64{7})})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Run(ctx, engine.Feeds{"n": tensor.From([]int64{forever})}, nil)
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond)
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	select {
	case <-closed:
		t.Fatal("Close did not wait for the running Run")
	case <-time.After(20 * time.Millisecond):
	}
	if _, err := s.Run(t.Context(), engine.Feeds{"n": tensor.From([]int64{7})}, nil); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("Run during Close: %v", err)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("running Run: %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := s.EndProfile(); err != nil {
		t.Errorf("EndProfile after Close: %v", err)
	}
	if got := tensor.View[float32](r.Tensors()["count"])[0]; got != 7 {
		t.Errorf("a result read after the session's Close is %v, want 7", got)
	}
}

// TestConcurrent runs one session from 8 goroutines, some of them cancelled,
// with different shapes, while the race detector watches.
func TestConcurrent(t *testing.T) {
	const goroutines, runs = 8, 200
	s := open(t, add(nil), engine.Options{})
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			a, b := make([]float32, 64+g), make([]float32, 64+g)
			for i := range runs {
				for k := range a {
					a[k], b[k] = float32(g), float32(i)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if i%7 == 0 {
					go cancel()
				}
				r, err := s.Run(ctx, engine.Feeds{"a": tensor.From(a, int64(len(a))), "b": tensor.From(b, int64(len(b)))}, nil)
				cancel()
				if errors.Is(err, context.Canceled) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				for _, v := range tensor.View[float32](r.Tensors()["sum"]) {
					if v != float32(g+i) {
						t.Errorf("got %v, want %d", v, g+i)
						break
					}
				}
				r.Close()
			}
		})
	}
	wg.Wait()
}

// TestCancelLoad stops a load at many points: it ends in a session or in the
// context's error, and leaves nothing behind that disturbs the next.
func TestCancelLoad(t *testing.T) {
	path := miniLM(t)
	for _, after := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 20 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(t.Context(), after)
		s, err := newEngine(t).Open(ctx, path, engine.Options{})
		cancel()
		if err == nil {
			err = s.Close()
		} else if errors.Is(err, context.DeadlineExceeded) {
			err = nil
		}
		if err != nil {
			t.Errorf("after %v: %v", after, err)
		}
	}
	run(t, openFile(t, path, engine.Options{}), miniLMFeeds(101, 102))
}

// Opening and closing a model leaves nothing behind, not even its path.
func TestSessionsAreFreed(t *testing.T) {
	e := newEngine(t)
	dir := t.TempDir()
	for len(dir) < 3500 {
		dir = filepath.Join(dir, strings.Repeat("d", 200))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "model.onnx")
	if err := os.Rename(identity(tensor.Float32, 1).file(t), path); err != nil {
		t.Fatal(err)
	}
	const opens, most = 1500, 2 << 20 // the paths alone are 5 MB
	var before int64
	for i := range opens + 100 {
		s, err := e.OpenFile(t.Context(), path, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if i == 99 {
			before = malloced(t)
		}
	}
	if grown := malloced(t) - before; grown > most {
		t.Errorf("%d sessions left %d kB behind", opens, grown>>10)
	}
}

// malloced is the process's memory without Go's heap, once what is free is given
// back.
func malloced(t *testing.T) int64 {
	t.Helper()
	newEngine(t).Trim()
	debug.FreeOSMemory()
	m, err := engine.ReadMemory()
	if err != nil {
		t.Skip(err)
	}
	var g runtime.MemStats
	runtime.ReadMemStats(&g)
	return m.Anon - int64(g.HeapInuse)
}

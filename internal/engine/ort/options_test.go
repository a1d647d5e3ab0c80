package ort

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// matmul is x[n,k] times a weight of k by k ones, plus Relu twice: something
// to optimize and to share between threads.
func matmul(k int) testModel {
	w := make([]float32, k*k)
	for i := range w {
		w[i] = 1
	}
	return testModel{
		in:   []*pb.ValueInfoProto{value("x", tensor.Float32, "n", k)},
		out:  []*pb.ValueInfoProto{value("y", tensor.Float32, "n", k)},
		init: []*pb.TensorProto{initializer("w", tensor.From(w, int64(k), int64(k)))},
		nodes: []*pb.NodeProto{node("MatMul", []string{"x", "w"}, []string{"m"}),
			node("Identity", []string{"m"}, []string{"i"}), node("Relu", []string{"i"}, []string{"y"})},
	}
}

func tasks(t *testing.T) int {
	d, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip("needs /proc/self/task")
	}
	return len(d)
}

func TestThreads(t *testing.T) {
	const k, own = 64, 24 // many more threads than the Go runtime starts meanwhile
	x := make([]float32, 8*k)
	for i := range x {
		x[i] = float32(i % 5)
	}
	in := engine.Feeds{"x": tensor.From(x, 8, k)}
	n0 := tasks(t)
	shared := open(t, matmul(k), engine.Options{})
	if n := tasks(t) - n0; n >= own-1 {
		t.Errorf("a session with the shared pool started %d threads", n)
	}
	n0 = tasks(t)
	private := open(t, matmul(k), engine.Options{Threads: own})
	if n := tasks(t) - n0; n < own-1 {
		t.Errorf("a session with %d threads of its own started %d", own, n)
	}
	a, b := run(t, shared, in).Tensors()["y"], run(t, private, in).Tensors()["y"]
	if !bytes.Equal(a.Data, b.Data) {
		t.Error("results differ by the number of threads")
	}
	for _, threads := range []int{-1, MaxThreads + 1} {
		if _, err := newEngine(t).Open(t.Context(), add(1).file(t), engine.Options{Threads: threads}); err == nil {
			t.Errorf("%d threads were accepted", threads)
		}
	}
}

func TestOptimizedModelPath(t *testing.T) {
	for _, tc := range []struct {
		name string
		off  bool
		want []string
	}{{"optimized", false, []string{"MatMul", "Relu"}}, {"as written", true, []string{"MatMul", "Identity", "Relu"}}} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "out.onnx")
			s := open(t, matmul(64), engine.Options{OptimizedModelPath: path, DisableOptimization: tc.off})
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var m pb.ModelProto
			if err := proto.Unmarshal(b, &m); err != nil {
				t.Fatal(err)
			}
			var ops []string
			for _, n := range m.Graph.Node {
				ops = append(ops, n.GetOpType())
			}
			if !slices.Equal(ops, tc.want) {
				t.Errorf("operators %q, want %q", ops, tc.want)
			}
			if len(b) >= 64*64*4 {
				t.Errorf("the graph's file has %d bytes: its weights are not in the other file", len(b))
			}
			// It is a whole model.
			again := openFile(t, path, engine.Options{})
			in := engine.Feeds{"x": tensor.From(make([]float32, 64), 1, 64)}
			if a, b := run(t, s, in).Tensors()["y"], run(t, again, in).Tensors()["y"]; !bytes.Equal(a.Data, b.Data) {
				t.Error("the optimized model computes something else")
			}
		})
	}
	_, err := newEngine(t).Open(t.Context(), matmul(2).file(t), engine.Options{OptimizedModelPath: filepath.Join(t.TempDir(), "no", "m.onnx")})
	if err == nil {
		t.Error("an optimized model in a folder that does not exist was accepted")
	}
}

// miniLM returns the sentence encoder's file, or skips.
func miniLM(t testing.TB) string {
	t.Helper()
	for up := range depsLevels {
		dir := strings.Repeat("../", up)
		p := filepath.Join(dir, ".deps", "models", "minilm-fused", "model.onnx")
		if _, err := os.Stat(p); err == nil {
			return p
		}
	}
	t.Skip(`.deps/models/minilm-fused is missing: run "make deps"`)
	return ""
}

func miniLMFeeds(ids ...int64) engine.Feeds {
	n := int64(len(ids))
	return engine.Feeds{"input_ids": tensor.From(ids, 1, n), "token_type_ids": tensor.From(make([]int64, n), 1, n),
		"attention_mask": tensor.From(slices.Repeat([]int64{1}, len(ids)), 1, n)}
}

// TestMiniLM compares with onnxruntime 1.32.0 for Python on the same file:
// "[CLS] hello world [SEP]".
func TestMiniLM(t *testing.T) {
	// Kernels differ by processor: this is far below what a wrong input would give.
	const tolerance = 1e-3
	prefix := filepath.Join(t.TempDir(), "p")
	optimized := filepath.Join(t.TempDir(), "optimized.onnx")
	s := openFile(t, miniLM(t), engine.Options{Profile: prefix, OptimizedModelPath: optimized})
	y := run(t, s, miniLMFeeds(101, 7592, 2088, 102)).Tensors()["last_hidden_state"]
	if !slices.Equal(y.Dims, []int64{1, 4, 384}) {
		t.Fatalf("shape %v", y.Dims)
	}
	v, sum := tensor.View[float32](y), 0.0
	for i, want := range []float64{0.17644453048706055, 0.039365824311971664, 0.0779019445180893, 0.25854188203811646} {
		if d := math.Abs(float64(v[i]) - want); d > tolerance {
			t.Errorf("element %d is %v, want %v", i, v[i], want)
		}
	}
	for _, x := range v {
		sum += math.Abs(float64(x))
	}
	if want := 527.342041015625; math.Abs(sum-want) > want*tolerance {
		t.Errorf("sum of absolute values %v, want %v", sum, want)
	}
	file, err := s.EndProfile()
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	nodes, err := ParseProfile(f)
	if err != nil {
		t.Fatal(err)
	}
	matmuls := 0
	for _, n := range nodes {
		if n.Op == "MatMul" || n.Op == "Gemm" || n.Op == "FusedMatMul" || n.Op == "Attention" {
			matmuls++
		}
	}
	if len(nodes) < 30 || matmuls < 12 {
		t.Errorf("%d nodes ran, %d of them products", len(nodes), matmuls)
	}
	if st, err := os.Stat(optimized); err != nil || st.Size() > 1<<20 {
		t.Errorf("optimized graph: %v, %v", st, err)
	}
	_, err = s.Run(t.Context(), miniLMFeeds(101, 1<<40, 102), nil)
	checkLeaks(t, err, engine.ErrInput, filepath.Dir(prefix))
}

// TestLean: a lean session computes the same, holds no second copy of its weights
// and keeps nothing between runs, however large they are.
func TestLean(t *testing.T) {
	const k, rows = 2048, 4096 // 16 MiB of weights, 32 MiB a value
	grown := func(o engine.Options) (int64, float32) {
		m := matmul(k)
		in := engine.Feeds{"x": tensor.From(make([]float32, k*rows), rows, k)}
		for i := range tensor.View[float32](in["x"]) {
			tensor.View[float32](in["x"])[i] = float32(i%7) / 7
		}
		before, err := engine.ReadMemory()
		if err != nil {
			t.Skip(err)
		}
		s := open(t, m, o)
		defer s.Close()
		var y float32
		for range 2 {
			r, err := s.Run(t.Context(), in, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range r.Tensors() {
				y = tensor.View[float32](v)[5]
			}
			r.Close()
		}
		after, err := engine.ReadMemory()
		if err != nil {
			t.Fatal(err)
		}
		return after.Anon - before.Anon, y
	}
	plain, want := grown(engine.Options{})
	lean, got := grown(engine.Options{Lean: true, ShrinkMemory: true})
	if math.Abs(float64(got-want)) > 1e-3*math.Abs(float64(want)) {
		t.Errorf("lean gives %g, plain %g", got, want)
	}
	if lean > plain-16<<20 {
		t.Errorf("a lean session holds %d MB, a plain one %d", lean>>20, plain>>20)
	}
}

// TestMemory: what large runs needed goes back to the system, with ShrinkMemory
// at once and otherwise on Close.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	const k, rows = 256, 16384 // 16 MiB a tensor
	const tensorBytes = 4 * k * rows
	rss := func() int64 {
		m, err := engine.ReadMemory()
		if err != nil {
			t.Skip(err)
		}
		return m.RSS
	}
	in := engine.Feeds{"x": tensor.From(make([]float32, k*rows), rows, k)}
	for i := range tensor.View[float32](in["x"]) {
		tensor.View[float32](in["x"])[i] = 1
	}
	small := engine.Feeds{"x": tensor.From(make([]float32, k), 1, k)}
	for _, shrink := range []bool{true, false} {
		s := open(t, matmul(k), engine.Options{ShrinkMemory: shrink})
		// A result that is still open would keep its session's arena.
		once := func(in engine.Feeds) {
			r, err := s.Run(t.Context(), in, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
		}
		once(small)
		before := rss()
		for range 3 {
			once(in)
		}
		once(small) // shrinking happens at the end of a run
		switch grown := rss() - before; {
		case shrink && grown > tensorBytes/2:
			t.Errorf("with ShrinkMemory %d MB are kept", grown>>20)
		case !shrink && grown < tensorBytes/2:
			t.Errorf("without ShrinkMemory only %d MB are kept: the test no longer tests", grown>>20)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if grown := rss() - before; grown > tensorBytes/2 {
			t.Errorf("after Close (shrink %v) %d MB are kept", shrink, grown>>20)
		}
	}
}

// TestLeak: ten thousand runs, failed and cancelled ones among them, and
// hundreds of sessions leave the memory flat.
func TestLeak(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	const runs, sessions, allowed = 10_000, 200, 6 << 20
	s := open(t, identity(tensor.String, nil), engine.Options{})
	gather := open(t, testModel{
		in:    []*pb.ValueInfoProto{value("x", tensor.Float32, nil), value("i", tensor.Int64, nil)},
		out:   []*pb.ValueInfoProto{value("z", tensor.Float32, nil)},
		nodes: []*pb.NodeProto{node("Gather", []string{"x", "i"}, []string{"z"})},
	}, engine.Options{})
	path := matmul(128).file(t)
	x := &tensor.Tensor{Type: tensor.String, Dims: []int64{2}, Strings: [][]byte{bytes.Repeat([]byte("a"), 1000), []byte("b")}}
	good := engine.Feeds{"x": tensor.From(make([]float32, 500), 500), "i": tensor.From([]int64{1, 2}, 2)}
	bad := engine.Feeds{"x": good["x"], "i": tensor.From([]int64{1000}, 1)}
	work := func(runs, sessions int) {
		for i := range runs {
			r, err := s.Run(t.Context(), engine.Feeds{"x": x}, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			if r, err = gather.Run(t.Context(), good, nil); err != nil {
				t.Fatal(err)
			}
			r.Close()
			if i%4 == 0 {
				if _, err := gather.Run(t.Context(), bad, nil); err == nil {
					t.Fatal("an index out of range was accepted")
				}
			}
		}
		for range sessions {
			m := openFile2(t, path)
			r, err := m.Run(t.Context(), engine.Feeds{"x": tensor.From(make([]float32, 128), 1, 128)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			if err := m.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	work(runs/5, sessions/5)
	before, err := engine.ReadMemory()
	if err != nil {
		t.Skip(err)
	}
	work(runs, sessions)
	after, err := engine.ReadMemory()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("RSS %d kB before, %d kB after %d runs and %d sessions", before.RSS>>10, after.RSS>>10, runs, sessions)
	if grown := after.RSS - before.RSS; grown > allowed {
		t.Errorf("RSS grew by %d kB", grown>>10)
	}
}

// openFile2 is openFile without the Cleanup, for sessions closed by the test.
func openFile2(t *testing.T, path string) *Session {
	t.Helper()
	s, err := newEngine(t).Open(t.Context(), path, engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestLargeRequestGivesItsMemoryBack: one request far larger than the usual
// ones must not keep the session's memory at its peak.
func TestLargeRequestGivesItsMemoryBack(t *testing.T) {
	s := open(t, matmul(512), engine.Options{})
	run := func(rows int64) {
		x, err := tensor.New(tensor.Float32, rows, 512)
		if err != nil {
			t.Fatal(err)
		}
		in := engine.Feeds{}
		for _, io := range s.Spec().Inputs {
			in[io.Name] = x
		}
		r, err := s.Run(t.Context(), in, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
	}
	for range 20 {
		run(4)
	}
	if s.unusual(engine.Feeds{}) {
		t.Error("an empty request counts as large")
	}
	before := s.usual.Load()
	run(20000)
	if after := s.usual.Load(); after > 2*before {
		t.Errorf("one large request moved the usual size from %d to %d", before, after)
	}
	if s.large.get() == nil {
		t.Error("the large request did not run with the arena shrunk")
	}
}

// Threads spin during runs only: a server at rest takes no processor.
func TestIdleCPU(t *testing.T) {
	const rest, allowed = 300 * time.Millisecond, 60 * time.Millisecond
	s := open(t, matmul(64), engine.Options{})
	in := engine.Feeds{"x": tensor.From(make([]float32, 512*64), 512, 64)}
	for range 20 {
		run(t, s, in)
	}
	before := cpuTime(t)
	time.Sleep(rest)
	if used := cpuTime(t) - before; used > allowed {
		t.Errorf("after a run the process took %v of the processor in %v", used, rest)
	}
}

// cpuTime returns what this process has used of all processors.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestNoSpinIsTheProcess(t *testing.T) {
	newEngine(t)
	if _, err := New(Config{NoSpin: true}); !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("a process whose threads spin was asked not to: %v", err)
	}
}

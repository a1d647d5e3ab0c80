package ort

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

func withKernels(t *testing.T) *Engine {
	t.Helper()
	e := newEngine(t)
	if e.Kernels().Path == "" {
		t.Skipf("needs bin/libfewbit_cpu.so (make build): %s", e.Kernels().Reason)
	}
	return e
}

func TestFindKernels(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	given := touch(t, filepath.Join(dir, "given", kernelsFile))
	env := touch(t, filepath.Join(dir, "env", kernelsFile))
	beside := touch(t, filepath.Join(dir, "ort", kernelsFile))
	work := filepath.Join(dir, "repo", "internal", "x")
	if err := os.MkdirAll(work, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Chdir(work)
	for _, tc := range []struct{ explicit, env, library, want string }{
		{given, env, "", given}, {filepath.Dir(given), env, "", given}, {"", env, "", env}, {"", KernelsOff, filepath.Join(dir, "ort", "lib.so"), ""},
		{KernelsOff, env, "", ""}, {"", "", filepath.Join(dir, "ort", "lib.so"), beside}, {"", "", "", ""},
	} {
		t.Setenv(EnvKernels, tc.env)
		if got, err := FindKernels(tc.explicit, tc.library); err != nil || got != tc.want {
			t.Errorf("FindKernels(%q, %q) with %q in the environment: %q, %v; want %q", tc.explicit, tc.library, tc.env, got, err, tc.want)
		}
	}
	bin := touch(t, filepath.Join(dir, "repo", "bin", kernelsFile))
	t.Setenv(EnvKernels, "")
	if got, err := FindKernels("", ""); err != nil || got != bin {
		t.Errorf("from bin/: %q, %v; want %q", got, err, bin)
	}
	if _, err := FindKernels(filepath.Join(dir, "nothing"), ""); !errors.Is(err, engine.ErrUnavailable) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("a library that is not there: %v, want ErrUnavailable with the remedy", err)
	}
}

// TestKernelsThatDoNotFit: a library of another version, and what is no
// library at all. Each in a process of its own, whose engine is not made yet.
func TestKernelsThatDoNotFit(t *testing.T) {
	if lib := os.Getenv("FEWBIT_TEST_KERNELS"); lib != "" {
		_, err := New(Config{Kernels: lib, Threads: 1})
		fmt.Printf("asked: %v\n", err)
		t.Setenv(EnvKernels, "")
		return
	}
	newEngine(t)
	dir := t.TempDir()
	other := filepath.Join(dir, "other.so")
	src := filepath.Join(dir, "other.c")
	text := "const void *fewbit_cpu_get_api(unsigned abi) { return 0; }\nvoid *RegisterCustomOps(void *o, const void *b) { return 0; }\n"
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cc", "-shared", "-fPIC", "-o", other, src).CombinedOutput(); err != nil {
		t.Skipf("needs a C compiler: %v: %s", err, out)
	}
	for lib, want := range map[string]string{other: "of another version", touch(t, filepath.Join(dir, "text.so")): "cannot be used"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKernelsThatDoNotFit$")
		cmd.Env = append(os.Environ(), "FEWBIT_TEST_KERNELS="+lib)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "asked: engine unavailable") || !strings.Contains(string(out), want) || !strings.Contains(string(out), "make build") {
			t.Errorf("%s: %v\n%s", filepath.Base(lib), err, out)
		}
	}
}

// TestLevelThatIsNotThere: FEWBIT_CPU_LEVEL with a level that this processor lacks, in
// a process of its own: the level is decided once.
func TestLevelThatIsNotThere(t *testing.T) {
	if os.Getenv("FEWBIT_TEST_LEVEL_REFUSED") != "" {
		e := withKernels(t)
		m := bf16Product(t, e, []float32{1}, 1, 1, nil)
		_, err := e.Open(t.Context(), m.file(t), engine.Options{})
		fmt.Printf("opened: %v\n", err)
		return
	}
	levels := []string{"no-such-level"}
	if withKernels(t).Kernels().Name != "amx" {
		levels = append(levels, "amx")
	}
	for _, level := range levels {
		cmd := exec.Command(os.Args[0], "-test.run=^TestLevelThatIsNotThere$")
		cmd.Env = append(os.Environ(), "FEWBIT_TEST_LEVEL_REFUSED=1", "FEWBIT_CPU_LEVEL="+level)
		out, err := cmd.CombinedOutput()
		line, _, _ := strings.Cut(string(out), "\n")
		if err != nil || !strings.HasPrefix(line, "opened: engine unavailable") || !strings.Contains(line, "FEWBIT_CPU_LEVEL="+level+" cannot be taken") {
			t.Errorf("%s: %v\n%s", level, err, out)
		}
	}
}

// bf16Product is y = act(x w + b) through fewbit.MatMulBF16.
func bf16Product(t *testing.T, e *Engine, w []float32, k, n int, bias []float32, attrs ...*pb.AttributeProto) testModel {
	t.Helper()
	packed := make([]byte, e.BF16Size(k, n))
	if err := e.PackBF16(w, k, n, packed, 2); err != nil {
		t.Fatal(err)
	}
	in := []string{"x", "w"}
	m := testModel{
		in: []*pb.ValueInfoProto{value("x", tensor.Float32, "batch", "row", k)}, out: []*pb.ValueInfoProto{rankless("y", tensor.Float32)},
		init:    []*pb.TensorProto{initializer("w", tensor.From(packed, int64(len(packed))))},
		domains: []string{"fewbit"},
	}
	if bias != nil {
		in = append(in, "b")
		m.init = append(m.init, initializer("b", tensor.From(bias, int64(len(bias)))))
	}
	m.nodes = []*pb.NodeProto{node("MatMulBF16", in, []string{"y"}, append(attrs, attrInt("N", int64(n)))...)}
	m.nodes[0].Domain = proto.String("fewbit")
	return m
}

func attrInt(name string, v int64) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_INT.Enum(), I: proto.Int64(v)}
}

func attrString(name, v string) *pb.AttributeProto {
	return &pb.AttributeProto{Name: proto.String(name), Type: pb.AttributeProto_STRING.Enum(), S: []byte(v)}
}

func randoms(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// bf16Tolerance: each operand keeps 8 significant bits.
const bf16Tolerance = 1.0 / 127

// TestAddGramBF16: the sums of products of rounded values, past one share of a thread;
// what does not fit together is refused.
func TestAddGramBF16(t *testing.T) {
	e := withKernels(t)
	r := rand.New(rand.NewPCG(4, 0))
	const rows, k = 37, 5*48 + 3
	x, sum := randoms(r, rows*k), randoms(r, k*(k+1)/2)
	for i, v := range x { // so that BF16 holds them
		x[i] = math.Float32frombits(math.Float32bits(v) &^ 0xffff)
	}
	packed := make([]byte, e.BF16Size(rows, k))
	var first []float32
	for _, threads := range []int{1, 3} {
		got := slices.Clone(sum)
		if err := e.AddGramBF16(got, x, k, packed, threads); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = got
		} else if !slices.Equal(first, got) {
			t.Errorf("%d threads change the sums", threads)
		}
	}
	for i := range k {
		for j := range i + 1 {
			at := i*(i+1)/2 + j
			want, size := float64(sum[at]), 1.
			for q := range rows {
				p := float64(x[q*k+i]) * float64(x[q*k+j])
				want, size = want+p, size+math.Abs(p)
			}
			if math.Abs(float64(first[at])-want) > 1e-6*size {
				t.Fatalf("sum [%d,%d] is %v, want %v", i, j, first[at], want)
			}
		}
	}
	for _, bad := range []struct {
		sum, x []float32
		k      int
		packed []byte
	}{{sum[1:], x, k, packed}, {sum, x[1:], k, packed}, {sum, x, 0, packed}, {sum, x, k, packed[1:]}, {nil, nil, -1, nil}} {
		if err := e.AddGramBF16(bad.sum, bad.x, bad.k, bad.packed, 2); !errors.Is(err, engine.ErrModel) {
			t.Errorf("%d sums, %d values, %d columns, %d bytes: %v", len(bad.sum), len(bad.x), bad.k, len(bad.packed), err)
		}
	}
}

// TestSolveLoopsRefuse what would read or write beside its operands; internal/quant tests
// their numbers.
func TestSolveLoopsRefuse(t *testing.T) {
	e := withKernels(t)
	const k, n = 4, 20
	w, codes, d, column := make([]float32, k*n), make([]int8, k*n), make([]float32, 2*n), slices.Repeat([]float32{1}, n)
	m, order := make([]float32, k*k), []int{0, 3}
	can := slices.Contains([]string{"avx512-vnni", "avx512-bf16", "amx"}, e.Kernels().Name)
	if got := e.RoundStrip(m, k, order, w, nil, column, n, 0, n, -7, 7, d, codes); got != can {
		t.Errorf("RoundStrip: %v at level %s", got, e.Kernels().Name)
	}
	if got := e.ClipScales(w, n, 0, n, m[:k], []float32{1}, 7, column); got != can {
		t.Errorf("ClipScales: %v at level %s", got, e.Kernels().Name)
	}
	for i, done := range []bool{
		e.RoundStrip(m[:k+1], k, order, w, nil, column, n, 0, n, -7, 7, d, codes),
		e.RoundStrip(m, 1, order, w, nil, column, n, 0, n, -7, 7, d, codes),
		e.RoundStrip(m, k, []int{0, k}, w, nil, column, n, 0, n, -7, 7, d, codes),
		e.RoundStrip(m, k, []int{-1, 0}, w, nil, column, n, 0, n, -7, 7, d, codes),
		e.RoundStrip(m, k, nil, w, nil, column, n, 0, n, -7, 7, d, codes),
		e.RoundStrip(make([]float32, 65*65), 65, make([]int, 65), w, nil, column, n, 0, n, -7, 7, make([]float32, 65*n), codes),
		e.RoundStrip(m, k, order, w, d[1:], column, n, 0, n, -7, 7, d, codes),
		e.RoundStrip(m, k, order, w, nil, column[1:], n, 0, n, -7, 7, d, codes),
		e.RoundStrip(m, k, order, w, nil, column, n, 0, n+1, -7, 7, d, codes),
		e.RoundStrip(m, k, order, w, nil, column, n, -1, n, -7, 7, d, codes),
		e.RoundStrip(m, k, order, w, nil, column, n, 2, 1, -7, 7, d, codes),
		e.RoundStrip(m, k, order, w, nil, column, n, 0, n, -7, 7, d[1:], codes),
		e.RoundStrip(m, k, order, w, nil, column, n, 0, n, -7, 7, d, codes[1:]),
		e.ClipScales(w[1:], n, 0, n, m[:k], []float32{1}, 7, column),
		e.ClipScales(w, n, 0, n+1, m[:k], []float32{1}, 7, column),
		e.ClipScales(w, n, -1, n, m[:k], []float32{1}, 7, column),
		e.ClipScales(w, n, 0, n, nil, []float32{1}, 7, column),
		e.ClipScales(w, n, 0, n, m[:k], nil, 7, column),
		e.ClipScales(w, n, 0, n, m[:k], []float32{1}, 7, column[1:]),
	} {
		if done {
			t.Errorf("case %d was done", i)
		}
	}
}

func TestMatMulBF16(t *testing.T) {
	e := withKernels(t)
	r := rand.New(rand.NewPCG(1, 1))
	for _, s := range []struct{ batch, rows, k, n int }{{1, 1, 1, 1}, {2, 3, 17, 49}, {1, 128, 96, 200}, {3, 67, 40, 48}, {0, 5, 16, 16}, {1, 700, 33, 100}} {
		w, bias := randoms(r, s.k*s.n), randoms(r, s.n)
		m := bf16Product(t, e, w, s.k, s.n, bias)
		x := randoms(r, s.batch*s.rows*s.k)
		var first []float32
		for _, threads := range []int{0, 1, 3} {
			sess := open(t, m, engine.Options{Threads: threads})
			y := run(t, sess, engine.Feeds{"x": tensor.From(x, int64(s.batch), int64(s.rows), int64(s.k))}).Tensors()["y"]
			if len(y.Dims) != 3 || y.Dims[0] != int64(s.batch) || y.Dims[1] != int64(s.rows) || y.Dims[2] != int64(s.n) {
				t.Fatalf("%+v: output %v", s, y.Dims)
			}
			got := tensor.View[float32](y)
			if first == nil {
				first = append([]float32{}, got...)
			}
			for i, v := range got {
				if math.Float32bits(v) != math.Float32bits(first[i]) {
					t.Fatalf("%+v: %d threads change element %d: %v, %v", s, threads, i, v, first[i])
				}
			}
		}
		for i, v := range first {
			row, c := i/s.n, i%s.n
			want, size := float64(bias[c]), math.Abs(float64(bias[c]))
			for k := range s.k {
				p := float64(x[row*s.k+k]) * float64(w[k*s.n+c])
				want, size = want+p, size+math.Abs(p)
			}
			if math.Abs(float64(v)-want) > bf16Tolerance*size {
				t.Fatalf("%+v: element %d is %v, want %v", s, i, v, want)
			}
		}
	}
}

// TestUnnamedDimensions: behind an input whose dimensions are neither known nor
// named, as in the second layer of an exported encoder, a reader may still take
// two of them as the target of a Reshape.
func TestUnnamedDimensions(t *testing.T) {
	e := withKernels(t)
	r := rand.New(rand.NewPCG(3, 3))
	const k, n = 8, 12
	m := bf16Product(t, e, randoms(r, k*n), k, n, nil)
	m.in = []*pb.ValueInfoProto{value("flat", tensor.Float32, "elements"), value("dims", tensor.Int64, 3)}
	m.out = []*pb.ValueInfoProto{rankless("z", tensor.Float32)}
	m.init = append(m.init, initializer("i0", tensor.From([]int64{0}, 1)), initializer("i1", tensor.From([]int64{1}, 1)), initializer("heads", tensor.From([]int64{3, 4}, 2)))
	m.nodes = append([]*pb.NodeProto{node("Reshape", []string{"flat", "dims"}, []string{"x"})}, append(m.nodes,
		node("Shape", []string{"y"}, []string{"s"}), node("Gather", []string{"s", "i0"}, []string{"s0"}), node("Gather", []string{"s", "i1"}, []string{"s1"}),
		node("Concat", []string{"s0", "s1", "heads"}, []string{"target"}, attrInt("axis", 0)), node("Reshape", []string{"y", "target"}, []string{"z"}))...)
	sess := open(t, m, engine.Options{})
	z := run(t, sess, engine.Feeds{"flat": tensor.From(randoms(r, 2*5*k), 2*5*k), "dims": tensor.From([]int64{2, 5, k}, 3)}).Tensors()["z"]
	if !slices.Equal(z.Dims, []int64{2, 5, 3, 4}) {
		t.Errorf("output %v, want [2 5 3 4]", z.Dims)
	}
}

// TestMatMulBF16Refuses: nodes and feeds that do not fit end in an error.
func TestMatMulBF16Refuses(t *testing.T) {
	e := withKernels(t)
	r := rand.New(rand.NewPCG(2, 2))
	good := func() testModel { return bf16Product(t, e, randoms(r, 32*20), 32, 20, randoms(r, 20)) }
	cut := func(m testModel, n int) testModel {
		b := m.init[0].RawData[:n]
		m.init[0] = initializer("w", tensor.From(b, int64(len(b))))
		return m
	}
	for name, m := range map[string]testModel{
		"a weight that was cut":  cut(good(), 100),
		"a weight of nothing":    cut(good(), 0),
		"another activation":     bf16Product(t, e, randoms(r, 32*20), 32, 20, nil, attrString("activation", "tanh")),
		"a bias of another size": bf16Product(t, e, randoms(r, 32*20), 32, 20, randoms(r, 21)),
		"a weight that is an input": func() testModel {
			m := good()
			m.in = append(m.in, value("w", tensor.Uint8, "bytes"))
			m.init = m.init[1:]
			return m
		}(),
		"a wrong N": func() testModel {
			m := good()
			m.nodes[0].Attribute = []*pb.AttributeProto{attrInt("N", 1<<40)}
			return m
		}(),
	} {
		s, err := e.Open(context.Background(), m.file(t), engine.Options{})
		if err == nil {
			_, err = s.Run(context.Background(), engine.Feeds{"x": tensor.From(make([]float32, 32), 1, 1, 32)}, nil)
			s.Close()
		}
		if !errors.Is(err, engine.ErrModel) && !errors.Is(err, engine.ErrInput) {
			t.Errorf("%s: %v, want ErrModel or ErrInput", name, err)
		}
	}
	m := good()
	m.in[0] = rankless("x", tensor.Float32)
	s := open(t, m, engine.Options{})
	for _, x := range []*tensor.Tensor{tensor.From([]float32{1}), tensor.From(make([]float32, 31), 1, 31), tensor.From([]float32{}, 4, 0)} {
		if _, err := s.Run(context.Background(), engine.Feeds{"x": x}, nil); !errors.Is(err, engine.ErrInput) && !errors.Is(err, engine.ErrModel) {
			t.Errorf("x%v: %v, want an error", x.Dims, err)
		}
	}
}

package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/report"
	"github.com/fewbit/fewbit/internal/search"
	"github.com/fewbit/fewbit/internal/tensor"
)

// keptCase is a weight of each kind with what is wanted of it.
func keptCase(four bool, key byte) (want, entry) {
	r := rand.New(rand.NewPCG(3, uint64(key)))
	w := want{key: digest{0: key}, eight: !four}
	e := entry{gain: quant.Gain{Solved: .5, Nearest: 2}, seconds: 1.5}
	if four {
		w.k, w.n, w.codes, w.scales, w.divisors = 40, 3, 3*2*quant.Int4Block/2, 3*2, 40
		if key%2 == 1 {
			e.divisors = slices.Repeat([]float32{.5, 2}, 20)
		}
		e.four = &quant.BlockWeight{K: 40, N: 3, Codes: make([]byte, w.codes), Scales: gauss(r, w.scales, 1)}
		for i := range e.four.Codes {
			e.four.Codes[i] = byte(r.Int())
		}
		return w, e
	}
	w.dims, w.axis, w.codes, w.scales = []int64{5, 4}, 1, 20, 4
	e.eight = &quant.Weight{Codes: make([]int8, 20), Dims: w.dims, Axis: 1, Scales: gauss(r, 4, 1)}
	for i := range e.eight.Codes {
		e.eight.Codes[i] = int8(r.Int())
	}
	return w, e
}

func sameEntry(a, b entry) bool {
	if a.gain != b.gain || a.seconds != b.seconds || (a.eight == nil) != (b.eight == nil) {
		return false
	}
	if a.eight != nil {
		return slices.Equal(a.eight.Codes, b.eight.Codes) && slices.Equal(a.eight.Scales, b.eight.Scales) && slices.Equal(a.eight.Dims, b.eight.Dims) && a.eight.Axis == b.eight.Axis
	}
	return slices.Equal(a.divisors, b.divisors) && (a.divisors == nil) == (b.divisors == nil) && a.four.K == b.four.K && a.four.N == b.four.N && bytes.Equal(a.four.Codes, b.four.Codes) && slices.Equal(a.four.Scales, b.four.Scales)
}

// TestKeptFiles: what was put comes back; what is damaged anywhere, cut off or
// longer, or of another key, does not, and is removed.
func TestKeptFiles(t *testing.T) {
	var warned []string
	k, err := openKept(filepath.Join(t.TempDir(), "w"), "base", false, func(s string) { warned = append(warned, s) })
	if err != nil {
		t.Fatal(err)
	}
	for i, four := range []bool{false, true, true} { // the last without divisors
		w, e := keptCase(four, byte(i))
		if _, ok := k.get(w); ok {
			t.Fatal("something is there before it was put")
		}
		k.put(w, e)
		if got, ok := k.get(w); !ok || !sameEntry(got, e) {
			t.Fatalf("four %v: %v, %+v", four, ok, got)
		}
		whole, err := os.ReadFile(k.path(w))
		if err != nil || int64(len(whole)) != w.size() {
			t.Fatalf("%d bytes, want %d (%v)", len(whole), w.size(), err)
		}
		bad := [][]byte{{}, whole[:len(whole)-1], append(slices.Clone(whole), 0)}
		for at := range whole {
			b := slices.Clone(whole)
			b[at] ^= 4
			bad = append(bad, b)
		}
		other := w
		other.key[31] = 1
		bad = append(bad, encodeKept(other, e)) // whole, under another's name
		for n, b := range bad {
			if err := os.WriteFile(k.path(w), b, 0o600); err != nil {
				t.Fatal(err)
			}
			if _, ok := k.get(w); ok {
				t.Fatalf("four %v: damage %d is not seen", four, n)
			}
			if _, err := os.Stat(k.path(w)); !os.IsNotExist(err) {
				t.Fatalf("four %v: damage %d stays: %v", four, n, err)
			}
		}
	}
	if k.Hits != 3 || k.Saved != 4.5 || len(warned) == 0 {
		t.Errorf("%d hits, %v s, warnings %q", k.Hits, k.Saved, warned)
	}
}

// TestKeptBound: the files that were not used for longest make room, a weight that
// never fits is not kept, and what a killed process was writing goes.
func TestKeptBound(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "w")
	k, err := openKept(dir, "base", false, func(s string) { t.Errorf("warning: %s", s) })
	if err != nil {
		t.Fatal(err)
	}
	w, e := keptCase(false, 0)
	k.most = 2*w.size() + 1
	for i := range byte(3) {
		w, e := keptCase(false, i)
		k.put(w, e)
		old := time.Now().Add((time.Duration(i) - 10) * time.Hour)
		if err := os.Chtimes(k.path(w), old, old); err != nil {
			t.Fatal(err)
		}
		if i == 1 { // the first is used again
			first, _ := keptCase(false, 0)
			if _, ok := k.get(first); !ok {
				t.Fatal("the first is gone")
			}
		}
	}
	for i, there := range []bool{true, false, true} {
		w, _ := keptCase(false, byte(i))
		if _, ok := k.get(w); ok != there {
			t.Errorf("weight %d: %v", i, ok)
		}
	}
	k.most = w.size() - 1
	k.put(w, e)
	part := filepath.Join(dir, keptPart+"1")
	if err := os.WriteFile(part, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openKept(dir, "base", false, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(part); !os.IsNotExist(err) {
		t.Errorf("what was half written stays: %v", err)
	}
	if _, err := openKept(dir, "base", true, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("a fresh start keeps: %v", err)
	}
	// What is not ours stays.
	own := filepath.Join(dir, "notes.txt")
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(own, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	k.most = 1 << 20
	k.put(w, e)
	if err := k.remove(); err != nil {
		t.Fatal(err)
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 1 || list[0].Name() != "notes.txt" {
		t.Errorf("%v, %v", list, err)
	}
	// A place that takes no files costs a warning, once.
	var warned []string
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k, _ = openKept(blocked, "base", false, func(s string) { warned = append(warned, s) })
	k.put(w, e)
	k.put(w, e)
	if _, ok := k.get(w); ok || len(warned) != 1 || strings.Contains(warned[0], blocked) {
		t.Errorf("%v, %q", ok, warned)
	}
}

func FuzzKept(f *testing.F) {
	for i, four := range []bool{false, true} {
		w, e := keptCase(four, byte(i))
		f.Add(encodeKept(w, e), four)
	}
	f.Add([]byte(keptMark), false)
	f.Fuzz(func(t *testing.T, b []byte, four bool) {
		w, _ := keptCase(four, map[bool]byte{true: 1}[four])
		e, ok := decodeKept(b, w)
		if ok && !bytes.Equal(encodeKept(w, e), b) {
			t.Error("what was read is not what was written")
		}
	})
}

// TestKeptAcrossForms: the weights that one form has solved serve another form
// where they depend on the same, and the model is the one without them.
func TestKeptAcrossForms(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	for _, weights := range []quant.WeightMethod{quant.AutoWeights, quant.AdaRound} {
		for _, k := range cases() {
			req := SearchRequest{Model: save(t, k.m), Calib: npy(t, 3, k.data...), Journal: filepath.Join(t.TempDir(), "j"), Samples: 32}
			forms := []quant.Target{quant.ORTCPU, quant.QDQ}
			var err error
			if req.Config, err = (quant.Config{Weights: weights}).WithDefaults(); err != nil {
				t.Fatal(err)
			}
			var files [2][]byte
			hits := 0
			for i := range files {
				s := &searching{Pipeline: p, req: req, bases: map[quant.Target]*run{}}
				base, err := s.base(ctx, forms[0])
				if err != nil {
					t.Fatal(err)
				}
				defer s.close()
				order := forms[1:]
				if i == 1 { // QDQ after the other form
					order = forms
					if err := s.openKept(ctx, base); err != nil {
						t.Fatal(err)
					}
				}
				var r *run
				for _, form := range order {
					if r, err = s.build(ctx, search.Candidate{Scheme: quant.INT8, Target: form}); err != nil {
						t.Fatal(err)
					}
				}
				path := filepath.Join(t.TempDir(), "q.onnx")
				if err := r.m.Save(path, onnx.SaveOptions{}); err != nil {
					t.Fatal(err)
				}
				if files[i], err = os.ReadFile(path); err != nil {
					t.Fatal(err)
				}
				if s.kept != nil {
					hits = s.kept.Hits
				}
			}
			if !slices.Equal(files[0], files[1]) {
				t.Errorf("%s, %s: another model than without what was kept", k.name, weights)
			}
			if hits == 0 {
				t.Errorf("%s, %s: nothing was taken from the other form", k.name, weights)
			}
		}
	}
}

// TestKeptAWQ: weights with divisors are taken from disk the second time, all that
// read an input or none, and the model is the same.
func TestKeptAWQ(t *testing.T) {
	p := testPipeline(t)
	ctx := context.Background()
	m := mlp() // whose output has two readers of one input
	m.Graph.Nodes = append(m.Graph.Nodes, node("MatMul", "beside", "a w3", "more"), node("Concat", "both", "down_out more", "logits", graph.AttrInt("axis", -1)))
	m.Graph.Nodes[3].Outputs[0] = "down_out"
	m.Graph.SetInit("w3", tensor.From(gauss(rand.New(rand.NewPCG(4, 0)), 256*32, .1), 256, 32))
	m.Graph.Outputs[0].Dims[2].N = 64
	req := SearchRequest{Model: save(t, m), Calib: npy(t, 3, 48, 9, 64), Journal: filepath.Join(t.TempDir(), "j"), Samples: 48}
	var err error
	if req.Config, err = (quant.Config{Weights: quant.AWQ, Scheme: quant.INT4}).WithDefaults(); err != nil {
		t.Fatal(err)
	}
	var files [3][]byte
	for i := range files {
		s := &searching{Pipeline: p, req: req, bases: map[quant.Target]*run{}}
		base, err := s.base(ctx, quant.ORTCPU)
		if err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if err := s.openKept(ctx, base); err != nil {
			t.Fatal(err)
		}
		want := 3 * min(i, 1)
		if i == 2 { // one of the two that go together is lost
			all, err := s.kept.files()
			if err != nil || len(all) != 3 {
				t.Fatalf("%d files: %v", len(all), err)
			}
			cfg := base.req.Config
			cfg.Scheme = quant.INT4
			c, err := quant.NewPlan(base.m, cfg)
			if err != nil {
				t.Fatal(err)
			}
			group := c.Linears()[1]
			w, err := base.reuse.keeping.want(base.m.Graph, c, group[0], nil, group...)
			if err != nil || len(group) != 2 {
				t.Fatalf("%d operators, %v", len(group), err)
			}
			if err := os.Remove(s.kept.path(w)); err != nil {
				t.Fatal(err)
			}
			want = 1
		}
		r, err := s.build(ctx, search.Candidate{Scheme: quant.INT4, Target: quant.ORTCPU})
		if err != nil {
			t.Fatal(err)
		}
		if s.kept.Hits != want {
			t.Errorf("start %d: %d weights from disk, want %d", i, s.kept.Hits, want)
		}
		if len(r.solved.Divisors) == 0 {
			t.Error("nothing is divided: the test shows nothing")
		}
		path := filepath.Join(t.TempDir(), "q.onnx")
		if err := r.m.Save(path, onnx.SaveOptions{}); err != nil {
			t.Fatal(err)
		}
		if files[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(files[i], files[0]) {
			t.Errorf("start %d: another model", i)
		}
	}
}

// keptChild makes this test binary the process that is killed: the variable holds
// model, data and folder.
const keptChild = "FEWBIT_TEST_KEPT_CHILD"

// keptRequest searches until trial 2, INT8, has been measured.
func keptRequest(model, calib, dir string) SearchRequest {
	return SearchRequest{Model: model, Calib: calib, Out: filepath.Join(dir, "q.onnx"), Journal: filepath.Join(dir, "j"), Samples: 32, EvalSamples: 32, MaxLoss: .5}
}

// TestKeptChild is no test: it searches until the weights of trial 2 are solved, says
// so, and waits to be killed.
func TestKeptChild(t *testing.T) {
	args := strings.Split(os.Getenv(keptChild), "\n")
	if len(args) != 3 {
		t.Skip("run by TestKeptAfterKill")
	}
	saves := 0
	_, err := testPipeline(t).Search(context.Background(), keptRequest(args[0], args[1], args[2]), func(phase string, _ float64) {
		if phase == "save" {
			if saves++; saves == 2 {
				fmt.Println("solved")
				select {}
			}
		}
	})
	t.Errorf("the search ended: %v", err)
}

// TestKeptAfterKill: kill -9 between solving and the trial's line in the journal. The
// next start reads the weights, says what that spared, and makes the same model; so
// does one that finds one of them damaged, which it solves again.
func TestKeptAfterKill(t *testing.T) {
	p := testPipeline(t)
	model, calib, dir := save(t, mlp()), npy(t, 3, 96, 9, 64), t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKeptChild$")
	c.Env = append(os.Environ(), keptChild+"="+strings.Join([]string{model, calib, dir}, "\n"))
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("solved"))
	_, err = io.ReadFull(out, said)
	_ = c.Process.Kill()
	_ = c.Wait()
	if err != nil || string(said) != "solved" {
		t.Fatalf("%q, %v", said, err)
	}
	files, _ := filepath.Glob(filepath.Join(dir, "j"+keptName, "*"))
	if len(files) != 2 {
		t.Fatalf("kept: %q", files)
	}
	damaged := t.TempDir()
	if err := os.CopyFS(damaged, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	hurt := filepath.Join(damaged, "j"+keptName, filepath.Base(files[0]))
	b, err := os.ReadFile(hurt)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(hurt, b, 0o600); err != nil {
		t.Fatal(err)
	}
	// until returns the second trial and the report then.
	until := func(dir string) (report.Trial, *report.Search) {
		t.Helper()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		req := keptRequest(model, calib, dir)
		req.OnTrial = func(s report.Search) error {
			if len(s.Trials) == 2 {
				cancel()
			}
			return nil
		}
		s, err := p.Search(ctx, req, nil)
		if !errors.Is(err, context.Canceled) || len(s.Trials) != 2 {
			t.Fatalf("%+v, %v", s, err)
		}
		return s.Trials[1], s
	}
	fresh, s := until(t.TempDir())
	if s.Kept != 0 || s.Resumed != 0 {
		t.Errorf("fresh: %d kept, %d resumed", s.Kept, s.Resumed)
	}
	for dir, kept := range map[string]int{dir: 2, damaged: 1} {
		again, s := until(dir)
		if s.Kept != kept || !(s.Saved > 0) || s.Resumed != 1 {
			t.Errorf("%d weights kept, %v s saved, %d trials resumed; want %d weights", s.Kept, s.Saved, s.Resumed, kept)
		}
		if again.SHA256 != fresh.SHA256 || again.Key != fresh.Key {
			t.Errorf("%d kept weights make another model", kept)
		}
		if warns := slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "damaged") }); warns != (kept == 1) {
			t.Errorf("%d kept: warnings %q", kept, s.Warnings)
		}
		var text bytes.Buffer
		if err := report.SearchText(&text, *s); err != nil || !strings.Contains(text.String(), fmt.Sprintf("%d solved weights were read from disk", kept)) {
			t.Errorf("%v: %s", err, text.String())
		}
	}
}

// TestKeptKey: the name of a weight follows from each thing that its codes depend on,
// and from nothing that the model's values are called.
func TestKeptKey(t *testing.T) {
	type state struct {
		m       *graph.Model
		c       quant.Config
		base    string
		choices quant.Choices
		op      string
		with    []string
	}
	key := func(change func(*state)) digest {
		t.Helper()
		s := state{m: cnn(), base: "b", op: "pw", choices: quant.Choices{}}
		change(&s)
		cfg, err := s.c.WithDefaults()
		if err != nil {
			t.Fatal(err)
		}
		p, err := quant.NewPlan(s.m, cfg)
		if err != nil {
			t.Fatal(err)
		}
		k := keeping{&kept{base: s.base}, newDigests(s.m, "file")}
		for _, op := range p.Ops {
			if op.Node.Name == s.op {
				var with []*quant.Op
				for _, o := range p.Ops {
					if slices.Contains(s.with, o.Node.Name) {
						with = append(with, o)
					}
				}
				w, err := k.want(s.m.Graph, p, op, s.choices, with...)
				if err != nil {
					t.Fatal(err)
				}
				return w.key
			}
		}
		t.Fatalf("no operator %s", s.op)
		return digest{}
	}
	nudge := func(name string) func(*state) {
		return func(s *state) {
			w := s.m.Graph.Init(name)
			v := slices.Clone(tensor.View[float32](w))
			v[len(v)-1] += 1e-3
			s.m.Graph.SetInit(name, tensor.From(v, w.Dims...))
		}
	}
	smooth := func(x float32) func(*state) {
		return func(s *state) {
			s.m, s.op = mlp(), "down"
			s.choices["a"] = &quant.Choice{Tensor: "a", Smooth: slices.Repeat([]float32{x}, 256)}
		}
	}
	seen := map[digest]string{}
	for name, change := range map[string]func(*state){
		"as it is": func(*state) {}, "another operator": func(s *state) { s.op = "dw" }, "its weight": nudge("k3"), "a weight before it": nudge("k1"), "a bound before it": nudge("six"),
		"an attribute before it": func(s *state) { s.m.Graph.Nodes[0].Attrs[1] = graph.AttrInts("strides", 1, 1) },
		"its own attribute": func(s *state) {
			s.m.Graph.Nodes[4].Attrs = append(s.m.Graph.Nodes[4].Attrs, graph.AttrInts("strides", 2, 2))
		},
		"adaround":          func(s *state) { s.c.Weights = quant.AdaRound },
		"adaround, no bias": func(s *state) { s.c.Weights, s.c.NoBiasCorrection = quant.AdaRound, true },
		"per tensor":        func(s *state) { s.c.Granularity = quant.PerTensor },
		"seven bits":        func(s *state) { s.c.ReduceRange = true },
		"data or machine":   func(s *state) { s.base = "c" },
		"opset":             func(s *state) { s.m.Opsets[""] = 16 },
		"awq":               func(s *state) { s.m, s.op, s.c.Scheme, s.c.Weights = mlp(), "down", quant.INT4, quant.AWQ },
		"awq with another": func(s *state) {
			s.m, s.op, s.c.Scheme, s.c.Weights, s.with = mlp(), "down", quant.INT4, quant.AWQ, []string{"up"}
		},
		"smoothing": smooth(2), "other smoothing": smooth(3),
	} {
		k := key(change)
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s have one name", name, other)
		}
		seen[k] = name
	}
	plain := key(func(*state) {})
	for name, change := range map[string]func(*state){
		"names": func(s *state) {
			for _, n := range s.m.Graph.Nodes {
				for _, list := range [][]string{n.Inputs, n.Outputs} {
					for i, v := range list {
						if v == "r1" || v == "c2" || v == "r2" {
							list[i] = v + "_renamed"
						}
					}
				}
			}
		},
		"what comes after": nudge("w"), "another form": func(s *state) { s.c.Target = quant.QDQ }, "a bias, which the input does not read": nudge("b3"),
	} {
		if key(change) != plain {
			t.Errorf("%s: another name", name)
		}
	}
}

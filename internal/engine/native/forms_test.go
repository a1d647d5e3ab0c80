package native

import (
	"compress/gzip"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops/opstest"
	"github.com/fewbit/fewbit/internal/quant"
	"github.com/fewbit/fewbit/internal/tensor"
)

// form reads a model that an exporter wrote (testdata/forms.py).
func form(t *testing.T, path string) *graph.Model {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	p := &pb.ModelProto{}
	if err := proto.Unmarshal(raw, p); err != nil {
		t.Fatal(err)
	}
	m, err := graph.FromProto(p)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// formFeeds are random tokens, the second sample with padding and the third with
// nothing else, or random pixels.
func formFeeds(m *graph.Model, length int) engine.Feeds {
	const batch, vocab, pad = 3, 64, 1
	r := rand.New(rand.NewPCG(1, uint64(length)))
	ids, mask := make([]int64, batch*length), make([]int64, batch*length)
	for i := range ids {
		ids[i] = 3 + int64(r.IntN(vocab-4))
		if at, b := i%length, i/length; b == 0 || b == 1 && at < max(1, length-3) {
			mask[i] = 1
		} else {
			ids[i] = pad
		}
	}
	feeds := engine.Feeds{}
	for _, in := range m.Graph.Inputs {
		switch in.Name {
		case "input_ids":
			feeds[in.Name] = tensor.From(ids, batch, int64(length))
		case "attention_mask":
			feeds[in.Name] = tensor.From(mask, batch, int64(length))
		case "token_type_ids":
			feeds[in.Name] = tensor.From(make([]int64, batch*length), batch, int64(length))
		case "pixel_values":
			v := make([]float32, batch*3*32*32)
			for i := range v {
				v[i] = float32(r.NormFloat64())
			}
			feeds[in.Name] = tensor.From(v, batch, 3, 32, 32)
		}
	}
	return feeds
}

// formCosine is the least cosine between a row of the float model and of ours:
// measured less half of what was lost, of encoders with 16 columns.
const formCosine = .999

// gateCosine is the same of encoders with gates or positions by rotation, and of T5, whose scores
// are not divided, the mean square of what 16 columns lose: two products are multiplied before the third. What is
// ours is held against the file's functions by formCosine.
const gateCosine = .996

// gates reports whether a form has gates, rotary positions or scores that are not divided.
func gates(name string) bool {
	for _, p := range []string{"modernbert-", "nomic-", "gte-", "eurobert-", "jina3-", "esm-", "t5-encoder-", "flan-t5-encoder-"} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// TestForms: encoders as PyTorch's exporters write them are one operator, which
// gives the float model's rows.
func TestForms(t *testing.T) {
	e := newEngine(t)
	files, err := filepath.Glob(filepath.Join("testdata", "forms", "*.onnx.gz"))
	if err != nil || len(files) < 30 {
		t.Fatalf("%d forms: %v", len(files), err)
	}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".onnx.gz")
		t.Run(name, func(t *testing.T) {
			float := form(t, path)
			m := opstest.Native(t, float, quant.INT8Dynamic)
			got, skip := operators(t, e, m), skips(t, e, m)
			if strings.HasPrefix(name, "bart-") && !strings.HasPrefix(name, "bart-encoder-") {
				// The encoder is one operator; each of the decoder's two layers attends to itself and to it.
				if got[opEncoderLayers] != 1 || got[opEncoderAttention] != 2 || got[opCrossAttention] != 2 || got["MultiHeadAttention"]+got["Softmax"] != 0 {
					t.Error(got)
				}
			} else if got[opEncoderLayers] != 1 || got[opEncoderAttention]+got["MultiHeadAttention"]+got["Softmax"]+got["IsNaN"] != 0 || gates(name) && got[opLinearRows]+got["Neg"] != 0 {
				t.Error(got)
			}
			if image := strings.HasPrefix(name, "vit-") || strings.Contains(name, "image"); e.Kernels().BF16 && image && (got[opPatches] != 1 || got["Conv"] != 0) {
				t.Error(got)
			}
			// Others read a decoder's keys; an image has no padding, even where the exporter made it a mask.
			text, decoder := float.Graph.Index().Uses("attention_mask") != nil, got[opCrossAttention] > 0
			if want := text && !decoder && got[opEncoderLayers] == 1; (skip == 1) != want && text {
				t.Errorf("%d skip padding, want one: %v", skip, want)
			}
			source, native := opstest.Save(t, float), opstest.Save(t, m)
			for _, length := range []int{2, 11, 16, 33} {
				feeds := formFeeds(float, length)
				if feeds["pixel_values"] != nil && length > 2 {
					break
				}
				want := outputs(t, e.Engine, source, feeds)["y"]
				least := formCosine
				if gates(name) {
					least = gateCosine
				}
				formClose(t, feeds, want, outputs(t, e, native, feeds)["y"], least)
				if length == 2 || gates(name) { // and so does the file without the kernels
					bodies := outputs(t, e.Engine, native, feeds)["y"]
					formClose(t, feeds, want, bodies, least)
					formClose(t, feeds, bodies, outputs(t, e, native, feeds)["y"], formCosine)
				}
			}
		})
	}
}

// formClose compares rows that are no padding.
func formClose(t *testing.T, feeds engine.Feeds, want, got *tensor.Tensor, least float64) {
	t.Helper()
	a, b := tensor.View[float32](want), tensor.View[float32](got)
	if len(a) != len(b) {
		t.Fatalf("%v, want %v", got.Dims, want.Dims)
	}
	n := int(want.Dims[len(want.Dims)-1])
	for r := range len(a) / n {
		// Of the sample that is all padding every row is computed.
		if mask := feeds["attention_mask"]; mask != nil && len(want.Dims) == 3 {
			v, length := tensor.View[int64](mask), int(want.Dims[1])
			if v[r/length*length] == 1 && v[r] == 0 {
				continue
			}
		}
		var xy, xx, yy float64
		for i := r * n; i < (r+1)*n; i++ {
			xy, xx, yy = xy+float64(a[i])*float64(b[i]), xx+float64(a[i])*float64(a[i]), yy+float64(b[i])*float64(b[i])
		}
		if math.IsNaN(xx) != math.IsNaN(yy) || !math.IsNaN(xx) && !(xy >= least*math.Sqrt(xx*yy)) {
			t.Errorf("%v: row %d has a cosine of %.4f", want.Dims, r, xy/math.Sqrt(xx*yy))
		}
	}
}

// TestFormsKept: what looks like an attention and is none stays as the model has
// it. Each edit is of the first layer of two.
func TestFormsKept(t *testing.T) {
	first := func(m *graph.Model, op string) *graph.Node {
		for _, n := range m.Graph.Nodes {
			if n.Is(op) {
				return n
			}
		}
		t.Fatalf("no %s", op)
		return nil
	}
	reader := func(m *graph.Model, value, op string) *graph.Node {
		for _, u := range m.Graph.Index().Uses(value) {
			if u.Node.Is(op) {
				return u.Node
			}
		}
		t.Fatalf("no %s of %s", op, value)
		return nil
	}
	number := func(m *graph.Model, v float32) string {
		m.Graph.SetInit("number", tensor.From([]float32{v}, 1))
		return "number"
	}
	guard := func(m *graph.Model) *graph.Node { return reader(m, first(m, "Softmax").Outputs[0], "Where") }
	for name, tc := range map[string]struct {
		form string
		edit func(m *graph.Model)
		want int // attentions
	}{
		"as it is":                   {"bert-sdpa-ts14", func(*graph.Model) {}, 2},
		"no number becomes 1":        {"bert-sdpa-ts14", func(m *graph.Model) { guard(m).Inputs[1] = number(m, 1) }, 1},
		"a number becomes 0":         {"bert-sdpa-ts14", func(m *graph.Model) { n := guard(m); n.Inputs[1], n.Inputs[2] = n.In(2), number(m, 0) }, 1},
		"another value is no number": {"bert-sdpa-ts14", func(m *graph.Model) { first(m, "IsNaN").Inputs[0] = first(m, "Softmax").In(0) }, 1},
		"others read the weights": {"bert-sdpa-ts14", func(m *graph.Model) {
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: first(m, "Softmax").Outputs[0], Type: tensor.Float32})
		}, 1},
		"others read the guarded weights": {"bert-sdpa-ts14", func(m *graph.Model) {
			m.Graph.Outputs = append(m.Graph.Outputs, &graph.Value{Name: guard(m).Outputs[0], Type: tensor.Float32})
		}, 1},
		"the softmax is over queries":    {"bert-sdpa-ts14", func(m *graph.Model) { first(m, "Softmax").Attrs = []*pb.AttributeProto{graph.AttrInt("axis", 2)} }, 1},
		"three dimensions":               {"clip-text-bmm-ts14", func(*graph.Model) {}, 2},
		"the softmax is over three rows": {"clip-text-bmm-ts14", func(m *graph.Model) { first(m, "Softmax").Attrs = []*pb.AttributeProto{graph.AttrInt("axis", 1)} }, 1},
		"another mask is multiplied": {"clip-text-bmm-ts14", func(m *graph.Model) {
			x := m.Graph.Index().Producer(first(m, "Softmax").In(0)) // Reshape of the second sum
			m.Graph.Index().Producer(x.In(0)).Op = "Mul"
		}, 1},
		"heads and batch change places": {"clip-text-bmm-ts14", func(m *graph.Model) {
			first(m, "Transpose").Attrs = []*pb.AttributeProto{graph.AttrInts("perm", 2, 0, 1, 3)}
		}, 1},
		"two steps": {"bert-sdpa-dy18", func(*graph.Model) {}, 2},
		"keys are turned by rows": {"bert-sdpa-dy18", func(m *graph.Model) {
			for _, n := range m.Graph.Nodes {
				if n.Is("Transpose") && len(n.Ints("perm")) == 3 {
					n.Attrs = []*pb.AttributeProto{graph.AttrInts("perm", 1, 2, 0)}
					return
				}
			}
		}, 1},
	} {
		m := form(t, filepath.Join("testdata", "forms", tc.form+".onnx.gz"))
		tc.edit(m)
		got := 0
		for _, n := range prepared(t, m).Graph.Nodes {
			if n.Op == "MultiHeadAttention" {
				got++
			}
		}
		if got != tc.want {
			t.Errorf("%s: %d attentions, want %d", name, got, tc.want)
		}
	}
}

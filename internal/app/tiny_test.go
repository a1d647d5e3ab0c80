package app

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image"
	"image/png"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Models small enough to be made here, and data for them.

const (
	mlpInputs  = 32
	mlpHidden  = 64
	mlpClasses = 4
	wordDims   = 16
	topics     = 3
)

func model(g *graph.Graph) *graph.Model {
	return &graph.Model{IR: 10, Opsets: map[string]int64{graph.DomainONNX: 21}, Graph: g}
}

func onnxBytes(t testing.TB, m *graph.Model) []byte {
	t.Helper()
	p, err := m.Proto()
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func value(name string, typ tensor.DType, dims ...any) *graph.Value {
	v := &graph.Value{Name: name, Type: typ}
	for _, d := range dims {
		switch d := d.(type) {
		case int:
			v.Dims = append(v.Dims, graph.Dim{N: int64(d)})
		case string:
			v.Dims = append(v.Dims, graph.Dim{N: -1, Name: d})
		}
	}
	return v
}

// random is a matrix of small numbers with a gain on the diagonal.
func random(r *rand.Rand, rows, cols int, noise, diagonal float32) *tensor.Tensor {
	v := make([]float32, rows*cols)
	for i := range v {
		v[i] = noise * float32(r.NormFloat64())
		if i/cols == i%cols {
			v[i] += diagonal
		}
	}
	return tensor.From(v, int64(rows), int64(cols))
}

// layers appends x -> relu(x W1) -> relu(. W2) -> . W3 = out.
func layers(g *graph.Graph, r *rand.Rand, x, out string, in, classes int) {
	g.SetInit("w1", random(r, in, mlpHidden, 0.05, 1))
	g.SetInit("w2", random(r, mlpHidden, mlpHidden, 0.05, 1))
	g.SetInit("w3", random(r, mlpHidden, classes, 0.05, 3))
	node := func(op string, in []string, out string) {
		g.Nodes = append(g.Nodes, graph.NewNode("", op, "/"+out, in, []string{out}))
	}
	node("MatMul", []string{x, "w1"}, "h1")
	node("Relu", []string{"h1"}, "r1")
	node("MatMul", []string{"r1", "w2"}, "h2")
	node("Relu", []string{"h2"}, "r2")
	node("MatMul", []string{"r2", "w3"}, out)
}

// mlp classifies x [batch, 32] by which of its first four elements is largest.
func mlp(t testing.TB) []byte { return onnxBytes(t, mlpModel()) }

func mlpModel() *graph.Model {
	g := &graph.Graph{Name: "mlp",
		Inputs:  []*graph.Value{value("x", tensor.Float32, "batch", mlpInputs)},
		Outputs: []*graph.Value{value("logits", tensor.Float32, "batch", mlpClasses)},
	}
	layers(g, rand.New(rand.NewPCG(1, 2)), "x", "logits", mlpInputs, mlpClasses)
	return model(g)
}

// mlpData is an .npz for mlp: n rows, and with labels their classes.
func mlpData(t testing.TB, seed uint64, n int, labels bool) []byte {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 7))
	x := make([]float32, 0, n*mlpInputs)
	y := make([]int64, 0, n)
	for range n {
		class := r.IntN(mlpClasses)
		for j := range mlpInputs {
			v := 0.3 * float32(r.NormFloat64())
			if j == class {
				v += 2
			}
			x = append(x, v)
		}
		y = append(y, int64(class))
	}
	arrays := map[string][]byte{"x": npy(t, "<f4", []int{n, mlpInputs}, x)}
	if labels {
		arrays["label"] = npy(t, "<i8", []int{n}, y)
	}
	return npz(t, arrays)
}

func npy(t testing.TB, descr string, shape []int, data any) []byte {
	t.Helper()
	dims := strings.ReplaceAll(strings.Trim(fmt.Sprint(shape), "[]"), " ", ", ") + ","
	head := fmt.Sprintf("{'descr': '%s', 'fortran_order': False, 'shape': (%s), }\n", descr, dims)
	b := bytes.NewBufferString("\x93NUMPY\x01\x00")
	for _, v := range []any{uint16(len(head)), []byte(head), data} {
		if err := binary.Write(b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func npz(t testing.TB, arrays map[string][]byte) []byte {
	files := map[string][]byte{}
	for name, a := range arrays {
		files[name+".npy"] = a
	}
	return zipOf(t, files)
}

func zipOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) { // the same bytes every time
		w, err := z.Create(name)
		if err == nil {
			_, err = w.Write(files[name])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The words that the tiny text classifier knows, by topic; the last are about
// nothing.
var (
	topicNames = []string{"sports", "tech", "politics"}
	topicWords = [topics + 1][]string{
		{"goal", "match", "team", "player", "score", "coach"},
		{"chip", "code", "cloud", "phone", "server", "network"},
		{"vote", "law", "minister", "party", "tax", "election"},
		{"the", "a", "in", "of", "and", "for", "new", "last"},
	}
	specials = []string{"[PAD]", "[UNK]", "[CLS]", "[SEP]"}
)

func vocabulary() []string {
	words := append([]string(nil), specials...)
	for _, w := range topicWords {
		words = append(words, w...)
	}
	return words
}

// textModel is the zip of a classifier of texts by the mean of its words'
// embeddings, with tokenizer and labels.
func textModel(t testing.TB) []byte {
	t.Helper()
	return zipOf(t, map[string][]byte{
		"model.onnx": onnxBytes(t, textGraph()), "tokenizer.json": tokenizer(t), "labels.txt": []byte(strings.Join(topicNames, "\n") + "\n"),
	})
}

func textGraph() *graph.Model {
	r := rand.New(rand.NewPCG(3, 4))
	vocab := vocabulary()
	emb := random(r, len(vocab), wordDims, 0.05, 0)
	e := tensor.View[float32](emb)
	at := len(specials)
	for topic, words := range topicWords {
		for range words {
			if topic < topics {
				e[at*wordDims+topic] += 4
			}
			at++
		}
	}
	g := &graph.Graph{Name: "text",
		Inputs:  []*graph.Value{value("input_ids", tensor.Int64, "batch", "sequence"), value("attention_mask", tensor.Int64, "batch", "sequence"), value("token_type_ids", tensor.Int64, "batch", "sequence")},
		Outputs: []*graph.Value{value("logits", tensor.Float32, "batch", topics)},
	}
	g.SetInit("embeddings", emb)
	g.SetInit("last", tensor.From([]int64{-1}, 1))
	g.SetInit("none", tensor.From([]int64{0}, 1))
	g.SetInit("words", tensor.From([]int64{1}, 1))
	node := func(op string, in []string, out string, attrs ...*pb.AttributeProto) {
		g.Nodes = append(g.Nodes, graph.NewNode("", op, "/"+out, in, []string{out}, attrs...))
	}
	node("Gather", []string{"embeddings", "input_ids"}, "tokens")
	node("Mul", []string{"token_type_ids", "none"}, "types")
	node("Add", []string{"attention_mask", "types"}, "kept")
	node("Cast", []string{"kept"}, "mask", graph.AttrInt("to", int64(tensor.Float32)))
	node("Unsqueeze", []string{"mask", "last"}, "mask3")
	node("Mul", []string{"tokens", "mask3"}, "seen")
	node("ReduceSum", []string{"seen", "words"}, "sum", graph.AttrInt("keepdims", 0))
	node("ReduceSum", []string{"mask", "last"}, "count", graph.AttrInt("keepdims", 1))
	node("Div", []string{"sum", "count"}, "mean")
	layers(g, r, "mean", "logits", wordDims, topics)
	return model(g)
}

// hideScores makes the number of scores depend on their values, so that nobody
// can infer it: those that are not -infinity, which is all.
func hideScores(m *graph.Model) *graph.Model {
	g := m.Graph
	g.Outputs[0].Dims[1] = graph.Dim{N: -1, Name: "classes"}
	last := g.Nodes[len(g.Nodes)-1]
	last.Name, last.Outputs[0] = "/all", "all"
	g.SetInit("zero", tensor.From([]int64{0}, 1))
	g.SetInit("one", tensor.From([]float32{1}, 1))
	node := func(op string, in []string, out string, attrs ...*pb.AttributeProto) {
		g.Nodes = append(g.Nodes, graph.NewNode("", op, "/"+out, in, []string{out}, attrs...))
	}
	node("Gather", []string{"all", "zero"}, "row", graph.AttrInt("axis", 0))
	node("Abs", []string{"row"}, "size")
	node("Add", []string{"size", "one"}, "more")
	node("ReduceMax", []string{"more", "zero"}, "most", graph.AttrInt("keepdims", 0))
	node("NonZero", []string{"most"}, "at")
	node("Squeeze", []string{"at", "zero"}, "classes")
	node("Gather", []string{"all", "classes"}, "logits", graph.AttrInt("axis", 1))
	return m
}

// imageGraph takes RGB images of 8x8.
func imageGraph() *graph.Model {
	g := &graph.Graph{Name: "image",
		Inputs:  []*graph.Value{value("pixels", tensor.Float32, "batch", 3, 8, 8)},
		Outputs: []*graph.Value{value("flat", tensor.Float32, "batch", 3*8*8)},
	}
	g.Nodes = append(g.Nodes, graph.NewNode("", "Flatten", "/flat", []string{"pixels"}, []string{"flat"}))
	return model(g)
}

// hugeGraph makes a tensor of 2^38 numbers on the way.
func hugeGraph() *graph.Model {
	g := &graph.Graph{Name: "huge",
		Inputs:  []*graph.Value{value("x", tensor.Float32, "batch", 4)},
		Outputs: []*graph.Value{value("y", tensor.Float32, "batch", 4)},
	}
	g.SetInit("size", tensor.From([]int64{1 << 38}, 1))
	g.SetInit("zero", tensor.From([]int64{0}, 1))
	g.Nodes = append(g.Nodes,
		graph.NewNode("", "ConstantOfShape", "/huge", []string{"size"}, []string{"huge"}),
		graph.NewNode("", "Gather", "/first", []string{"huge", "zero"}, []string{"first"}),
		graph.NewNode("", "Add", "/y", []string{"x", "first"}, []string{"y"}))
	return model(g)
}

// picture is a small PNG.
func picture(t testing.TB) []byte {
	t.Helper()
	im := image.NewRGBA(image.Rect(0, 0, 9, 7))
	for i := range im.Pix {
		im.Pix[i] = byte(i*37 | 0x80)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, im); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tokenizer(t testing.TB) []byte {
	t.Helper()
	vocab := map[string]int{}
	var added []map[string]any
	for i, w := range vocabulary() {
		vocab[w] = i
		if i < len(specials) {
			added = append(added, map[string]any{"id": i, "content": w, "special": true})
		}
	}
	special := func(name string) map[string]any {
		return map[string]any{"id": name, "ids": []int{vocab[name]}, "tokens": []string{name}}
	}
	b, err := json.Marshal(map[string]any{
		"version": "1.0", "added_tokens": added,
		"normalizer":    map[string]any{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": nil, "lowercase": true},
		"pre_tokenizer": map[string]any{"type": "BertPreTokenizer"},
		"post_processor": map[string]any{"type": "TemplateProcessing",
			"single": []any{
				map[string]any{"SpecialToken": map[string]any{"id": "[CLS]", "type_id": 0}},
				map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}},
				map[string]any{"SpecialToken": map[string]any{"id": "[SEP]", "type_id": 0}},
			},
			"pair": []any{
				map[string]any{"SpecialToken": map[string]any{"id": "[CLS]", "type_id": 0}},
				map[string]any{"Sequence": map[string]any{"id": "A", "type_id": 0}},
				map[string]any{"SpecialToken": map[string]any{"id": "[SEP]", "type_id": 0}},
				map[string]any{"Sequence": map[string]any{"id": "B", "type_id": 1}},
				map[string]any{"SpecialToken": map[string]any{"id": "[SEP]", "type_id": 1}},
			},
			"special_tokens": map[string]any{"[CLS]": special("[CLS]"), "[SEP]": special("[SEP]")},
		},
		"model": map[string]any{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// texts are n labelled lines for textModel.
func texts(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 11))
	var b bytes.Buffer
	for range n {
		topic := r.IntN(topics)
		var words []string
		for range 3 + r.IntN(12) {
			from := topicWords[topics]
			if r.IntN(2) == 0 {
				from = topicWords[topic]
			}
			words = append(words, from[r.IntN(len(from))])
		}
		line, _ := json.Marshal(map[string]any{"text": strings.Join(append(words, topicWords[topic][0]), " "), "label": topicNames[topic]})
		b.Write(append(line, '\n'))
	}
	return b.Bytes()
}

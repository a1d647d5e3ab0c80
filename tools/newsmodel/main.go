// Command newsmodel folds the committed linear head of an example (by default
// that of the news) into its encoder and writes one ONNX classifier that is
// ready to upload:
//
//	OUT/model.onnx, model.onnx.data   ids, mask, types [batch,sequence] -> logits [batch,classes]
//	OUT/tokenizer.json                the encoder's
//	OUT/tokenizer_config.json         the length at which texts are cut, as the head was trained
//	OUT/labels.txt                    one class a line, in the order of the logits
//
// With another -encoder, -head and -out it makes that of
// examples/text-classification. It refuses an encoder or tokenizer other than the one that the head was
// trained on (compared by SHA-256).
package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx"
	"github.com/fewbit/fewbit/internal/tensor"
)

// stampName names the file that identifies a complete folder, by the hash of
// the head and of form, which changes with what this program makes of it.
const (
	stampName = "head.sha256"
	form      = "newsmodel/2"
)

// maxClasses and maxHidden bound what a head file may ask for.
const (
	maxClasses = 1 << 12
	maxHidden  = 1 << 16
)

// head is examples/news/head.json; tools/head/train.py writes it.
type head struct {
	Labels      []string  `json:"labels"`
	MaxTokens   int       `json:"max_tokens"`
	Pooling     string    `json:"pooling"`
	WeightShape []int64   `json:"weight_shape"` // classes, hidden
	Weight      string    `json:"weight_f32le_base64"`
	Bias        []float32 `json:"bias"`
	Training    struct {
		Encoder     string `json:"encoder_sha256"`
		EncoderData string `json:"encoder_data_sha256"`
		Tokenizer   string `json:"tokenizer_sha256"`
	} `json:"training"`
}

func main() {
	encoder := flag.String("encoder", ".deps/models/minilm-fused", "folder of the encoder (model.onnx, tokenizer.json)")
	headFile := flag.String("head", "examples/news/head.json", "the trained head")
	out := flag.String("out", ".deps/models/news", "folder to write")
	flag.Parse()
	if err := run(*encoder, *headFile, *out); err != nil {
		fmt.Fprintln(os.Stderr, "newsmodel:", err)
		os.Exit(1)
	}
}

func run(encoder, headFile, out string) error {
	h, stamp, err := readHead(headFile)
	if err != nil {
		return err
	}
	// The stamp is written last: a folder that has it is complete.
	if old, err := os.ReadFile(filepath.Join(out, stampName)); err == nil && string(old) == stamp {
		return nil
	}
	for _, f := range []struct{ name, want string }{
		{"model.onnx", h.Training.Encoder}, {"model.onnx_data", h.Training.EncoderData}, {"tokenizer.json", h.Training.Tokenizer},
	} {
		if f.want == "" { // an encoder of one file has no data beside it
			continue
		}
		if err := checkHash(filepath.Join(encoder, f.name), f.want); err != nil {
			return err
		}
	}
	m, err := graph.Open(filepath.Join(encoder, "model.onnx"))
	if err != nil {
		return err
	}
	defer m.Close()
	if err := fold(m, h); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	if err := m.Save(filepath.Join(out, "model.onnx"), onnx.SaveOptions{External: true}); err != nil {
		return err
	}
	tokenizer, err := os.ReadFile(filepath.Join(encoder, "tokenizer.json"))
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{"tokenizer.json", tokenizer},
		{"tokenizer_config.json", fmt.Appendf(nil, "{\"model_max_length\": %d}\n", h.MaxTokens)},
		{"labels.txt", []byte(strings.Join(h.Labels, "\n") + "\n")},
		{stampName, []byte(stamp)},
	} {
		if err := os.WriteFile(filepath.Join(out, f.name), f.data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readHead reads and checks the head, and returns the stamp of the model made of it.
func readHead(path string) (*head, string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, "", err
	}
	h := &head{}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, "", fmt.Errorf("%s: %w", path, err)
	}
	if h.Pooling != "mean" {
		return nil, "", fmt.Errorf("%s: pooling %q, only mean is known", path, h.Pooling)
	}
	s := h.WeightShape
	if len(s) != 2 || s[0] < 2 || s[0] > maxClasses || s[1] < 1 || s[1] > maxHidden || int64(len(h.Labels)) != s[0] || int64(len(h.Bias)) != s[0] {
		return nil, "", fmt.Errorf("%s: weight_shape %v does not fit %d labels and %d biases", path, s, len(h.Labels), len(h.Bias))
	}
	sum := sha256.Sum256(append(b, form...))
	return h, hex.EncodeToString(sum[:]), nil
}

// weight decodes the head's matrix [classes, hidden].
func (h *head) weight() (*tensor.Tensor, error) {
	b, err := base64.StdEncoding.DecodeString(h.Weight)
	if err != nil {
		return nil, fmt.Errorf("head weight: %w", err)
	}
	n := h.WeightShape[0] * h.WeightShape[1]
	if int64(len(b)) != 4*n {
		return nil, fmt.Errorf("head weight has %d bytes, its shape %v needs %d", len(b), h.WeightShape, 4*n)
	}
	w := make([]float32, n)
	for i := range w {
		w[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return tensor.From(w, h.WeightShape...), nil
}

// fold appends mean pooling over the tokens that the mask keeps, and the head:
//
//	hidden [b,s,h] * mask [b,s,1] -> sum over s -> / number of tokens [b,1] -> Gemm -> logits [b,c]
//
// The mask always keeps [CLS] and [SEP], so the division is safe.
func fold(m *graph.Model, h *head) error {
	g := m.Graph
	if len(g.Outputs) == 0 || m.Opset() < 13 {
		return errors.New("the encoder needs an output and opset 13 or newer")
	}
	hidden := g.Outputs[0]
	if n := len(hidden.Dims); n != 3 || hidden.Dims[2].N != h.WeightShape[1] {
		return fmt.Errorf("the encoder's output %s is not [batch, sequence, %d]", hidden.Name, h.WeightShape[1])
	}
	w, err := h.weight()
	if err != nil {
		return err
	}
	const mask = "attention_mask"
	found := false
	for _, in := range g.Inputs {
		found = found || in.Name == mask
	}
	if !found {
		return fmt.Errorf("the encoder has no input %s", mask)
	}
	g.SetInit("head.weight", w)
	g.SetInit("head.bias", tensor.From(h.Bias, int64(len(h.Bias))))
	g.SetInit("head.last_axis", tensor.From([]int64{-1}, 1))
	g.SetInit("head.token_axis", tensor.From([]int64{1}, 1))
	node := graph.NewNode
	g.Nodes = append(g.Nodes,
		node("", "Cast", "head/mask", []string{mask}, []string{"head.mask"}, graph.AttrInt("to", int64(tensor.Float32))),
		node("", "Unsqueeze", "head/mask3", []string{"head.mask", "head.last_axis"}, []string{"head.mask3"}),
		node("", "Mul", "head/kept", []string{hidden.Name, "head.mask3"}, []string{"head.kept"}),
		node("", "ReduceSum", "head/sum", []string{"head.kept", "head.token_axis"}, []string{"head.sum"}, graph.AttrInt("keepdims", 0)),
		node("", "ReduceSum", "head/tokens", []string{"head.mask", "head.token_axis"}, []string{"head.tokens"}, graph.AttrInt("keepdims", 1)),
		node("", "Div", "head/mean", []string{"head.sum", "head.tokens"}, []string{"head.mean"}),
		node("", "Gemm", "head/logits", []string{"head.mean", "head.weight", "head.bias"}, []string{"logits"}, graph.AttrInt("transB", 1)),
	)
	g.Info[hidden.Name] = hidden
	g.Outputs = []*graph.Value{{Name: "logits", Type: tensor.Float32, Dims: []graph.Dim{hidden.Dims[0], {N: h.WeightShape[0]}}}}
	g.Prune() // what only other outputs needed
	return m.Check()
}

func checkHash(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("%s has sha256 %s, the head was trained on %s; train it again with tools/head/train.py", path, got, want)
	}
	return nil
}

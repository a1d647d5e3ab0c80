package task

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// PoolingFile lies beside a sentence encoder and says how token vectors become
// one (sentence-transformers' module of that name).
const PoolingFile = "1_Pooling/config.json"

// Pooling is how the vectors of a text's tokens become the text's vector.
type Pooling string

// The poolings that sentence encoders use.
const (
	MeanPooling Pooling = "mean" // over the tokens that are not padding
	CLSPooling  Pooling = "cls"  // the first token's
	MaxPooling  Pooling = "max"  // the largest value of each dimension
)

// ErrNotEmbedding marks models whose outputs are no embeddings.
var ErrNotEmbedding = errors.New("not a text embedding model")

// ReadPooling reads PoolingFile in dir; without one it is MeanPooling, what
// sentence-transformers gives a model that has none.
func ReadPooling(dir string) (Pooling, error) {
	var c struct {
		CLS  bool `json:"pooling_mode_cls_token"`
		Mean bool `json:"pooling_mode_mean_tokens"`
		Max  bool `json:"pooling_mode_max_tokens"`
	}
	ok, err := readConfig(dir, filepath.FromSlash(PoolingFile), &c)
	switch {
	case err != nil:
		return "", err
	case !ok, c.Mean && !c.CLS && !c.Max:
		return MeanPooling, nil
	case c.CLS && !c.Mean && !c.Max:
		return CLSPooling, nil
	case c.Max && !c.CLS && !c.Mean:
		return MaxPooling, nil
	}
	return "", fmt.Errorf("%w: %s asks for a pooling other than one of mean, cls and max", ErrConfig, PoolingFile)
}

// EmbeddingOutput returns the output that holds embeddings and whether they
// have to be pooled: the first float output [batch, dim] whose name speaks of an
// embedding or a pooled sentence, else the first [batch, tokens, dim], else the
// only [batch, dim].
func EmbeddingOutput(spec engine.IOSpec) (name string, pooled bool, err error) {
	flat, deep, flats := "", "", 0
	for _, io := range spec.Outputs {
		if !io.Type.IsFloat() {
			continue
		}
		switch len(io.Dims) {
		case 2:
			if embeddingNames[io.Name] {
				return io.Name, true, nil
			}
			if flats++; flat == "" {
				flat = io.Name
			}
		case 3:
			if deep == "" {
				deep = io.Name
			}
		}
	}
	switch {
	case deep != "":
		return deep, false, nil
	case flats == 1:
		return flat, true, nil
	}
	return "", false, fmt.Errorf("%w: it has no float output [batch, tokens, dimensions], and no single one [batch, dimensions]", ErrNotEmbedding)
}

var embeddingNames = map[string]bool{"sentence_embedding": true, "embedding": true, "embeddings": true, "sentence_embeddings": true, "text_embeds": true, "pooled": true}

// Pool makes one vector for each row of x, [rows, dim] or [rows, tokens, dim].
// lengths are the tokens of each row that are not padding.
func (p Pooling) Pool(x *tensor.Tensor, lengths []int) ([][]float32, error) {
	if x == nil {
		return nil, fmt.Errorf("%w: the output is missing", ErrNotEmbedding)
	}
	v, err := x.F32()
	if err != nil {
		return nil, err
	}
	rows := len(lengths)
	if len(x.Dims) < 2 || len(x.Dims) > 3 || x.Dims[0] != int64(rows) || rows == 0 {
		return nil, fmt.Errorf("%w: the output has the shape %v for %d texts", ErrNotEmbedding, x.Dims, rows)
	}
	out := make([][]float32, rows)
	dim := int(x.Dims[len(x.Dims)-1])
	each := len(v) / rows
	for i := range out {
		row := v[i*each : (i+1)*each]
		if len(x.Dims) == 2 {
			out[i] = append([]float32(nil), row...)
			continue
		}
		if n := lengths[i]; n < 1 || n > int(x.Dims[1]) {
			return nil, fmt.Errorf("%w: %d tokens, the output has %d", ErrNotEmbedding, n, x.Dims[1])
		}
		out[i] = p.tokens(row[:lengths[i]*dim], dim)
	}
	return out, nil
}

// tokens pools the vectors of one text's tokens.
func (p Pooling) tokens(x []float32, dim int) []float32 {
	out := append([]float32(nil), x[:dim]...)
	switch p {
	case MaxPooling:
		for at := dim; at < len(x); at += dim {
			for j, v := range x[at : at+dim] {
				out[j] = max(out[j], v)
			}
		}
	case MeanPooling:
		sum := make([]float64, dim)
		for at := 0; at < len(x); at += dim {
			for j, v := range x[at : at+dim] {
				sum[j] += float64(v)
			}
		}
		n := float64(len(x) / dim)
		for j := range out {
			out[j] = float32(sum[j] / n)
		}
	}
	return out
}

// Normalize scales v to length 1, in place; a zero vector stays.
func Normalize(v []float32) {
	var sum float64
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	if sum == 0 {
		return
	}
	inv := 1 / math.Sqrt(sum)
	for i, x := range v {
		v[i] = float32(float64(x) * inv)
	}
}

// CountTokens returns how many tokens a text has with its special ones, before
// any is cut off.
func (e *TextEncoder) CountTokens(t Text) int {
	if t.HasPair {
		return len(e.tok.EncodePair(t.Text, t.Pair, 0, false).IDs)
	}
	return len(e.tok.Encode(t.Text, 0))
}

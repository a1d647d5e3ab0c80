package eval

import (
	"fmt"
	"math"
	"strings"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Kind says how a model's output is read.
type Kind string

const (
	// Auto decides by KindOf.
	Auto Kind = ""
	// Classifier: [1, C] with C >= 2, one logit or probability a class. Further
	// dimensions of 1 are dropped.
	Classifier Kind = "classifier"
	// Embedding: [1, s, d], one vector a token, pooled to their mean where the
	// attention mask is 1; or [1, d], already pooled.
	Embedding Kind = "embedding"
	// TokenClassifier: [1, s, C], class scores of each token (named entities, speech
	// and characters by CTC); the ones that the attention mask leaves out do not count.
	TokenClassifier Kind = "token-classifier"
	// Detections: boxes with their scores and classes in several outputs, or [1, n,
	// 6], matched by class and overlap (Detected).
	Detections Kind = "detections"
	// Other: any other tensor, compared element by element.
	Other Kind = "other"
)

// DefaultMask is the usual name of the input that marks real tokens with 1.
const DefaultMask = "attention_mask"

// KindOf guesses the kind of an output from its name and shape (-1 is any):
// rank 3 holds classes of tokens when the name speaks of logits, probabilities or a
// softmax, else an embedding; rank 2 holds logits unless the name says that it is an
// embedding.
func KindOf(name string, dims []int64) Kind {
	for len(dims) > 2 && dims[len(dims)-1] == 1 {
		dims = dims[:len(dims)-1]
	}
	n := strings.ToLower(name)
	vector := strings.Contains(n, "embed") || strings.Contains(n, "pool") || strings.Contains(n, "hidden")
	scores := strings.Contains(n, "logit") || strings.Contains(n, "prob") || strings.Contains(n, "softmax")
	switch {
	case len(dims) == 3 && scores && !vector && dims[2] != 1:
		return TokenClassifier
	case len(dims) == 3, len(dims) == 2 && vector:
		return Embedding
	case len(dims) == 2 && dims[1] != 1:
		return Classifier
	}
	return Other
}

// ArgMax returns the index of the largest element, the first of equals, or -1
// when an element is NaN or there is none: a model that says NaN says nothing.
func ArgMax(x []float32) int {
	best := -1
	for i, v := range x {
		if v != v {
			return -1
		}
		if best < 0 || v > x[best] {
			best = i
		}
	}
	return best
}

// floats returns the elements of a numeric or boolean tensor as float32, which
// is exact for class numbers and other small integers.
func floats(name string, t *tensor.Tensor) ([]float32, error) {
	if t == nil {
		return nil, fmt.Errorf("%w: the model did not return %q", ErrOutput, name)
	}
	if err := t.Check(); err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrOutput, name, err)
	}
	switch t.Type {
	case tensor.Int64:
		return convert[int64](t), nil
	case tensor.Int32:
		return convert[int32](t), nil
	case tensor.Uint8:
		return convert[uint8](t), nil
	case tensor.Int8:
		return convert[int8](t), nil
	case tensor.Bool:
		return convert[uint8](t), nil
	}
	x, err := t.F32()
	if err != nil {
		return nil, fmt.Errorf("%w: %q has type %v, expected numbers", ErrOutput, name, t.Type)
	}
	return x, nil
}

func convert[T int64 | int32 | uint8 | int8](t *tensor.Tensor) []float32 {
	v := tensor.View[T](t)
	r := make([]float32, len(v))
	for i, x := range v {
		r[i] = float32(x)
	}
	return r
}

// maskOf returns which of s tokens are real, or nil when the feeds hold no
// mask of that length.
func maskOf(in engine.Feeds, name string, s int64) []float32 {
	t, ok := in[name]
	if !ok || t == nil || t.Len() != s {
		return nil
	}
	m, err := floats(name, t)
	if err != nil {
		return nil
	}
	return m
}

// reading is one output of one sample, prepared for comparison.
type reading struct {
	// all holds the elements that count: for tokens, the unpadded ones.
	all []float32
	// vector is what a user of the model takes: logits, pooled embedding.
	vector []float32
	width  int // length of a token's vector inside all, 0 when not tokens
}

// read prepares an output of shape dims. x is not modified; the reading may
// share its memory.
func read(kind Kind, x []float32, dims []int64, in engine.Feeds, mask string) reading {
	for len(dims) > 3 && dims[len(dims)-1] == 1 {
		dims = dims[:len(dims)-1]
	}
	if kind != Embedding && kind != TokenClassifier || len(dims) != 3 || dims[0] != 1 || dims[1] == 0 || dims[2] == 0 {
		return reading{all: x, vector: x}
	}
	s, d := int(dims[1]), int(dims[2])
	m := maskOf(in, mask, dims[1])
	r := reading{all: x, width: d}
	if m != nil {
		r.all = make([]float32, 0, len(x))
		for i := range s {
			if m[i] != 0 {
				r.all = append(r.all, x[i*d:(i+1)*d]...)
			}
		}
	}
	if r.vector = r.all; kind == Embedding {
		r.vector = meanRows(r.all, d)
	}
	return r
}

// meanRows returns the mean of the rows of x, [n, d]; zeros when n is 0.
func meanRows(x []float32, d int) []float32 {
	sum := make([]float64, d)
	n := len(x) / d
	for i := range n {
		for j, v := range x[i*d : (i+1)*d] {
			sum[j] += float64(v)
		}
	}
	r := make([]float32, d)
	for j := range r {
		r[j] = float32(sum[j] / math.Max(1, float64(n)))
	}
	return r
}

// MeanPool returns the mean token vector of an output of shape [1, s, d] over
// the tokens that mask (named input of in; absent: all) marks: [d].
// ErrOutput unless the tensor has that shape.
func MeanPool(t *tensor.Tensor, in engine.Feeds, mask string) ([]float32, error) {
	x, err := floats("embedding", t)
	if err != nil {
		return nil, err
	}
	if len(t.Dims) != 3 || t.Dims[0] != 1 || t.Len() == 0 {
		return nil, fmt.Errorf("%w: shape %v cannot be pooled, expected [1, tokens, width]", ErrOutput, t.Dims)
	}
	return read(Embedding, x, t.Dims, in, mask).vector, nil
}

// Bounds of the nearest-neighbour comparison, which is quadratic in the
// samples and keeps every vector.
const (
	maxNeighbours     = 2000
	maxNeighbourBytes = 256 << 20
)

// neighbours collects pooled vectors of both models, scaled to length 1.
type neighbours struct {
	ref, quant [][]float32
	bytes      int
}

func (n *neighbours) add(ref, quant []float32) {
	n.bytes += 8 * len(ref)
	if len(n.ref) >= maxNeighbours || n.bytes > maxNeighbourBytes {
		return
	}
	n.ref = append(n.ref, unit(ref))
	n.quant = append(n.quant, unit(quant))
}

// agreement returns for how many samples the nearest other sample, by cosine,
// is the same one in both spaces.
func (n *neighbours) agreement() Score {
	hits := 0
	for i := range n.ref {
		if nearest(n.ref, i) == nearest(n.quant, i) {
			hits++
		}
	}
	return Proportion("nearest-neighbour agreement", hits, len(n.ref))
}

func nearest(v [][]float32, i int) int {
	best, at := float32(math.Inf(-1)), -1
	for j := range v {
		if j == i {
			continue
		}
		if d := dot(v[i], v[j]); d > best {
			best, at = d, j
		}
	}
	return at
}

func dot(a, b []float32) float32 {
	var s0, s1, s2, s3 float32
	b = b[:len(a)]
	i := 0
	for ; i+4 <= len(a); i += 4 {
		s0 += a[i] * b[i]
		s1 += a[i+1] * b[i+1]
		s2 += a[i+2] * b[i+2]
		s3 += a[i+3] * b[i+3]
	}
	for ; i < len(a); i++ {
		s0 += a[i] * b[i]
	}
	return s0 + s1 + s2 + s3
}

func unit(x []float32) []float32 {
	var s float64
	for _, v := range x {
		s += float64(v) * float64(v)
	}
	r := make([]float32, len(x))
	if s == 0 || math.IsNaN(s) || math.IsInf(s, 0) {
		return r
	}
	f := 1 / math.Sqrt(s)
	for i, v := range x {
		r[i] = float32(float64(v) * f)
	}
	return r
}

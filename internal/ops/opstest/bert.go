package opstest

import (
	"fmt"
	"math"
	"math/rand/v2"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// Head is what stands behind the encoder.
type Head int

// The heads.
const (
	// Tokens: no head. Output last_hidden_state FP32[batch,length,hidden].
	Tokens Head = iota
	// MeanPool: mean over the tokens whose mask is 1. Output
	// sentence_embedding FP32[batch,hidden].
	MeanPool
	// Classifier: the first token through a dense layer with Tanh and a Gemm
	// to Labels. Output logits FP32[batch,labels].
	Classifier
)

// Act is an activation and how it is written.
type Act int

// The activations.
const (
	Gelu            Act = iota // x (1 + erf(x / sqrt 2)) / 2, decomposed
	QuickGelu                  // x sigmoid(1.702 x), as in CLIP
	GeluTanh                   // 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with Pow
	GeluTanhProduct            // the same with x^3 as products, in another order
	FastGelu                   // the same as an operator of com.microsoft
	Silu                       // x sigmoid(x)
	Relu
)

// Scores is how the scores of attention are scaled and masked.
type Scores int

// The forms of scores.
const (
	// Divided: the product of queries and keys is divided, and the mask is added, as
	// in BERT, RoBERTa and ViT.
	Divided Scores = iota
	// Halved: queries and keys are both scaled by the root of the factor, and the
	// keys turned in two steps, as PyTorch exports scaled_dot_product_attention.
	Halved
	// Filled: queries are divided before they are split into heads, and a Where puts
	// the smallest float in the place of hidden scores, as in DistilBERT.
	Filled
)

// Causal is how a mask that hides later tokens is written.
type Causal int

// The forms of a causal mask.
const (
	// NotCausal: only padding is hidden.
	NotCausal Causal = iota
	// CausalConstant: a constant [Positions,Positions], as in CLIP's text tower, and
	// no padding. The length is Positions.
	CausalConstant
	// CausalSlice: the corner of that constant, and padding.
	CausalSlice
	// CausalTrilu: the upper half of a matrix of the smallest float, and padding.
	CausalTrilu
	// CausalWhere: positions that are compared, and padding where that is not hidden yet.
	CausalWhere
)

// BERT describes an encoder of Devlin et al. 2018 (arXiv:1810.04805): word,
// position and type embeddings, and layers of self-attention and feed-forward
// network, each with a residual and a layer normalization behind. Zero fields
// get the defaults of TinyBERT.
//
// Inputs are input_ids, attention_mask and token_type_ids INT64[batch,length].
type BERT struct {
	Layers, Hidden, Heads, FFN int
	Vocab, Positions, Types    int
	Head                       Head
	Labels                     int
	// Decomposed writes layer normalization as ReduceMean, Sub, Pow, ... and
	// computes the shapes of the heads in the graph, as exporters did before
	// opset 17.
	Decomposed bool
	// NormFirst normalizes before attention and feed-forward network instead of
	// behind their residuals, and once behind the last layer, as ViT and CLIP do.
	NormFirst bool
	// Act is the activation of the feed-forward network.
	Act Act
	// Scores is how the scores of attention are scaled and masked.
	Scores Scores
	// Fused writes the operators of com.microsoft that ONNX Runtime's optimizer for
	// transformers does. The other forms are not for it.
	Fused bool
	// Causal hides later tokens too.
	Causal Causal
	Seed   uint64
}

// TinyBERT is the encoder that most tests use.
var TinyBERT = BERT{Layers: 2, Hidden: 64, Heads: 4, FFN: 128, Vocab: 200, Positions: 64, Types: 2, Labels: 16, Seed: 1}

func (c BERT) withDefaults() BERT {
	for _, f := range []struct {
		v *int
		d int
	}{
		{&c.Layers, TinyBERT.Layers}, {&c.Hidden, TinyBERT.Hidden}, {&c.Heads, TinyBERT.Heads}, {&c.FFN, 2 * max(c.Hidden, TinyBERT.Hidden)},
		{&c.Vocab, TinyBERT.Vocab}, {&c.Positions, TinyBERT.Positions}, {&c.Types, TinyBERT.Types}, {&c.Labels, TinyBERT.Labels},
	} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	if c.Seed == 0 {
		c.Seed = TinyBERT.Seed
	}
	return c
}

// Every outlierStep-th channel of a layer normalization has a gain of
// outlierGain: trained encoders have such channels, and they are what makes
// per-tensor activations lose the answer.
const (
	outlierStep = 29
	outlierGain = 12
)

// Model builds the FP32 model.
func (c BERT) Model() *graph.Model {
	c = c.withDefaults()
	b := &bert{builder: newBuilder("bert", c.Seed), BERT: c, h: int64(c.Hidden)}
	for _, name := range []string{"input_ids", "attention_mask", "token_type_ids"} {
		b.input(name, tensor.Int64, "batch", "length")
	}
	var x string
	if c.Fused {
		x = b.fused()
	} else {
		x = b.embeddings()
		mask := b.mask()
		for i := range c.Layers {
			x = b.layer(fmt.Sprintf("layer.%d.", i), x, mask)
		}
	}
	if b.NormFirst {
		x = b.norm("final.", x)
	}
	b.head(x)
	return b.m
}

type bert struct {
	*builder
	BERT
	h int64
}

func (b *bert) embeddings() string {
	positions := make([]int64, b.Positions)
	for i := range positions {
		positions[i] = int64(i)
	}
	b.m.Graph.SetInit("position_ids", tensor.From(positions, 1, int64(b.Positions)))
	b.ints("zero", 0)
	b.ints("one", 1)
	b.normal("word_embeddings", 0, 1, int64(b.Vocab), b.h)
	b.normal("type_embeddings", 0, .3, int64(b.Types), b.h)
	b.normal("position_embeddings", 0, .3, int64(b.Positions), b.h)
	b.op("Shape", "ids_shape", "input_ids")
	b.op("Gather", "ids_length", "ids_shape one", graph.AttrInt("axis", 0))
	b.op("Slice", "positions", "position_ids zero ids_length one")
	b.op("Gather", "words", "word_embeddings input_ids")
	b.op("Gather", "types", "type_embeddings token_type_ids")
	b.op("Add", "words_types", "words types")
	b.op("Gather", "places", "position_embeddings positions")
	b.op("Add", "embedded", "words_types places")
	return b.norm("embeddings.", "embedded")
}

// mask is 0 where a token counts and the smallest float where it does not:
// [batch,1,1,length], as exporters write it.
func (b *bert) mask() string {
	b.ints("two", 2)
	b.scalar("one_f", 1)
	b.scalar("lowest", -math.MaxFloat32)
	b.op("Unsqueeze", "mask3", "attention_mask one")
	b.op("Unsqueeze", "mask4", "mask3 two")
	b.op("Cast", "mask_f", "mask4", graph.AttrInt("to", int64(tensor.Float32)))
	b.op("Sub", "mask_inverse", "one_f mask_f")
	if b.Scores == Filled {
		return b.op("Cast", "mask_hidden", "mask_inverse", graph.AttrInt("to", int64(tensor.Bool)))
	}
	padding := b.op("Mul", "mask", "mask_inverse lowest")
	if b.Causal != NotCausal {
		return b.causal(padding)
	}
	return padding
}

// causal is the mask that hides later tokens: [length,length], or with padding
// [batch,1,length,length].
func (b *bert) causal(padding string) string {
	p := int64(b.Positions)
	upper := make([]float32, p*p)
	for i := range upper {
		if int64(i)%p > int64(i)/p {
			upper[i] = -math.MaxFloat32
		}
	}
	b.op("Concat", "length_length", "ids_length ids_length", graph.AttrInt("axis", 0))
	switch b.Causal {
	case CausalConstant:
		b.m.Graph.SetInit("causal_mask", tensor.From(upper, p, p))
		return "causal_mask"
	case CausalSlice:
		b.m.Graph.SetInit("causal_mask", tensor.From(upper, 1, 1, p, p))
		b.ints("corner", 0, 0)
		b.ints("last_two", 2, 3)
		b.op("Slice", "causal", "causal_mask corner length_length last_two")
	case CausalTrilu:
		b.m.Graph.SetInit("above", tensor.From([]int64{1}))
		b.op("ConstantOfShape", "shown_all", "length_length")
		b.op("Add", "hidden_all", "shown_all lowest")
		b.op("Trilu", "causal", "hidden_all above", graph.AttrInt("upper", 1))
	case CausalWhere:
		b.m.Graph.SetInit("from0", tensor.From([]int64{0}))
		b.m.Graph.SetInit("step1", tensor.From([]int64{1}))
		b.m.Graph.SetInit("index_1", tensor.From([]int64{1}))
		b.scalar("shown", 0)
		b.ints("column", -1, 1)
		b.op("Gather", "ids_length_0", "ids_shape index_1", graph.AttrInt("axis", 0))
		b.op("Range", "range", "from0 ids_length_0 step1")
		b.op("Reshape", "range_column", "range column")
		b.op("LessOrEqual", "visible", "range range_column")
		b.op("Where", "causal", "visible shown lowest")
		b.op("Cast", "padded", "mask_inverse", graph.AttrInt("to", int64(tensor.Bool)))
		return b.op("Where", "causal_padding", "padded lowest causal")
	}
	return b.op("Add", "causal_padding", padding+" causal")
}

func (b *bert) norm(prefix, x string) string {
	p := prefix + "norm"
	gamma := make([]float32, b.h)
	for i := range gamma {
		gamma[i] = float32(1 + .1*b.r.NormFloat64())
		if i%outlierStep == outlierStep/2 {
			gamma[i] *= outlierGain
		}
	}
	b.m.Graph.SetInit(p+".gamma", tensor.From(gamma, b.h))
	b.normal(p+".beta", 0, .1, b.h)
	if !b.Decomposed {
		return b.op("LayerNormalization", p, x+" "+p+".gamma "+p+".beta", graph.AttrInt("axis", -1), graph.AttrFloat("epsilon", 1e-12))
	}
	b.scalar("pow2", 2)
	b.scalar("epsilon", 1e-12)
	last := graph.AttrInts("axes", -1)
	b.op("ReduceMean", p+".mean", x, last)
	b.op("Sub", p+".centred", x+" "+p+".mean")
	b.op("Pow", p+".squared", p+".centred pow2")
	b.op("ReduceMean", p+".variance", p+".squared", last)
	b.op("Add", p+".safe", p+".variance epsilon")
	b.op("Sqrt", p+".deviation", p+".safe")
	b.op("Div", p+".unit", p+".centred "+p+".deviation")
	b.op("Mul", p+".scaled", p+".unit "+p+".gamma")
	return b.op("Add", p, p+".scaled "+p+".beta")
}

// dense is x W + bias with W [in,out].
func (b *bert) dense(name, x string, in, out int) string {
	b.normal(name+".weight", 0, fanIn(in), int64(in), int64(out))
	b.normal(name+".bias", 0, .1, int64(out))
	b.op("MatMul", name+".product", x+" "+name+".weight")
	return b.op("Add", name, name+".bias "+name+".product")
}

func (b *bert) heads(name, x string, perm ...int64) string {
	b.op("Reshape", name+".heads", x+" "+b.split(name, x))
	return b.op("Transpose", name+".turned", name+".heads", graph.AttrInts("perm", perm...))
}

// split is the shape [batch,length,heads,size]: zeros copy, or computed.
func (b *bert) split(name, x string) string {
	n, size := int64(b.Heads), b.h/int64(b.Heads)
	if !b.Decomposed {
		return b.ints("split_heads", 0, 0, n, size)
	}
	b.ints("heads_n", n)
	b.ints("heads_size", size)
	return b.op("Concat", name+".sizes", b.lengths(name, x)+" heads_n heads_size", graph.AttrInt("axis", 0))
}

// lengths computes batch and length of x and names both.
func (b *bert) lengths(name, x string) string {
	b.m.Graph.SetInit("index0", tensor.From([]int64{0}))
	b.m.Graph.SetInit("index1", tensor.From([]int64{1}))
	for i, d := range []string{".batch", ".length"} {
		b.op("Shape", name+d+"_shape", x)
		b.op("Gather", name+d+"_index", fmt.Sprintf("%s_shape index%d", name+d, i), graph.AttrInt("axis", 0))
		b.op("Unsqueeze", name+d, name+d+"_index zero")
	}
	return name + ".batch " + name + ".length"
}

func (b *bert) layer(p, x, mask string) string {
	a := p + "attention."
	in := x
	if b.NormFirst {
		in = b.norm(a, x)
	}
	root := math.Sqrt(float64(b.Hidden / b.Heads))
	b.scalar("root_size", float32(root))
	query, turned := b.dense(a+"query.dense", in, b.Hidden, b.Hidden), []int64{0, 2, 3, 1}
	switch b.Scores {
	case Filled:
		query = b.op("Div", a+"query.divided", query+" root_size")
	case Halved:
		turned = []int64{0, 2, 1, 3}
	}
	q := b.heads(a+"query", query, 0, 2, 1, 3)
	k := b.heads(a+"key", b.dense(a+"key.dense", in, b.Hidden, b.Hidden), turned...)
	v := b.heads(a+"value", b.dense(a+"value.dense", in, b.Hidden, b.Hidden), 0, 2, 1, 3)
	switch b.Scores {
	case Divided:
		b.op("MatMul", a+"scores", q+" "+k)
		b.op("Div", a+"scaled", a+"scores root_size")
		b.op("Add", a+"masked", a+"scaled "+mask)
	case Halved:
		b.scalar("half_root", float32(1/math.Sqrt(root)))
		b.op("Mul", a+"query.scaled", q+" half_root")
		b.op("Transpose", a+"key.columns", k, graph.AttrInts("perm", 0, 1, 3, 2))
		b.op("Mul", a+"key.scaled", a+"key.columns half_root")
		b.op("MatMul", a+"scores", a+"query.scaled "+a+"key.scaled")
		b.op("Add", a+"masked", a+"scores "+mask)
	case Filled:
		b.op("MatMul", a+"scores", q+" "+k)
		b.op("Shape", a+"scores.shape", a+"scores")
		b.op("Expand", a+"hidden", "mask_hidden "+a+"scores.shape")
		b.op("Where", a+"masked", a+"hidden lowest "+a+"scores")
	}
	b.op("Softmax", a+"softmax", a+"masked", graph.AttrInt("axis", -1))
	b.op("MatMul", a+"context", a+"softmax "+v)
	b.op("Transpose", a+"joined", a+"context", graph.AttrInts("perm", 0, 2, 1, 3))
	sizes := b.ints("join_heads", 0, 0, b.h)
	if b.Decomposed {
		b.ints("hidden", b.h)
		sizes = b.op("Concat", a+"joined.sizes", b.lengths(a+"joined", a+"joined")+" hidden", graph.AttrInt("axis", 0))
	}
	b.op("Reshape", a+"flat", a+"joined "+sizes)
	b.op("Add", a+"residual", b.dense(a+"output", a+"flat", b.Hidden, b.Hidden)+" "+x)
	f := p + "ffn."
	if b.NormFirst {
		x, in = a+"residual", b.norm(f, a+"residual")
	} else {
		x = b.norm(a, a+"residual")
		in = x
	}
	up := b.gelu(f, b.dense(f+"up", in, b.Hidden, b.FFN))
	b.op("Add", f+"residual", b.dense(f+"down", up, b.FFN, b.Hidden)+" "+x)
	if b.NormFirst {
		return f + "residual"
	}
	return b.norm(f, f+"residual")
}

// gelu is the activation of x, decomposed as exporters do.
func (b *bert) gelu(p, x string) string {
	if b.Act == GeluTanh || b.Act == GeluTanhProduct {
		b.scalar("half", .5)
		b.scalar("cube", .044715)
		b.scalar("root_2_pi", float32(math.Sqrt(2/math.Pi)))
	}
	switch b.Act {
	case Gelu:
	case QuickGelu:
		b.scalar("quick", 1.702)
		b.op("Mul", p+"gelu.scaled", x+" quick")
		b.op("Sigmoid", p+"gelu.sigmoid", p+"gelu.scaled")
		return b.op("Mul", p+"gelu", x+" "+p+"gelu.sigmoid")
	case GeluTanh:
		b.scalar("three", 3)
		b.op("Mul", p+"gelu.half", x+" half")
		b.op("Pow", p+"gelu.cube", x+" three")
		b.op("Mul", p+"gelu.cubed", p+"gelu.cube cube")
		b.op("Add", p+"gelu.sum", x+" "+p+"gelu.cubed")
		b.op("Mul", p+"gelu.inner", p+"gelu.sum root_2_pi")
		b.op("Tanh", p+"gelu.tanh", p+"gelu.inner")
		b.op("Add", p+"gelu.shifted", p+"gelu.tanh one_f")
		return b.op("Mul", p+"gelu", p+"gelu.half "+p+"gelu.shifted")
	case GeluTanhProduct:
		b.op("Mul", p+"gelu.square", x+" "+x)
		b.op("Mul", p+"gelu.cube", x+" "+p+"gelu.square")
		b.op("Mul", p+"gelu.cubed", "cube "+p+"gelu.cube")
		b.op("Add", p+"gelu.sum", x+" "+p+"gelu.cubed")
		b.op("Mul", p+"gelu.inner", "root_2_pi "+p+"gelu.sum")
		b.op("Tanh", p+"gelu.tanh", p+"gelu.inner")
		b.op("Add", p+"gelu.shifted", "one_f "+p+"gelu.tanh")
		b.op("Mul", p+"gelu.product", x+" "+p+"gelu.shifted")
		return b.op("Mul", p+"gelu", "half "+p+"gelu.product")
	case FastGelu:
		b.op("FastGelu", p+"gelu", x)
		b.m.Graph.Nodes[len(b.m.Graph.Nodes)-1].Domain = graph.DomainMS
		b.m.Require(graph.DomainMS, 1)
		return p + "gelu"
	case Silu:
		b.op("Sigmoid", p+"gelu.sigmoid", x)
		return b.op("Mul", p+"gelu", x+" "+p+"gelu.sigmoid")
	case Relu:
		return b.op("Relu", p+"gelu", x)
	}
	b.scalar("root2", math.Sqrt2)
	b.scalar("half", .5)
	b.op("Div", p+"gelu.divided", x+" root2")
	b.op("Erf", p+"gelu.erf", p+"gelu.divided")
	b.op("Add", p+"gelu.shifted", p+"gelu.erf one_f")
	b.op("Mul", p+"gelu.product", x+" "+p+"gelu.shifted")
	return b.op("Mul", p+"gelu", p+"gelu.product half")
}

func (b *bert) head(x string) {
	switch b.Head {
	case MeanPool:
		b.ints("last_axis", -1)
		b.scalar("least", 1e-9)
		b.op("Unsqueeze", "pool.mask", "attention_mask last_axis")
		b.op("Shape", "pool.shape", x)
		b.op("Expand", "pool.wide", "pool.mask pool.shape")
		b.op("Cast", "pool.weights", "pool.wide", graph.AttrInt("to", int64(tensor.Float32)))
		b.op("Mul", "pool.product", x+" pool.weights")
		b.op("ReduceSum", "pool.sum", "pool.product one", graph.AttrInt("keepdims", 0))
		b.op("ReduceSum", "pool.count", "pool.weights one", graph.AttrInt("keepdims", 0))
		b.op("Clip", "pool.safe", "pool.count least")
		b.output(b.op("Div", "sentence_embedding", "pool.sum pool.safe"), "batch", b.Hidden)
	case Classifier:
		b.m.Graph.SetInit("first", tensor.From([]int64{0}))
		b.op("Gather", "pooler.first", x+" first", graph.AttrInt("axis", 1))
		b.normal("pooler.weight", 0, fanIn(b.Hidden), b.h, b.h)
		b.normal("pooler.bias", 0, .1, b.h)
		b.op("Gemm", "pooler.dense", "pooler.first pooler.weight pooler.bias", graph.AttrInt("transB", 1))
		b.op("Tanh", "pooler", "pooler.dense")
		b.normal("classifier.weight", 0, fanIn(b.Hidden), int64(b.Labels), b.h)
		b.normal("classifier.bias", 0, .1, int64(b.Labels))
		b.output(b.op("Gemm", "logits", "pooler classifier.weight classifier.bias", graph.AttrInt("transB", 1)), "batch", b.Labels)
	default:
		b.output(b.op("Identity", "last_hidden_state", x), "batch", "length", b.Hidden)
	}
}

// Feeds returns inputs for batch sentences of length tokens: the first has all
// of them, each further one is a token shorter, down to one, and padded.
func (c BERT) Feeds(seed uint64, batch, length int) map[string]*tensor.Tensor {
	c = c.withDefaults()
	r := rand.New(rand.NewPCG(seed, 1))
	n := batch * length
	ids, mask, types := make([]int64, n), make([]int64, n), make([]int64, n)
	for i := range ids {
		if at, real := i%length, max(length-i/length, 1); at < real {
			ids[i], mask[i] = 1+r.Int64N(int64(c.Vocab-1)), 1
			if at > real/2 {
				types[i] = int64(c.Types - 1)
			}
		}
	}
	return map[string]*tensor.Tensor{
		"input_ids":      tensor.From(ids, int64(batch), int64(length)),
		"attention_mask": tensor.From(mask, int64(batch), int64(length)),
		"token_type_ids": tensor.From(types, int64(batch), int64(length)),
	}
}

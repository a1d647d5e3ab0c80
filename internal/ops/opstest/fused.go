package opstest

import (
	"fmt"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// fused is the encoder in operators of com.microsoft.
func (b *bert) fused() string {
	b.m.Require(graph.DomainMS, 1)
	whole := graph.AttrInt("to", int64(tensor.Int32))
	for _, in := range []string{"input_ids", "attention_mask", "token_type_ids"} {
		b.op("Cast", in+"_32", in, whole)
	}
	b.ints("one", 1)
	b.normal("word_embeddings", 0, 1, int64(b.Vocab), b.h)
	b.normal("type_embeddings", 0, .3, int64(b.Types), b.h)
	b.normal("position_embeddings", 0, .3, int64(b.Positions), b.h)
	epsilon := graph.AttrFloat("epsilon", 1e-12)
	gain := func(p string) string {
		b.normal(p+".gamma", 1, .1, b.h)
		b.normal(p+".beta", 0, .1, b.h)
		return p + ".gamma " + p + ".beta"
	}
	x := "embeddings.norm"
	b.microsoft("EmbedLayerNormalization", x+" lengths", "input_ids_32 token_type_ids_32 word_embeddings position_embeddings type_embeddings "+gain(x)+" attention_mask_32", epsilon)
	product := func(name, x string, in, out int64) string {
		b.normal(name+".weight", 0, fanIn(int(in)), in, out)
		b.normal(name+".bias", 0, .1, out)
		return b.op("MatMul", name+".product", x+" "+name+".weight")
	}
	for i := range b.Layers {
		p := fmt.Sprintf("layer.%d.", i)
		a, f := p+"attention", p+"ffn"
		b.normal(a+".weight", 0, fanIn(b.Hidden), b.h, 3*b.h)
		b.normal(a+".bias", 0, .1, 3*b.h)
		b.microsoft("Attention", a, x+" "+a+".weight "+a+".bias lengths", graph.AttrInt("num_heads", int64(b.Heads)))
		b.microsoft("SkipLayerNormalization", a+".norm", product(a+".output", a, b.h, b.h)+" "+x+" "+gain(a+".norm")+" "+a+".output.bias", epsilon)
		b.microsoft("BiasGelu", f+".gelu", product(f+".up", a+".norm", b.h, int64(b.FFN))+" "+f+".up.bias")
		b.microsoft("SkipLayerNormalization", f+".norm", product(f+".down", f+".gelu", int64(b.FFN), b.h)+" "+a+".norm "+gain(f+".norm")+" "+f+".down.bias", epsilon)
		x = f + ".norm"
	}
	return x
}

func (b *bert) microsoft(op, outputs, in string, attrs ...*pb.AttributeProto) {
	out := strings.Fields(outputs)
	b.m.Graph.Nodes = append(b.m.Graph.Nodes, graph.NewNode(graph.DomainMS, op, out[0], strings.Fields(in), out, attrs...))
}

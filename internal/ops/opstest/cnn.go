package opstest

import (
	"fmt"
	"math/rand/v2"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// CNN describes a small image classifier of inverted residual blocks (Sandler
// et al. 2018, arXiv:1801.04381), batch normalization folded already: a strided
// stem with ReLU, blocks of pointwise expansion with ReLU6, depthwise 3x3 with
// ReLU6 and pointwise projection with a residual Add, a pointwise head with
// ReLU, global average pooling and a Gemm. Zero fields get the defaults of
// TinyCNN.
//
// Input image FP32[batch,3,size,size], output logits FP32[batch,classes].
type CNN struct {
	Size, Channels, Expand, Blocks, Classes int
	// MaxPool puts a 2x2 MaxPool behind the stem.
	MaxPool bool
	Seed    uint64
}

// TinyCNN is the network that most tests use. Its channels are no multiple of
// 16, so that kernels meet padding.
var TinyCNN = CNN{Size: 16, Channels: 12, Expand: 3, Blocks: 2, Classes: 20, Seed: 2}

func (c CNN) withDefaults() CNN {
	for _, f := range []struct {
		v *int
		d int
	}{{&c.Size, TinyCNN.Size}, {&c.Channels, TinyCNN.Channels}, {&c.Expand, TinyCNN.Expand}, {&c.Blocks, TinyCNN.Blocks}, {&c.Classes, TinyCNN.Classes}} {
		if *f.v == 0 {
			*f.v = f.d
		}
	}
	if c.Seed == 0 {
		c.Seed = TinyCNN.Seed
	}
	return c
}

// Model builds the FP32 model.
func (c CNN) Model() *graph.Model {
	c = c.withDefaults()
	b := newBuilder("cnn", c.Seed)
	b.input("image", tensor.Float32, "batch", 3, c.Size, c.Size)
	b.scalar("zero", 0)
	b.scalar("six", 6)
	x := b.op("Relu", "stem.relu", b.conv("stem", "image", 3, c.Channels, 3, 2, 1))
	if c.MaxPool {
		x = b.op("MaxPool", "stem.pool", x, graph.AttrInts("kernel_shape", 2, 2), graph.AttrInts("strides", 2, 2))
	}
	wide := c.Channels * c.Expand
	for i := range c.Blocks {
		p := fmt.Sprintf("block.%d.", i)
		y := b.op("Clip", p+"expand.relu6", b.conv(p+"expand", x, c.Channels, wide, 1, 1, 1)+" zero six")
		y = b.op("Clip", p+"depthwise.relu6", b.conv(p+"depthwise", y, wide, wide, 3, 1, wide)+" zero six")
		x = b.op("Add", p+"add", b.conv(p+"project", y, wide, c.Channels, 1, 1, 1)+" "+x)
	}
	x = b.op("Relu", "head.relu", b.conv("head", x, c.Channels, wide, 1, 1, 1))
	x = b.op("GlobalAveragePool", "pool", x)
	x = b.op("Flatten", "flat", x)
	b.normal("fc.weight", 0, 2*fanIn(wide), int64(c.Classes), int64(wide))
	b.normal("fc.bias", 0, .1, int64(c.Classes))
	b.output(b.op("Gemm", "logits", x+" fc.weight fc.bias", graph.AttrInt("transB", 1)), "batch", c.Classes)
	return b.m
}

// conv is a square convolution with bias that keeps the size at stride 1.
func (b *builder) conv(name, x string, in, out, kernel, stride, groups int) string {
	k, pad := int64(kernel), int64(kernel/2)
	// ReLU halves the variance (He et al. 2015, arXiv:1502.01852).
	const gain = 1.4142135
	b.normal(name+".weight", 0, gain*fanIn(in/groups*kernel*kernel), int64(out), int64(in/groups), k, k)
	b.normal(name+".bias", 0, .2, int64(out))
	return b.op("Conv", name, x+" "+name+".weight "+name+".bias", graph.AttrInts("kernel_shape", k, k),
		graph.AttrInts("strides", int64(stride), int64(stride)), graph.AttrInts("pads", pad, pad, pad, pad),
		graph.AttrInts("dilations", 1, 1), graph.AttrInt("group", int64(groups)))
}

// Feeds returns batch images of independent N(0,1) pixels.
func (c CNN) Feeds(seed uint64, batch int) map[string]*tensor.Tensor {
	c = c.withDefaults()
	r := rand.New(rand.NewPCG(seed, 1))
	x := make([]float32, batch*3*c.Size*c.Size)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return map[string]*tensor.Tensor{"image": tensor.From(x, int64(batch), 3, int64(c.Size), int64(c.Size))}
}

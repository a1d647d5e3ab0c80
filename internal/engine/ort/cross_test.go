package ort

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/tensor"
)

// crossAttention is encoderAttention with the first rows of its queries alone.
func (c *bentCase) crossAttention(*testing.T) {
	batch, length, heads, size := int64(pick(&c.src, 1, 2, 0)), int64(pick(&c.src, 1, 2, 7, 17, 33, 70)), int64(1+c.src.of(3)), int64(pick(&c.src, 1, 3, 15, 16, 17, 32, 64))
	queries, width := 1+int64(c.src.of(int(length))), heads*size
	x := c.activation(batch, length, 3*width)
	all := tensor.View[float32](x)
	var q, kv []float32
	for r := range batch * length {
		if r%length < queries {
			q = append(q, all[r*3*width:][:width]...)
		}
		kv = append(kv, all[r*3*width+width:][:2*width]...)
	}
	c.feed("q", tensor.From(q, batch, queries, width))
	c.feed("kv", tensor.From(kv, batch, length, 2*width))
	in := []string{"q", "kv", ""}
	var mask *tensor.Tensor
	if c.src.of(2) == 1 {
		if m := c.mask(batch, heads, length); m.Dims[2] == 1 {
			mask = m
			c.feed("mask", mask)
			in[2] = "mask"
		}
	}
	scale := pick(&c.src, .25, 1, -.5)
	c.node("CrossAttention", in, attrInt("N", width), attrInt("num_heads", heads), attrFloat("scale", float32(scale)))
	want, within := attended(all, mask, batch, length, heads, size, scale)
	if want == nil {
		return
	}
	c.want = []float64{}
	for b := range batch {
		c.want = append(c.want, want[b*length*width:][:queries*width]...)
	}
	each := int(queries * width)
	c.within = func(i int) float64 { return within(i/each*int(length*width) + i%each) }
}

// TestCrossAttentionMisfits: a node or an input that does not fit is an error that
// names the operator.
func TestCrossAttentionMisfits(t *testing.T) {
	e := withKernels(t)
	const width, heads = 24, 2
	r := rand.New(rand.NewPCG(1, 1))
	floats := func(dims ...int64) *tensor.Tensor { return tensor.From(randoms(r, count(dims)), dims...) }
	usual := func() []*pb.AttributeProto {
		return []*pb.AttributeProto{attrInt("N", width), attrInt("num_heads", heads), attrFloat("scale", .25)}
	}
	q, kv := floats(2, 3, width), floats(2, 5, 2*width)
	for name, tc := range map[string]struct {
		attrs []*pb.AttributeProto
		feeds engine.Feeds
		fits  bool
	}{
		"as it should be":         {usual(), engine.Feeds{"q": q, "kv": kv, "mask": floats(1, 1, 3, 5)}, true},
		"a mask of each sample":   {usual(), engine.Feeds{"q": q, "kv": kv, "mask": floats(2, heads, 1, 5)}, true},
		"no queries":              {usual(), engine.Feeds{"q": floats(2, 0, width), "kv": kv, "mask": floats(1, 1, 1, 5)}, true},
		"no keys":                 {usual(), engine.Feeds{"q": q, "kv": floats(2, 0, 2*width), "mask": floats(1, 1, 1, 0)}, false},
		"other samples":           {usual(), engine.Feeds{"q": q, "kv": floats(1, 5, 2*width), "mask": floats(1, 1, 1, 5)}, false},
		"queries of other width":  {usual(), engine.Feeds{"q": floats(2, 3, width+1), "kv": kv, "mask": floats(1, 1, 1, 5)}, false},
		"keys of other width":     {usual(), engine.Feeds{"q": q, "kv": floats(2, 5, 3*width), "mask": floats(1, 1, 1, 5)}, false},
		"a mask of the keys' own": {usual(), engine.Feeds{"q": q, "kv": kv, "mask": floats(1, 1, 5, 5)}, false},
		"two dimensions":          {usual(), engine.Feeds{"q": floats(3, width), "kv": kv, "mask": floats(1, 1, 1, 5)}, false},
		"heads that do not divide": {[]*pb.AttributeProto{attrInt("N", width), attrInt("num_heads", 5), attrFloat("scale", .25)},
			engine.Feeds{"q": q, "kv": kv, "mask": floats(1, 1, 1, 5)}, false},
		"no scale":                  {usual()[:2], engine.Feeds{"q": q, "kv": kv, "mask": floats(1, 1, 1, 5)}, false},
		"hidden rows are something": {append(usual(), attrString("hidden", "one")), engine.Feeds{"q": q, "kv": kv, "mask": floats(1, 1, 1, 5)}, false},
	} {
		n := node("CrossAttention", []string{"q", "kv", "mask"}, []string{"y"}, tc.attrs...)
		n.Domain = proto.String("fewbit")
		m := testModel{nodes: []*pb.NodeProto{n}, out: []*pb.ValueInfoProto{rankless("y", tensor.Float32)}, domains: []string{"fewbit"}}
		for _, in := range []string{"q", "kv", "mask"} {
			m.in = append(m.in, rankless(in, tensor.Float32))
		}
		s, err := e.Open(context.Background(), m.file(t), engine.Options{})
		if err == nil {
			_, err = s.Run(context.Background(), tc.feeds, nil)
			s.Close()
		}
		switch {
		case tc.fits && err != nil:
			t.Errorf("%s: %v", name, err)
		case !tc.fits && (!errors.Is(err, engine.ErrModel) && !errors.Is(err, engine.ErrInput) || !strings.Contains(err.Error(), "CrossAttention")):
			t.Errorf("%s: %v, want ErrModel or ErrInput", name, err)
		}
	}
}

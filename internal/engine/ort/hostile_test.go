package ort

import (
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/onnx/pb"
	"github.com/fewbit/fewbit/internal/ops"
	"github.com/fewbit/fewbit/internal/tensor"
)

// FuzzOperators makes a model of one operator of libfewbit_cpu and a feed for it
// from arbitrary bytes: sizes, attributes, weights, and up to three things that
// are wrong with it. What is right has to give the right result; whatever else
// it is has to end in an error or give any result, and the process lives.
//
// The library of the address sanitizer is fuzzed by make fuzz-cpu.
func FuzzOperators(f *testing.F) {
	const seeds = 400 // in each go test: a few seconds
	r := rand.New(rand.NewPCG(7, 7))
	for range seeds {
		b := make([]byte, 8+r.IntN(8))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := newBentCase(t, withKernels(t), b)
		c.run(t)
	})
}

// choices hands out small numbers: of the bytes, and random ones behind them.
type choices struct {
	bytes []byte
	r     *rand.Rand
}

func (c *choices) of(n int) int {
	if len(c.bytes) == 0 {
		return c.r.IntN(n)
	}
	v := c.bytes[0]
	c.bytes = c.bytes[1:]
	return int(v) % n
}

func pick[T any](c *choices, of ...T) T { return of[c.of(len(of))] }

// bentCase is a model of one node, a feed, and what comes out.
type bentCase struct {
	e     *Engine
	src   choices
	r     *rand.Rand
	m     testModel
	data  []byte // of external data
	feeds engine.Feeds
	o     engine.Options
	// want is the result, nil where nothing is known of it; within says how far
	// element i may be from it.
	want   []float64
	within func(i int) float64
	edits  []string
	// norm, unless it is 0, takes within's place: the error's norm by that of want.
	norm float64
}

func newBentCase(t *testing.T, e *Engine, b []byte) *bentCase {
	seed := uint64(crc32.ChecksumIEEE(b))
	c := &bentCase{e: e, r: rand.New(rand.NewPCG(seed, 1)), src: choices{b, rand.New(rand.NewPCG(seed, 2))}, feeds: engine.Feeds{}}
	c.m = testModel{domains: []string{"fewbit"}, out: []*pb.ValueInfoProto{rankless("y", tensor.Float32)}}
	c.o.Threads = 1 + c.src.of(3)
	edits := c.src.of(4)
	pick(&c.src, c.linearRows, c.matMulBF16, c.patchesBF16, c.encoderAttention, c.crossAttention, c.encoderLayers)(t)
	for range edits {
		c.bend()
	}
	return c
}

func (c *bentCase) run(t *testing.T) {
	what := fmt.Sprintf("%s %v", c.m.nodes[0].GetOpType(), c.edits)
	dir := t.TempDir()
	b, err := proto.Marshal(c.m.proto())
	if err != nil {
		t.Skip(err)
	}
	path := filepath.Join(dir, "model.onnx")
	for name, b := range map[string][]byte{path: b, filepath.Join(dir, "side.bin"): c.data} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := c.e.Open(t.Context(), path, c.o)
	if err != nil {
		c.failed(t, what, err)
		return
	}
	defer s.Close()
	res, err := s.Run(t.Context(), c.feeds, nil)
	if err != nil {
		c.failed(t, what, err)
		return
	}
	defer res.Close()
	y := res.Tensors()["y"]
	if c.want == nil {
		return
	}
	got := tensor.View[float32](y)
	if len(got) != len(c.want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(c.want))
	}
	if c.norm != 0 {
		var d, all float64
		for i, v := range got {
			d, all = d+(float64(v)-c.want[i])*(float64(v)-c.want[i]), all+c.want[i]*c.want[i]
		}
		if !(math.Sqrt(d) <= c.norm*math.Sqrt(all)) {
			t.Fatalf("%s: %v is off by %.2g", what, y.Dims, math.Sqrt(d/all))
		}
		return
	}
	for i, v := range got {
		if w := c.want[i]; math.IsNaN(w) != math.IsNaN(float64(v)) || float64(v) != w && math.Abs(float64(v)-w) > c.within(i) {
			t.Fatalf("%s: element %d of %v is %v, want %v", what, i, y.Dims, v, w)
		}
	}
}

// failed: what was right must not fail, and an error is words in one line.
func (c *bentCase) failed(t *testing.T, what string, err error) {
	if len(c.edits) == 0 {
		t.Fatalf("%s: %v", what, err)
	}
	if err.Error() == "" || strings.Contains(err.Error(), "\n") {
		t.Fatalf("%s: the error %q", what, err)
	}
}

// feed makes x an input, whose type or dimensions the model may leave open.
func (c *bentCase) feed(name string, x *tensor.Tensor) {
	v := rankless(name, x.Type)
	if c.src.of(2) == 1 {
		dims := make([]any, len(x.Dims))
		for i, d := range x.Dims {
			dims[i] = pick[any](&c.src, nil, fmt.Sprintf("%s_%d", name, i), int(d))
		}
		v = value(name, x.Type, dims...)
	}
	c.m.in, c.feeds[name] = append(c.m.in, v), x
}

func (c *bentCase) constant(v *tensor.Tensor) string {
	name := fmt.Sprintf("c%d", len(c.m.init))
	c.m.init = append(c.m.init, initializer(name, v))
	return name
}

func (c *bentCase) node(op string, in []string, attrs ...*pb.AttributeProto) {
	n := node(op, in, []string{"y"}, attrs...)
	n.Domain = proto.String("fewbit")
	c.m.nodes = []*pb.NodeProto{n}
}

// size is a small size around the edges of vectors, steps and panels.
func (c *bentCase) size() int { return pick(&c.src, 1, 2, 7, 8, 15, 16, 17, 32, 33, 48, 49, 96, 101) }

// rows are the leading dimensions of an activation.
func (c *bentCase) rows() []int64 {
	return pick(&c.src, []int64{}, []int64{1}, []int64{3}, []int64{2, 5}, []int64{0}, []int64{4, 0}, []int64{1, 1, 1, 9}, []int64{67})
}

func count(dims []int64) int {
	n := 1
	for _, d := range dims {
		n *= int(d)
	}
	return n
}

// activation is of normal values; strange ones are among them if the choice is so.
func (c *bentCase) activation(dims ...int64) *tensor.Tensor {
	x := randoms(c.r, count(dims))
	if c.src.of(3) == 1 && len(x) > 0 {
		inf := float32(math.Inf(1))
		bad := pick(&c.src, float32(math.NaN()), inf, -inf, math.MaxFloat32, 1e-42, 0, -3e38)
		if c.src.of(4) == 0 {
			for i := range x {
				x[i] = bad
			}
		}
		for range 1 + c.src.of(3) {
			x[c.r.IntN(len(x))] = bad
		}
	}
	return tensor.From(x, dims...)
}

// int8Weight is a weight in the form of the file and packed.
type int8Weight struct {
	k, n   int
	codes  []int8
	scales []float32
	packed []byte
}

func (c *bentCase) int8Weight(t *testing.T, k, n int) int8Weight {
	return c.paddedWeight(t, k, n, 1, 1)
}

// paddedWeight has zeros in the columns of each step behind those used, and 4 bits
// in one case of two where its rows make whole blocks.
func (c *bentCase) paddedWeight(t *testing.T, k, n, used, step int) int8Weight {
	w := int8Weight{k: k, n: n, codes: make([]int8, k*n), scales: make([]float32, n), packed: make([]byte, c.e.Int8Size(k, n))}
	for i := range w.codes {
		if i%n%step < used {
			w.codes[i] = int8(c.r.IntN(255) - 127)
		}
	}
	for i := range w.scales {
		w.scales[i] = .015 / float32(math.Sqrt(float64(k)))
	}
	if size := c.e.Int4Size(k, n); size > 0 && c.src.of(2) == 1 {
		c.int4Weight(t, &w, size, used, step)
		return w
	}
	if err := c.e.PackInt8(w.codes, w.scales, k, n, w.packed, 2); err != nil {
		t.Fatal(err)
	}
	return w
}

// int4Weight makes w one in 4 bits.
func (c *bentCase) int4Weight(t *testing.T, w *int8Weight, size, used, step int) {
	codes, steps := make([]uint8, w.k/2*w.n), make([]int8, w.k/ops.BlockRows*w.n)
	for i := range codes {
		codes[i] = uint8(c.r.Uint32())
	}
	for i := range steps {
		if i%w.n%step < used {
			steps[i] = int8(c.r.IntN(2*ops.MaxStep+1) - ops.MaxStep)
		}
	}
	var err error
	if w.codes, err = ops.ExpandBlocks(codes, steps, w.k, w.n); err != nil {
		t.Fatal(err)
	}
	w.packed = make([]byte, size)
	if err := c.e.PackInt4(codes, steps, w.scales, w.k, w.n, w.packed, 2); err != nil {
		t.Fatal(err)
	}
}

func (c *bentCase) optional(n int, f func(v []float32)) (string, []float32) {
	if c.src.of(2) == 0 {
		return "", nil
	}
	v := randoms(c.r, n)
	if f != nil {
		f(v)
	}
	return c.constant(tensor.From(v, int64(n))), v
}

func positive(v []float32) {
	for i := range v {
		v[i] = float32(math.Abs(float64(v[i]))) + .1
	}
}

func (c *bentCase) linearRows(t *testing.T) {
	w := c.int8Weight(t, c.size(), c.size())
	dims := append(c.rows(), int64(w.k))
	x := c.activation(dims...)
	c.feed("x", x)
	in := []string{"x", c.constant(tensor.From(w.packed, int64(len(w.packed))))}
	divisorName, divisor := c.optional(w.k, positive)
	biasName, bias := c.optional(w.n, nil)
	in = append(in, divisorName, biasName, "")
	var residual []float32
	if c.src.of(2) == 1 {
		r := c.activation(append(slices.Clone(dims[:len(dims)-1]), int64(w.n))...)
		c.feed("r", r)
		in[4], residual = "r", tensor.View[float32](r)
	}
	attrs := []*pb.AttributeProto{attrInt("N", int64(w.n))}
	act := pick(&c.src, "", "", "gelu", "gelu_tanh", "quick_gelu", "silu", "relu")
	if act != "" {
		attrs = append(attrs, attrString("activation", act))
	}
	c.node("LinearRows", in, attrs...)
	c.want = projected(tensor.View[float32](x), w, divisor, bias, residual, act)
	c.within = func(i int) float64 {
		if act != "" && act != "relu" {
			return geluTolerance * max(1, math.Abs(c.want[i]))
		}
		return 0
	}
}

func (c *bentCase) matMulBF16(t *testing.T) {
	k, n := c.size(), c.size()
	w := randoms(c.r, k*n)
	packed := make([]byte, c.e.BF16Size(k, n))
	if err := c.e.PackBF16(w, k, n, packed, 2); err != nil {
		t.Fatal(err)
	}
	x := c.activation(append(c.rows(), int64(k))...)
	c.feed("x", x)
	in := []string{"x", c.constant(tensor.From(packed, int64(len(packed))))}
	name, bias := c.optional(n, nil)
	c.node("MatMulBF16", append(in, name), attrInt("N", int64(n)))
	c.want, c.within = productBF16(tensor.View[float32](x), w, k, n, bias)
}

func (c *bentCase) patchesBF16(t *testing.T) {
	batch, channels, height, width, n := pick(&c.src, 1, 2, 0), 1+c.src.of(3), 1+c.src.of(9), 1+c.src.of(17), c.size()
	rows, columns := height*(1+c.src.of(3))+c.src.of(height), width*(1+c.src.of(3))+c.src.of(width)
	k := channels * height * width
	w := randoms(c.r, k*n)
	packed := make([]byte, c.e.BF16Size(k, n))
	if err := c.e.PackBF16(w, k, n, packed, 2); err != nil {
		t.Fatal(err)
	}
	x := c.activation(int64(batch), int64(channels), int64(rows), int64(columns))
	c.feed("x", x)
	in := []string{"x", c.constant(tensor.From(packed, int64(len(packed))))}
	name, bias := c.optional(n, nil)
	c.node("PatchesBF16", append(in, name), attrInt("N", int64(n)), attrInt("height", int64(height)), attrInt("width", int64(width)))
	c.want, c.within = productBF16(patchesOf(tensor.View[float32](x), batch, channels, rows, columns, height, width), w, k, n, bias)
}

// mask is a bias of scores: padding, whole rows of it, later keys, and what is no
// number.
func (c *bentCase) mask(batch, heads, length int64) *tensor.Tensor {
	dims := []int64{pick(&c.src, 1, batch), pick(&c.src, 1, heads), pick(&c.src, 1, length), length}
	v := randoms(c.r, count(dims))
	low := pick(&c.src, -10000, -math.MaxFloat32, float32(math.Inf(-1)))
	causal := c.src.of(3) == 0 && dims[2] == length
	for i := range v {
		if causal {
			v[i] = 0
			if r := i / int(length) % int(length); i%int(length) > r {
				v[i] = low
			}
			continue
		}
		switch all := c.src.of(5); {
		case all == 1 || c.r.IntN(3) == 0 && all != 2:
			v[i] = low
		case all == 3:
			v[i] = float32(math.NaN())
		}
	}
	return tensor.From(v, dims...)
}

func (c *bentCase) encoderAttention(*testing.T) {
	batch, length, heads, size := int64(pick(&c.src, 1, 2, 0)), int64(pick(&c.src, 1, 2, 7, 17, 33, 70, 0)), int64(1+c.src.of(3)), int64(pick(&c.src, 1, 3, 15, 16, 17, 32, 64))
	x := c.activation(batch, length, 3*heads*size)
	c.feed("x", x)
	in := []string{"x", ""}
	var mask *tensor.Tensor
	if c.src.of(2) == 1 {
		mask = c.mask(batch, heads, length)
		c.feed("mask", mask)
		in[1] = "mask"
	}
	scale := pick(&c.src, .25, 1, -.5)
	c.node("EncoderAttention", in, attrInt("N", heads*size), attrInt("num_heads", heads), attrFloat("scale", float32(scale)))
	c.want, c.within = attended(tensor.View[float32](x), mask, batch, length, heads, size, scale)
}

// bend makes one thing wrong.
func (c *bentCase) bend() {
	n := c.m.nodes[0]
	edit := pick(&c.src, c.bendAttribute, c.bendAttribute, c.bendEdges, c.bendConstant, c.bendConstant, c.bendPacked, c.bendFeed, c.bendFeed, c.bendVersion, c.bendExternal)
	c.want = nil
	c.edits = append(c.edits, edit(n))
}

func (c *bentCase) bendAttribute(n *pb.NodeProto) string {
	a := &pb.AttributeProto{Name: proto.String(pick(&c.src, "N", "num_heads", "scale", "epsilon", "activation", "normalize", "padding", "hidden", "height", "width", "unknown"))}
	switch c.src.of(6) {
	case 0:
		a = attrInt(a.GetName(), pick[int64](&c.src, 0, 1, -1, math.MaxInt64, math.MinInt64, 1<<20, 1<<20+1, 1<<31, 48, 3))
	case 1:
		a = attrFloat(a.GetName(), pick(&c.src, 0, -1, float32(math.NaN()), float32(math.Inf(1)), math.MaxFloat32, 1e-45))
	case 2:
		a = attrString(a.GetName(), pick(&c.src, "", "gelu", "silu", "first", "skip", "tanh", "gelu\x00", strings.Repeat("x", 1<<12), "\xff\xfe"))
	case 3:
		a.Type, a.Ints = pb.AttributeProto_INTS.Enum(), []int64{1, 2, 3}
	case 4:
		a.Type, a.T = pb.AttributeProto_TENSOR.Enum(), initializer("", tensor.From([]float32{1}, 1))
	case 5: // none at all
	}
	n.Attribute = slices.DeleteFunc(n.Attribute, func(old *pb.AttributeProto) bool { return old.GetName() == a.GetName() })
	if a.Type != nil {
		n.Attribute = append(n.Attribute, a)
	}
	return "attribute " + a.String()
}

func (c *bentCase) bendEdges(n *pb.NodeProto) string {
	at := func() int {
		if len(n.Input) == 0 {
			n.Input = []string{"x"}
		}
		return c.src.of(len(n.Input))
	}
	switch c.src.of(7) {
	case 0:
		n.Input[at()] = ""
	case 1:
		n.Input = n.Input[:at()]
	case 2:
		i := at()
		n.Input = slices.Delete(n.Input, i, i+1)
	case 3:
		i, j := at(), at()
		n.Input[i], n.Input[j] = n.Input[j], n.Input[i]
	case 4:
		n.Input = append(n.Input, n.Input[at()])
	case 5:
		n.Output = pick(&c.src, []string{""}, []string{"y", "z"}, nil, []string{"", "y"})
		if !slices.Contains(n.Output, "y") { // so that the model is one all the same
			c.m.nodes = append(c.m.nodes, node("Identity", []string{"x"}, []string{"y"}))
		}
	case 6:
		i := at()
		for range 40 {
			n.Input = append(n.Input, n.Input[i])
		}
	}
	return fmt.Sprintf("edges %d -> %q", len(n.Input), n.Output)
}

func (c *bentCase) bendConstant(*pb.NodeProto) string {
	if len(c.m.init) == 0 {
		return "no constant"
	}
	p := c.m.init[c.src.of(len(c.m.init))]
	switch c.src.of(7) {
	case 0: // cut, its dimensions with it
		p.RawData = p.RawData[:len(p.RawData)*c.src.of(16)/16]
		if p.GetDataType() == int32(tensor.Uint8) {
			p.Dims = []int64{int64(len(p.RawData))}
		} else {
			p.RawData = p.RawData[:len(p.RawData)/4*4]
			p.Dims = []int64{int64(len(p.RawData) / 4)}
		}
	case 1: // cut, and it says it was not
		p.RawData = p.RawData[:len(p.RawData)/2]
	case 2:
		p.DataType = proto.Int32(int32(pick(&c.src, 0, 1, 2, 3, 7, 8, 9, 10, 16, 22, 99)))
	case 3:
		p.Dims = pick(&c.src, []int64{}, []int64{0}, []int64{-1}, []int64{1, int64(len(p.RawData))}, []int64{1 << 40, 1 << 40}, []int64{math.MaxInt64}, append([]int64{1, 1}, p.Dims...))
	case 4: // fed
		c.m.in = append(c.m.in, rankless(p.GetName(), tensor.DType(p.GetDataType())))
		c.feeds[p.GetName()] = &tensor.Tensor{Type: tensor.DType(p.GetDataType()), Dims: p.Dims, Data: p.RawData}
		c.m.init = slices.DeleteFunc(c.m.init, func(q *pb.TensorProto) bool { return q == p })
	case 5: // fed, with a default
		c.m.in = append(c.m.in, rankless(p.GetName(), tensor.DType(p.GetDataType())))
	case 6:
		b := slices.Clone(p.RawData)
		for range 1 + c.src.of(4) {
			if len(b) > 0 {
				b[c.r.IntN(len(b))] ^= byte(1 << c.src.of(8))
			}
		}
		p.RawData = b
	}
	return fmt.Sprintf("constant %s type %d dims %v bytes %d", p.GetName(), p.GetDataType(), p.Dims, len(p.RawData))
}

// bendPacked changes the header of a packed weight, or what stands behind its panels.
func (c *bentCase) bendPacked(*pb.NodeProto) string {
	for _, p := range c.m.init {
		if p.GetDataType() != int32(tensor.Uint8) || len(p.RawData) < 64 {
			continue
		}
		b := slices.Clone(p.RawData)
		p.RawData = b
		switch c.src.of(4) {
		case 0:
			b[c.src.of(16)] ^= byte(1 + c.src.of(255))
		case 1:
			b[16+c.src.of(16)] ^= byte(1 + c.src.of(255))
		case 2:
			copy(b, "fewbit int8 2")
		case 3: // sums and scales
			for i := range b[64:] {
				b[len(b)-1-i] = pick[byte](&c.src, 0xff, 0x7f, 0x80)
				if i > 400 {
					break
				}
			}
		}
		return "packed " + p.GetName()
	}
	return "nothing packed"
}

func (c *bentCase) bendFeed(*pb.NodeProto) string {
	name := pick(&c.src, "x", "mask", "r")
	old := c.feeds[name]
	if old == nil {
		return "no feed " + name
	}
	dims := slices.Clone(old.Dims)
	if len(dims) == 0 {
		dims = []int64{1}
	}
	i := c.src.of(len(dims))
	switch c.src.of(6) {
	case 0:
		dims[i] = 0
	case 1:
		dims[i]++
	case 2:
		dims = append(dims, 1)
	case 3:
		dims = dims[:len(dims)-1]
	case 4:
		dims = append([]int64{1}, dims...)
	case 5:
		dims[i] = 300
	}
	if count(dims) > 1<<20 {
		return "a feed that is too large for a test"
	}
	c.feeds[name] = c.activation(dims...)
	for _, in := range c.m.in {
		if in.GetName() == name {
			in.Type = tensorType(tensor.Float32)
		}
	}
	return fmt.Sprintf("feed %s %v", name, dims)
}

// bendVersion asks for a version of the domain, or of the model, that is another.
func (c *bentCase) bendVersion(n *pb.NodeProto) string {
	switch c.src.of(3) {
	case 0:
		c.m.domains = nil
	case 1:
		c.m.domains = []string{"fewbit", "fewbit"}
	case 2:
		n.OpType = proto.String(pick(&c.src, "LinearRows", "EncoderAttention", "CrossAttention", "EncoderLayers", "MatMulBF16", "QuantizeRows", ""))
	}
	return fmt.Sprintf("domains %v, operator %q", c.m.domains, n.GetOpType())
}

// bendExternal moves a constant into a file, where it may lie anywhere.
func (c *bentCase) bendExternal(*pb.NodeProto) string {
	if len(c.m.init) == 0 {
		return "no constant"
	}
	p := c.m.init[c.src.of(len(c.m.init))]
	gap := pick(&c.src, 0, 1, 2, 3, 4, 63, 4096, 4097)
	size, offset := len(p.RawData), len(c.data)+gap
	c.data = append(append(c.data, make([]byte, gap)...), p.RawData...)
	switch c.src.of(4) {
	case 1:
		offset += 1 << 30
	case 2:
		size++
	}
	p.RawData, p.DataLocation = nil, pb.TensorProto_EXTERNAL.Enum()
	for _, kv := range [][2]string{{"location", "side.bin"}, {"offset", fmt.Sprint(offset)}, {"length", fmt.Sprint(size)}} {
		p.ExternalData = append(p.ExternalData, &pb.StringStringEntryProto{Key: proto.String(kv[0]), Value: proto.String(kv[1])})
	}
	return fmt.Sprintf("external at %d of %d", offset, size)
}

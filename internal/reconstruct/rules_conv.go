package reconstruct

import (
	"fmt"
	"slices"

	"github.com/fewbit/fewbit/internal/graph"
)

// conv is the geometry of a convolution.
type conv struct {
	kernel, stride, dilation, before, after []int64
	group, out, in                          int64 // in: channels of one group
}

func convOf(b *builder, n *graph.Node) (*conv, error) {
	w, err := b.fixed(n.In(1))
	if err != nil {
		return nil, err
	}
	r := len(w) - 2
	if p := n.Str("auto_pad", "NOTSET"); p != "NOTSET" && p != "VALID" {
		return nil, fmt.Errorf("%w: with auto_pad %s", ErrNoGradient, p)
	}
	or := func(v []int64, count int, def int64) []int64 {
		if len(v) == count {
			return v
		}
		return slices.Repeat([]int64{def}, count)
	}
	pads := or(n.Ints("pads"), 2*r, 0)
	return &conv{kernel: w[2:], stride: or(n.Ints("strides"), r, 1), dilation: or(n.Ints("dilations"), r, 1), before: pads[:r], after: pads[r:],
		group: n.Int("group", 1), out: w[0], in: w[1]}, nil
}

func all(v []int64, x int64) bool {
	return !slices.ContainsFunc(v, func(y int64) bool { return y != x })
}

// gradConv: x [N, C, space], w [M, C/group, kernel].
func gradConv(b *builder, n *graph.Node, dy string) ([]string, error) {
	c, err := convOf(b, n)
	if err != nil {
		return nil, err
	}
	dx := make([]string, 3)
	if b.live[n.In(0)] {
		dx[0] = c.byInput(b, n, dy)
	}
	if b.live[n.In(1)] {
		dx[1] = c.byWeight(b, n, dy)
	}
	if b.live[n.In(2)] {
		axes := []int64{0}
		for i := range c.kernel {
			axes = append(axes, int64(i+2))
		}
		dx[2] = b.sum(dy, false, axes...)
	}
	return dx, nil
}

// byInput is the transposed convolution. With strides the last positions may reach no
// output: stride-1 zeros are put behind, and what is padding or too much is cut off.
func (c *conv) byInput(b *builder, n *graph.Node, dy string) string {
	attrs := []string{"dilations", "group", "strides", "kernel_shape"}
	node := func(in []string) *graph.Node {
		out := b.names.Name("d_ConvTranspose")
		t := graph.NewNode(graph.DomainONNX, "ConvTranspose", out, in, []string{out})
		for _, a := range attrs {
			if v := n.Attr(a); v != nil {
				t.Attrs = append(t.Attrs, v)
			}
		}
		b.g.Nodes = append(b.g.Nodes, t)
		return t
	}
	t := node([]string{dy, n.In(1)})
	if all(c.stride, 1) {
		t.Attrs = append(t.Attrs, graph.AttrInts("pads", append(slices.Clone(c.before), c.after...)...))
		return t.Outputs[0]
	}
	behind := make([]int64, len(c.stride))
	for i, s := range c.stride {
		behind[i] = s - 1
	}
	t.Attrs = append(t.Attrs, graph.AttrInts("output_padding", behind...))
	axes := c.spaceAxes()
	start := b.ints(c.before...)
	return b.op("Slice", t.Outputs[0], start, b.op("Add", b.space(n.In(0), len(axes)), start), b.ints(axes...))
}

func (c *conv) spaceAxes() []int64 {
	axes := make([]int64, len(c.kernel))
	for i := range axes {
		axes[i] = int64(i + 2)
	}
	return axes
}

// space is the sizes of value behind its first two axes.
func (b *builder) space(value string, rank int) string {
	return b.op("Slice", b.op("Shape", value), b.ints(2), b.ints(int64(2+rank)))
}

// byWeight multiplies, for each tap of the kernel, the derivative of the output by what
// the tap sees: [N, group, M/group, P] by [N, group, C/group, P] transposed, P the
// positions of the output.
func (c *conv) byWeight(b *builder, n *graph.Node, dy string) string {
	x, rank := n.In(0), len(c.kernel)
	grouped := func(v string, channels int64) string { return b.reshape(v, 0, c.group, channels, -1) }
	g := grouped(dy, c.out/c.group)
	dims := append([]int64{c.out, c.in}, c.kernel...)
	if all(c.kernel, 1) && all(c.stride, 1) && all(c.before, 0) && all(c.after, 0) {
		return b.reshape(b.sum(b.product(g, grouped(x, c.in), false, true), false, 0), dims...)
	}
	if !all(c.before, 0) || !all(c.after, 0) {
		pads := append([]int64{0, 0}, c.before...)
		pads = append(append(pads, 0, 0), c.after...)
		x = b.op("Pad", x, b.ints(pads...))
	}
	one := b.ints(slices.Repeat([]int64{1}, rank)...)
	span := b.op("Add", b.op("Mul", b.op("Sub", b.space(dy, rank), one), b.ints(c.stride...)), one)
	axes, steps := b.ints(c.spaceAxes()...), b.ints(c.stride...)
	var taps []string
	at := make([]int64, rank)
	for {
		start := make([]int64, rank)
		for i := range at {
			start[i] = at[i] * c.dilation[i]
		}
		from := b.ints(start...)
		seen := b.op("Slice", x, from, b.op("Add", span, from), axes, steps)
		d := b.sum(b.product(g, grouped(seen, c.in), false, true), false, 0)
		taps = append(taps, b.reshape(d, c.out, c.in, 1))
		i := rank - 1
		for ; i >= 0; i-- {
			if at[i]++; at[i] < c.kernel[i] {
				break
			}
			at[i] = 0
		}
		if i < 0 {
			break
		}
	}
	return b.reshape(b.with("Concat", taps, graph.AttrInt("axis", 2)), dims...)
}

package quant

import (
	"context"
	"fmt"
	"sync"
)

const (
	// GramMaxK is the widest input whose Hessian is collected: 8,192 channels
	// are 128 MB of sums and six times that while they are factored.
	GramMaxK = 8192
	// gramRows is how many rows gather before they are multiplied.
	gramRows = 512
	// patchRows bounds the positions of one sample whose patches count: those of
	// a convolution with one group, and of a grouped one, whose products are
	// made one group after the other.
	patchRows, patchRowsGrouped = 256, 64
)

// Gram is the sum of x'x over the rows x that one operator's input takes, the
// Hessian of its output's squared error but for a factor (Hassibi and Stork
// 1993). A convolution's rows are the patches that its kernel sees, one matrix
// a group. Its size does not depend on the number of rows.
type Gram struct {
	K, Groups int
	// Rows counts what was observed.
	Rows int64
	// Sum holds the lower triangle of each group, valid after Flush: row i has i+1
	// values and begins at TriangleRow(i).
	Sum []float32
	// Total is [Groups, K], the sum of the rows.
	Total []float64
	buf   []float32
}

// TriangleRow is where row i of a lower triangle begins.
func TriangleRow(i int) int { return i * (i + 1) / 2 }

// group returns the lower triangle of one group.
func (g *Gram) group(i int) []float32 {
	n := TriangleRow(g.K)
	return g.Sum[i*n : (i+1)*n]
}

// GramOf returns an empty Gram for the operator, whose weight has dimensions
// dims, or ErrConfig when it is wider than GramMaxK.
func GramOf(op *Op, dims []int64) (*Gram, error) {
	g := &Gram{K: 1, Groups: 1}
	if op.Kind == Conv {
		g.Groups = int(op.Node.Int("group", 1))
		for _, d := range dims[1:] {
			g.K *= int(d)
		}
	} else {
		g.K = int(dims[op.InAxis])
	}
	if g.K > GramMaxK || g.Groups < 1 || g.K < 1 {
		return nil, fmt.Errorf("%w: %d inputs, of which at most %d can be solved for", ErrConfig, g.K, GramMaxK)
	}
	return g, nil
}

// Bytes is what the Gram holds once something was observed.
func (g *Gram) Bytes() int64 {
	n := int64(g.Groups) * int64(TriangleRow(g.K))
	if g.Groups == 1 {
		n += gramRows * int64(g.K)
	}
	return 4 * n
}

func (g *Gram) begin() {
	if g.Sum == nil {
		g.Sum, g.Total = make([]float32, g.Groups*TriangleRow(g.K)), make([]float64, g.Groups*g.K)
	}
}

// Observe adds rows of K values.
func (g *Gram) Observe(ctx context.Context, alg Algebra, x []float32) error {
	if len(x)%g.K != 0 {
		return fmt.Errorf("%w: %d values are not rows of %d", ErrConfig, len(x), g.K)
	}
	g.begin()
	g.Rows += int64(len(x) / g.K)
	g.total(x)
	if g.buf == nil {
		g.buf = make([]float32, 0, gramRows*g.K)
	}
	for len(x) > 0 {
		n := min(len(x), gramRows*g.K-len(g.buf))
		g.buf = append(g.buf, x[:n]...)
		x = x[n:]
		if len(g.buf) == gramRows*g.K {
			if err := g.Flush(ctx, alg); err != nil {
				return err
			}
		}
	}
	return nil
}

// Flush adds what still waits.
func (g *Gram) Flush(ctx context.Context, alg Algebra) error {
	if len(g.buf) == 0 {
		return nil
	}
	err := alg.AddGram(ctx, g.Sum, g.buf, g.K)
	g.buf = g.buf[:0]
	return err
}

// gathered holds *[]float32, the patches of ObserveConv: of a depthwise convolution those
// of one sample are some megabytes.
var gathered sync.Pool

// ObserveConv adds patches of x [batch, channels, space...], the input of
// op, whose weight has dimensions dims. Of many positions, those are taken that a
// hash of the sample selects.
func (g *Gram) ObserveConv(ctx context.Context, alg Algebra, op *Op, dims []int64, x []float32, xdims []int64, sample uint64) error {
	w, err := newWindow(op, dims, xdims)
	if err != nil {
		return err
	}
	limit := patchRows
	if g.Groups > 1 {
		limit = patchRowsGrouped
	}
	total := w.positions()
	n := min(total, limit)
	size := n * g.Groups * g.K
	buf, _ := gathered.Get().(*[]float32)
	if buf == nil || cap(*buf) < size {
		buf = new(make([]float32, size))
	}
	defer gathered.Put(buf)
	rows := (*buf)[:size] // patch writes all of them
	for i := range n {
		at := i
		if total > limit {
			at = int(mix(sample, uint64(i)) % uint64(total))
		}
		w.patch(x, at, rows[i*g.Groups*g.K:(i+1)*g.Groups*g.K])
	}
	if g.Groups == 1 {
		return g.Observe(ctx, alg, rows)
	}
	g.begin()
	g.Rows += int64(n)
	g.total(rows)
	parallel(g.Groups, n*g.K*g.K/2, func(from, to int) { addGrams(g.Sum, rows, n, g.Groups, g.K, from, to) })
	return nil
}

// addGramsGo adds x'x of n rows x of K values of each group, rows [n, groups, k], to the
// lower triangles of the groups from to to, sum [groups, triangle].
func addGramsGo(sum, rows []float32, n, groups, k, from, to int) {
	size := TriangleRow(k)
	for c := from; c < to; c++ {
		s := sum[c*size : (c+1)*size]
		for i := range n {
			row := rows[(i*groups+c)*k : (i*groups+c+1)*k]
			for a, v := range row {
				axpy(s[TriangleRow(a):TriangleRow(a+1)], v, row[:a+1])
			}
		}
	}
}

// window knows which values each output position of a convolution reads.
type window struct {
	batch, channels          int
	in, out                  []int // sizes in space
	kernel, stride, dilation []int
	before                   []int // padding
	pos, from                []int // of the patch that is taken: its place, where its values lie in a plane
}

func newWindow(op *Op, dims, xdims []int64) (*window, error) {
	r := len(dims) - 2
	if r < 1 || len(xdims) != r+2 {
		return nil, fmt.Errorf("%w: input %v of a convolution with weight %v", ErrConfig, xdims, dims)
	}
	groups := op.Node.Int("group", 1)
	if xdims[1] != dims[1]*groups {
		return nil, fmt.Errorf("%w: %d channels for a convolution of %d", ErrConfig, xdims[1], dims[1]*groups)
	}
	w := &window{batch: int(xdims[0]), channels: int(xdims[1])}
	attr := func(name string, at, missing int) int {
		if v := op.Node.Ints(name); at < len(v) {
			return int(v[at])
		}
		return missing
	}
	auto := op.Node.Str("auto_pad", "NOTSET")
	for i := range r {
		in, k := int(xdims[i+2]), int(dims[i+2])
		s, d := attr("strides", i, 1), attr("dilations", i, 1)
		if s < 1 || d < 1 {
			return nil, fmt.Errorf("%w: strides and dilations must be 1 or more", ErrConfig)
		}
		span := d*(k-1) + 1
		var before, out int
		switch auto {
		case "SAME_UPPER", "SAME_LOWER":
			out = (in + s - 1) / s
			pad := max((out-1)*s+span-in, 0)
			before = pad / 2
			if auto == "SAME_LOWER" {
				before = (pad + 1) / 2
			}
		case "VALID":
			out = (in-span)/s + 1
		default:
			before = attr("pads", i, 0)
			out = (in+before+attr("pads", r+i, 0)-span)/s + 1
		}
		if out < 1 {
			return nil, fmt.Errorf("%w: input %v is smaller than the kernel", ErrConfig, xdims)
		}
		w.in, w.out, w.kernel = append(w.in, in), append(w.out, out), append(w.kernel, k)
		w.stride, w.dilation, w.before = append(w.stride, s), append(w.dilation, d), append(w.before, before)
	}
	return w, nil
}

func (w *window) positions() int {
	n := w.batch
	for _, o := range w.out {
		n *= o
	}
	return n
}

// patch writes the values that output position at reads: [channels, kernel...],
// which is [groups, K].
func (w *window) patch(x []float32, at int, row []float32) {
	r := len(w.out)
	plane, taps := 1, 1
	for i := range r {
		plane *= w.in[i]
		taps *= w.kernel[i]
	}
	if w.from == nil {
		w.pos, w.from = make([]int, r), make([]int, taps)
	}
	for i := r - 1; i >= 0; i-- {
		w.pos[i] = at % w.out[i]
		at /= w.out[i]
	}
	x = x[at*w.channels*plane : (at+1)*w.channels*plane]
	for t := range taps {
		from, rest, inside := 0, t, true
		step := 1
		for i := r - 1; i >= 0; i-- {
			p := w.pos[i]*w.stride[i] - w.before[i] + rest%w.kernel[i]*w.dilation[i]
			rest /= w.kernel[i]
			inside = inside && p >= 0 && p < w.in[i]
			from += p * step
			step *= w.in[i]
		}
		if !inside {
			from = -1
		}
		w.from[t] = from
	}
	// Channel by channel: what a kernel sees of one lies close together.
	for c := range w.channels {
		to, of := row[c*taps:(c+1)*taps], x[c*plane:(c+1)*plane]
		for t, from := range w.from {
			if from >= 0 {
				to[t] = of[from]
			} else {
				to[t] = 0
			}
		}
	}
}

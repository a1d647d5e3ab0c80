package quant

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// PruneMethod says which weights become zero.
type PruneMethod string

// The methods of pruning.
const (
	// Magnitude takes the smallest weights of an operator (Han et al. 2015,
	// arXiv:1506.02626). It needs no data.
	Magnitude PruneMethod = "magnitude"
	// Wanda takes those with the smallest |w| times norm of its input, by output
	// (Sun et al. 2023, arXiv:2306.11695).
	Wanda PruneMethod = "wanda"
	// SparseGPT takes those that the remaining ones can make up for best, and lets
	// them (Frantar and Alistarh 2023, arXiv:2301.00774).
	SparseGPT PruneMethod = "sparsegpt"
)

// PruneMethods lists the methods of pruning.
var PruneMethods = []PruneMethod{Magnitude, Wanda, SparseGPT}

// NeedsData reports whether the method looks at the operators' inputs.
func (m PruneMethod) NeedsData() bool { return m != Magnitude }

// Sparsity says how many weights of an operator become zero. The zero value is
// invalid.
type Sparsity struct {
	// Share of the weights, above 0 and below 1.
	Share float64
	// Pattern is 2:4: two of each four that follow each other along the input
	// channels, which NVIDIA's sparse tensor cores skip. Share is then 0.5.
	Pattern bool
}

const (
	// patternZeros of patternGroup weights are zero in the pattern 2:4.
	patternZeros, patternGroup = 2, 4
	// pruneBlock is how many input channels SparseGPT chooses from at a time (the
	// authors' block size).
	pruneBlock = 128
)

// ParseSparsity reads "2:4", or a share as "0.5" or "50%".
func ParseSparsity(s string) (Sparsity, error) {
	s = strings.TrimSpace(s)
	if strings.Contains(s, ":") {
		if s != "2:4" {
			return Sparsity{}, fmt.Errorf("%w: sparsity %q: the pattern that hardware has is 2:4; use that, or a share such as 0.5", ErrConfig, s)
		}
		return Sparsity{Share: 0.5, Pattern: true}, nil
	}
	digits, percent := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(digits, 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x > 0 && x < 1) {
		return Sparsity{}, fmt.Errorf("%w: sparsity %q: expected 2:4, or a share above 0 and below 1, such as 0.5", ErrConfig, s)
	}
	return Sparsity{Share: x}, nil
}

func (s Sparsity) String() string {
	if s.Pattern {
		return "2:4"
	}
	return strconv.FormatFloat(s.Share, 'g', 6, 64)
}

// Check returns ErrConfig for a sparsity that contradicts itself.
func (s Sparsity) Check() error {
	switch {
	case s.Pattern && s.Share != float64(patternZeros)/patternGroup:
		return fmt.Errorf("%w: the pattern 2:4 makes half of the weights zero, not %g of them: give one of both", ErrConfig, s.Share)
	case !(s.Share > 0 && s.Share < 1):
		return fmt.Errorf("%w: sparsity %g: expected a share above 0 and below 1", ErrConfig, s.Share)
	}
	return nil
}

// Prunable lists the operators of a prepared model whose weight can become
// sparse, and those with a constant weight that stay as they are, and why.
func Prunable(m *graph.Model, s Sparsity, exclude []string) (ops []*Op, left []Float) {
	ix := m.Graph.Index()
	for _, n := range m.Graph.Nodes {
		op := &Op{Node: n, Kind: Linear, W: n.In(1), OutAxis: 1, InAxis: 0, Precision: PrecisionFP32}
		t := m.Graph.Init(op.W)
		if t == nil || len(n.Outputs) == 0 || m.Graph.Init(n.In(0)) != nil || !(n.Is("MatMul") || n.Is("Gemm") || n.Is("Conv")) {
			continue
		}
		op.X, op.Out = []string{n.In(0)}, n.Outputs[0]
		switch {
		case n.Is("Conv"):
			op.Kind, op.OutAxis, op.InAxis = Conv, 0, 1
		case n.Is("Gemm") && n.Int("transB", 0) != 0:
			op.OutAxis, op.InAxis = 0, 1
		}
		if why := dense(op, t, s, ix, exclude); why != "" {
			left = append(left, Float{n, why})
			continue
		}
		ops = append(ops, op)
	}
	return ops, left
}

// dense says why the weight t of op is not pruned, or "".
func dense(op *Op, t *tensor.Tensor, s Sparsity, ix *graph.Index, exclude []string) string {
	n := op.Node
	switch {
	case slices.Contains(exclude, n.Name) || slices.Contains(exclude, n.Op):
		return "excluded by the user"
	case t.Type != tensor.Float32:
		return fmt.Sprintf("its weight is %v; prune the FP32 model", t.Type)
	case t.Len() == 0:
		return "its weight is empty"
	case len(ix.Uses(op.W)) > 1 || ix.IsOutput(op.W) || ix.Captured(op.W):
		return "its weight is read elsewhere too"
	}
	in := t.Dims[min(op.InAxis, len(t.Dims)-1)]
	switch {
	case op.Kind == Linear && len(t.Dims) != 2, op.Kind == Conv && (len(t.Dims) < 3 || len(t.Dims) > 5):
		return fmt.Sprintf("its weight has rank %d", len(t.Dims))
	case op.Kind == Linear && n.Int("transA", 0) != 0:
		return "its activation is transposed"
	case op.Kind == Linear && t.Dims[op.OutAxis] < minLinearOut:
		return fmt.Sprintf("%d outputs: too few to gain (at least %d)", t.Dims[op.OutAxis], minLinearOut)
	case op.Kind == Conv && in == 1:
		return "one input channel: there is little to leave out"
	case s.Pattern && in%patternGroup != 0:
		return fmt.Sprintf("%d input channels do not divide into groups of %d", in, patternGroup)
	}
	return ""
}

// Prune returns the values w of the weight of op, of dimensions dims, with zeros.
// gram is the sum over the rows of its input, for a method that needs data.
func Prune(ctx context.Context, alg Algebra, op *Op, dims []int64, w []float32, gram *Gram, method PruneMethod, s Sparsity) ([]float32, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if err := checkFinite(w); err != nil {
		return nil, fmt.Errorf("weight %q: %w", op.W, err)
	}
	if method == Magnitude && !s.Pattern { // one threshold for all groups
		scores := make([]float32, len(w))
		for i, v := range w {
			scores[i] = float32(math.Abs(float64(v)))
		}
		out := slices.Clone(w)
		for i, zero := range lowest(scores, int(s.Share*float64(len(w)))) {
			if zero {
				out[i] = 0
			}
		}
		return out, nil
	}
	l, err := newLayout(op, dims, s)
	if err != nil {
		return nil, err
	}
	out := make([]float32, len(w))
	for g := range l.groups {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		m := l.take(w, g)
		var sum []float32
		if method.NeedsData() {
			if gram == nil || gram.K != l.k || gram.Groups != l.groups {
				return nil, fmt.Errorf("%w: method %s needs the sums of the operator's input", ErrConfig, method)
			}
			sum = l.reorder(gram.group(g))
		}
		if m, err = pruneMatrix(ctx, alg, m, l.k, l.n, sum, method, s); err != nil {
			return nil, err
		}
		l.put(out, m, g)
	}
	return out, nil
}

// pruneMatrix prunes w [k,n] by the Hessian sum, a lower triangle.
func pruneMatrix(ctx context.Context, alg Algebra, w []float32, k, n int, sum []float32, method PruneMethod, s Sparsity) ([]float32, error) {
	dead := make([]bool, k)
	if method.NeedsData() {
		var power float64
		for i := range k {
			v := sum[TriangleRow(i)+i]
			power += float64(v)
			dead[i] = v == 0
		}
		switch {
		case math.IsNaN(power) || math.IsInf(power, 0):
			return nil, fmt.Errorf("%w: its inputs hold NaN or infinity", ErrSingular)
		case power == 0:
			return nil, fmt.Errorf("%w: its inputs are always zero", ErrSingular)
		}
	}
	if method == SparseGPT {
		f, err := newFactor(ctx, alg, sum, k, nil, false)
		if err != nil {
			return nil, err
		}
		out, _, err := f.prune(ctx, alg, w, n, s, dead)
		return out, err
	}
	norms := make([]float32, k)
	for i := range norms {
		norms[i] = 1
		if method == Wanda {
			norms[i] = float32(math.Sqrt(float64(sum[TriangleRow(i)+i])))
		}
	}
	group, zeros := k, int(s.Share*float64(k))
	if s.Pattern {
		group, zeros = patternGroup, patternZeros
	}
	out := slices.Clone(w)
	parallel(n, k*4, func(from, to int) {
		scores := make([]float32, group)
		for c := from; c < to; c++ {
			for r := 0; r < k; r += group {
				for i := range scores {
					scores[i] = float32(math.Abs(float64(w[(r+i)*n+c]))) * norms[r+i]
				}
				for i, zero := range lowest(scores, zeros) {
					if zero {
						out[(r+i)*n+c] = 0
					}
				}
			}
		}
	})
	return out, nil
}

// lowest marks the count smallest of scores, which are not negative; of equal
// ones the first.
func lowest(scores []float32, count int) []bool {
	mark := make([]bool, len(scores))
	if count <= 0 {
		return mark
	}
	if len(scores) <= patternGroup {
		for range count {
			least := -1
			for i, v := range scores {
				if !mark[i] && (least < 0 || v < scores[least]) {
					least = i
				}
			}
			mark[least] = true
		}
		return mark
	}
	// Of floats that are not negative the bits have the same order: the upper half
	// of the limit first, then the lower.
	var limit uint32
	rest := count
	for _, shift := range []uint{16, 0} {
		var counts [1 << 16]int32
		for _, v := range scores {
			if b := math.Float32bits(v); shift == 16 || b>>16 == limit>>16 {
				counts[b>>shift&0xffff]++
			}
		}
		for i, n := range counts {
			if rest <= int(n) {
				limit |= uint32(i) << shift
				break
			}
			rest -= int(n)
		}
	}
	for i, v := range scores {
		switch b := math.Float32bits(v); {
		case b < limit:
			mark[i] = true
		case b == limit && rest > 0:
			mark[i] = true
			rest--
		}
	}
	return mark
}

// layout takes a weight apart into one matrix [k,n] a group, whose rows are input
// channels in the order in which a pattern counts them.
type layout struct {
	groups, k, n int
	transposed   bool  // the weight is [groups, n, k]
	order        []int // row i is row order[i] of the Gram; nil: the same
}

func newLayout(op *Op, dims []int64, s Sparsity) (layout, error) {
	l := layout{groups: 1, transposed: op.Kind == Conv || op.InAxis == 1}
	if op.Kind != Conv {
		l.k, l.n = int(dims[op.InAxis]), int(dims[op.OutAxis])
		return l, nil
	}
	l.groups = int(op.Node.Int("group", 1))
	if l.groups < 1 || dims[0]%int64(l.groups) != 0 {
		return l, fmt.Errorf("%w: weight %v in %d groups", ErrConfig, dims, l.groups)
	}
	l.n, l.k = int(dims[0])/l.groups, 1
	for _, d := range dims[1:] {
		l.k *= int(d)
	}
	if s.Pattern { // channels of one tap follow each other
		channels := int(dims[1])
		taps := l.k / channels
		for i := range l.k {
			l.order = append(l.order, i%channels*taps+i/channels)
		}
	}
	return l, nil
}

func (l layout) row(i int) int {
	if l.order == nil {
		return i
	}
	return l.order[i]
}

// at is where row i and column c of group g lie in the weight.
func (l layout) at(g, i, c int) int {
	if l.transposed {
		return (g*l.n+c)*l.k + l.row(i)
	}
	return l.row(i)*l.n + c
}

func (l layout) take(w []float32, g int) []float32 {
	m := make([]float32, l.k*l.n)
	for i := range l.k {
		for c := range l.n {
			m[i*l.n+c] = w[l.at(g, i, c)]
		}
	}
	return m
}

func (l layout) put(w, m []float32, g int) {
	for i := range l.k {
		for c := range l.n {
			w[l.at(g, i, c)] = m[i*l.n+c]
		}
	}
}

// reorder returns the lower triangle of the Gram with its rows in the layout's order.
func (l layout) reorder(sum []float32) []float32 {
	if l.order == nil {
		return sum
	}
	out := make([]float32, len(sum))
	for i := range l.k {
		for j := range i + 1 {
			a, b := l.row(i), l.row(j)
			out[TriangleRow(i)+j] = sum[TriangleRow(max(a, b))+min(a, b)]
		}
	}
	return out
}

// Zeros counts the zeros of a float tensor.
func Zeros(v []float32) (n int64) {
	for _, x := range v {
		if x == 0 {
			n++
		}
	}
	return n
}

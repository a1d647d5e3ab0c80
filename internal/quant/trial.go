package quant

import (
	"context"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
)

const (
	// trialColumns bounds the output columns that a setting is measured on. On BERT-base what
	// these choose has, by all columns, 1.004 times the least error (geometric mean of
	// 48 inputs).
	trialColumns = 256
	// columnLeast is the least energy of a column by which it is drawn, as a share of
	// the mean.
	columnLeast = 0.01
)

type candidate struct {
	method string
	r      calib.Range
}

// trial measures candidates on a sample of rows and columns. The weights of all
// consumers stand side by side as one matrix [k, n].
type trial struct {
	cfg    Config
	gemm   GEMM
	scheme calib.Scheme
	x      []float32 // [m,k]
	m, k   int
	w      []float32 // [k,n]
	n      int
	counts []float64 // what each column stands for; nil: all are there
	rowMax []float32 // max|w| of each input channel, over the columns that are not in w too
	ref    []float32 // x*w, [m,n]
	power  float64   // sum of ref^2
}

// weights takes the weights of the consumers: all of their columns, or, where there
// are more than most, a sample of no more. A most of 0 is no bound. The largest
// magnitudes are those of all columns.
func (t *trial) weights(g *graph.Graph, group []*Op, most int) error {
	values, widths := make([][]float32, len(group)), make([]int, len(group)) // [k,n] each
	total := 0
	for i, op := range group {
		wt := g.Init(op.W)
		v, err := wt.F32()
		if err != nil {
			return fmt.Errorf("weight %q: %w", op.W, err)
		}
		k, n := int(wt.Dims[op.InAxis]), int(wt.Dims[op.OutAxis])
		if k != t.k {
			return fmt.Errorf("%w: %q has %d input channels, its input %d", ErrConfig, op.W, k, t.k)
		}
		if op.InAxis == 1 {
			v = transpose2D(v, n, k)
		}
		values[i], widths[i] = v, n
		total += n
	}
	var columns []int
	if most > 0 && total > most {
		energy := make([]float64, 0, total)
		for i, v := range values {
			energy = append(energy, columnEnergies(v, t.k, widths[i])...)
		}
		columns, t.counts = spreadColumns(energy, most)
	} else {
		columns = make([]int, total)
		for c := range columns {
			columns[c] = c
		}
	}
	t.n = len(columns)
	t.w, t.rowMax = make([]float32, t.k*t.n), make([]float32, t.k)
	col, at := 0, 0 // of all columns, and of those taken
	for i, v := range values {
		n, first := widths[i], at
		for at < t.n && columns[at] < col+n {
			at++
		}
		parallel(t.k, n, func(from, to int) {
			for r := from; r < to; r++ {
				row := v[r*n : (r+1)*n]
				var most uint32 // magnitudes as bits: of these the order is the same
				for _, x := range row {
					most = max(most, math.Float32bits(x)&math.MaxInt32)
				}
				t.rowMax[r] = max(t.rowMax[r], math.Float32frombits(most))
				for c := first; c < at; c++ {
					t.w[r*t.n+c] = row[columns[c]-col]
				}
			}
		})
		if err := checkFinite(t.rowMax); err != nil { // NaN is the largest too
			return fmt.Errorf("weight %q: %w", group[i].W, err)
		}
		col += n
	}
	return nil
}

// columnEnergies are the sums of squares of the columns of w [k,n].
func columnEnergies(w []float32, k, n int) []float64 {
	sums := make([]float64, n)
	parallel(n, k, func(from, to int) {
		own := sums[from:to]
		for i := range k {
			for c, v := range w[i*n+from : i*n+to] {
				own[c] += float64(v) * float64(v)
			}
		}
	})
	return sums
}

// spreadColumns draws at most most columns, with a probability that grows with the
// energy, evenly along its running sum (systematic sampling with probability
// proportional to size, Madow 1949): noise in the input reaches an output by the
// energy of its column, so that few columns with large weights may make most of the
// error. Those with more than an even share are taken as they are. counts say how many
// columns each stands for, so that the estimate has no bias. No column has less than a
// least energy here: one without can count for nothing.
func spreadColumns(energy []float64, most int) (columns []int, counts []float64) {
	var total float64
	for _, e := range energy {
		total += e
	}
	size := make([]float64, len(energy))
	for c, e := range energy {
		if size[c] = 1; total > 0 && total <= math.MaxFloat64 { // else all alike
			size[c] = max(e, total*columnLeast/float64(len(energy)))
		}
	}
	certain := make([]bool, len(size))
	left, share := most, 0.0 // draws among the others, and what one stands for
	for more := true; more && left > 0; {
		total, more = 0, false
		for c, v := range size {
			if !certain[c] {
				total += v
			}
		}
		share = total / float64(left)
		for c, v := range size {
			if !certain[c] && v >= share && left > 0 {
				certain[c], more = true, true
				left--
			}
		}
	}
	sum, next := 0.0, share/2
	for c, v := range size {
		if certain[c] {
			columns, counts = append(columns, c), append(counts, 1)
			continue
		}
		if sum += v; left > 0 && sum >= next { // v is less than a share: one draw at most
			columns, counts = append(columns, c), append(counts, share/v)
			next += share
		}
	}
	return columns, counts
}

func (t *trial) reference(ctx context.Context) (err error) {
	if t.ref, err = t.gemm.MatMul(ctx, t.x, t.m, t.k, t.w, t.n); err != nil {
		return err
	}
	t.power = math.Max(squares(t.ref, nil, t.counts, t.n), math.SmallestNonzeroFloat32)
	return nil
}

// smoothedHistogram is the histogram of the kept rows divided by s, with the
// extremes of all rows put in: max|X_j| / s_j bounds what was ever seen. Who asks for
// the extremes alone needs it not filled.
func (t *trial) smoothedHistogram(s, chMax []float32, filled bool) *calib.Histogram {
	h := &calib.Histogram{}
	xs := t.divided(s)
	lo, hi := float32(0), float32(0)
	for _, v := range xs { // a branch that is seldom taken costs less than a minimum
		if v < lo {
			lo = v
		} else if v > hi {
			hi = v
		}
	}
	var bound float32
	for j, m := range chMax {
		bound = max(bound, m/s[j])
	}
	// The bound has no sign: it widens the side that the rows reach further on.
	if hi >= -lo {
		hi = max(hi, bound)
	} else {
		lo = min(lo, -bound)
	}
	if filled {
		h.Observe(xs)
	}
	h.Observe([]float32{lo, hi})
	return h
}

func (t *trial) divided(s []float32) []float32 {
	if s == nil {
		return t.x
	}
	out := make([]float32, len(t.x))
	inv := make([]float32, len(s))
	for j, v := range s {
		inv[j] = 1 / v
	}
	parallel(len(out)/t.k, t.k, func(from, to int) {
		for i := from * t.k; i < to*t.k; i += t.k {
			for j, v := range t.x[i : i+t.k] {
				out[i+j] = v * inv[j]
			}
		}
	})
	return out
}

// errors returns, for each candidate range, ||Q(X/s) Q(sW) - XW||^2 / ||XW||^2.
func (t *trial) errors(ctx context.Context, s []float32, cands []candidate) ([]float64, error) {
	w := t.w
	if s != nil {
		w = scaleInputs(t.w, []int64{int64(t.k), int64(t.n)}, 0, s)
	}
	wq, err := t.rounded(w)
	if err != nil {
		return nil, err
	}
	xs := t.divided(s)
	out := make([]float64, len(cands))
	for i, c := range cands {
		var xq []float32
		switch {
		case t.cfg.rows():
			if xq, err = fakeQuantRows(xs, t.k); err != nil {
				return nil, err
			}
		case t.cfg.Scheme == INT8Dynamic:
			xq = fakeQuantDynamic(xs, t.scheme)
		default:
			xq = FakeQuantize(xs, calib.ParamsFor(c.r, t.scheme), t.scheme)
		}
		y, err := t.gemm.MatMul(ctx, xq, t.m, t.k, wq, t.n)
		if err != nil {
			return nil, err
		}
		out[i] = squares(y, t.ref, t.counts, t.n) / t.power
	}
	return out, nil
}

// squares is the sum of squared differences, row by row of n; b nil is 0. The terms of
// a column count counts times, nil is once.
func squares(a, b []float32, counts []float64, n int) (sum float64) {
	rows := make([]float64, len(a)/n)
	parallel(len(rows), n, func(from, to int) {
		zero := make([]float32, n)
		for r := from; r < to; r++ {
			x, y := a[r*n:(r+1)*n], zero
			if b != nil {
				y = b[r*n : (r+1)*n]
			}
			var s float64
			if counts == nil {
				for j, v := range x {
					d := float64(v) - float64(y[j])
					s += d * d
				}
			} else {
				for j, v := range x {
					d := float64(v) - float64(y[j])
					s += d * d * counts[j]
				}
			}
			rows[r] = s
		}
	})
	for _, v := range rows {
		sum += v
	}
	return sum
}

// rounded returns w [k,n] rounded to nearest as its form says.
func (t *trial) rounded(w []float32) ([]float32, error) {
	if t.cfg.Steps() {
		q, err := nearestInt4(w, t.k, t.n, t.cfg.units(w, t.k, t.n))
		if err != nil {
			return nil, err
		}
		return q.Dequantize(), nil
	}
	q, err := QuantizeWeight(w, []int64{int64(t.k), int64(t.n)}, 1, t.cfg.Granularity, t.cfg.weightScheme())
	if err != nil {
		return nil, err
	}
	return q.Dequantize(), nil
}

// Package ops is the plain reference of the operators of the fewbit domain and
// their form in a file. docs/ops.md is their specification.
//
// Kernels and the stock bodies agree with this package bit for bit in the
// integer parts: codes, zero points and accumulators.
package ops

import (
	"errors"
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/graph"
)

// The domain of the operators and the version that this package specifies.
const (
	Domain  = graph.DomainFewbit
	Version = 1
)

// The operators.
const (
	OpQuantizeRows    = "QuantizeRows"
	OpMatMulQuantized = "MatMulQuantized"
)

// MaxK is the largest inner dimension: the accumulator of K products of a code
// 0..255 with a weight -128..127 still fits into INT32. A multiple of 16, which
// is what rows are padded to on a device.
const MaxK = math.MaxInt32 / (255 * 128) &^ 15

// maxCode is the largest code of an activation.
const maxCode = 255

// Errors of the reference.
var (
	// ErrShape: the sizes do not belong together or K is out of 1..MaxK.
	ErrShape = errors.New("bad operand shape")
	// ErrValue: a value is NaN, infinite, or so large that the range of its
	// row is infinite. The operators do not specify the codes of such a row.
	ErrValue = errors.New("value out of range")
)

// Rows is a quantized activation: M rows of K codes, each row with a scale and
// a zero point of its own. A code q stands for (q - zero) * scale.
type Rows struct {
	M, K  int
	Codes []uint8   // [M,K]
	Scale []float32 // [M]
	Zero  []uint8   // [M]
}

// QuantizeRows is fewbit.QuantizeRows on x [m,k].
func QuantizeRows(x []float32, m, k int) (*Rows, error) {
	if err := matrix("X", len(x), m, k); err != nil {
		return nil, err
	}
	if k < 1 || k > MaxK {
		return nil, fmt.Errorf("%w: rows of %d values, 1 to %d are possible", ErrShape, k, MaxK)
	}
	r := &Rows{M: m, K: k, Codes: make([]uint8, m*k), Scale: make([]float32, m), Zero: make([]uint8, m)}
	for i := range m {
		row := x[i*k : (i+1)*k]
		p, err := rowParams(row)
		if err != nil {
			return nil, fmt.Errorf("row %d: %w", i, err)
		}
		codes := r.Codes[i*k : (i+1)*k]
		for j, v := range row {
			// |v| / scale is far below 2^22: in float32 adding and subtracting 1.5*2^23 is
			// roundEven. Few are clipped: branches cost less than clampCode.
			const magic = 12582912
			q := v/p.scale + magic - magic + p.zero
			if q < 0 {
				q = 0
			} else if q > maxCode {
				q = maxCode
			}
			codes[j] = uint8(q)
		}
		r.Scale[i], r.Zero[i] = p.scale, uint8(p.zero)
	}
	return r, nil
}

type params struct{ scale, zero float32 }

// rowParams: the range contains 0, so that 0 has a code of its own.
func rowParams(row []float32) (params, error) {
	var lo, hi float32
	for _, v := range row {
		if v != v {
			return params{}, fmt.Errorf("%w: NaN", ErrValue)
		}
		if v < lo { // seldom: a branch costs less than a minimum
			lo = v
		} else if v > hi {
			hi = v
		}
	}
	width := hi - lo
	if math.IsInf(float64(width), 0) {
		return params{}, fmt.Errorf("%w: the range [%v, %v]", ErrValue, lo, hi)
	}
	scale := width / maxCode
	if scale == 0 { // constant zero, or a width below the smallest float
		scale = 1
	}
	return params{scale, clampCode(roundEven(-lo / scale))}, nil
}

func roundEven(v float32) float32 { return float32(math.RoundToEven(float64(v))) }

func clampCode(v float32) float32 { return min(max(v, 0), maxCode) }

// Dequantize returns (q - zero) * scale for every code.
func (r *Rows) Dequantize() []float32 {
	x := make([]float32, len(r.Codes))
	for row, scale := range r.Scale {
		zero, to := int32(r.Zero[row]), x[row*r.K:(row+1)*r.K]
		for i, q := range r.Codes[row*r.K : (row+1)*r.K] {
			to[i] = float32(int32(q)-zero) * scale
		}
	}
	return x
}

// ColumnSums returns the sum of each column of w [k,n]: the w_sum of
// MatMulQuantized.
func ColumnSums(w []int8, k, n int) ([]int32, error) {
	if err := matrix("W", len(w), k, n); err != nil {
		return nil, err
	}
	if k > MaxK {
		return nil, fmt.Errorf("%w: %d rows, at most %d", ErrShape, k, MaxK)
	}
	sums := make([]int32, n)
	for i := range k {
		row := w[i*n : (i+1)*n]
		for j := range sums {
			sums[j] += int32(row[j])
		}
	}
	return sums, nil
}

// Accumulate is the integer part of fewbit.MatMulQuantized: for each row i of a
// and column j of w [a.K,n], sum over k of (a.Codes - a.Zero) * w, exactly. sums
// is ColumnSums of w.
func Accumulate(a *Rows, w []int8, n int, sums []int32) ([]int32, error) {
	if a == nil || matrix("Q", len(a.Codes), a.M, a.K) != nil || len(a.Zero) != a.M || len(a.Scale) != a.M {
		return nil, fmt.Errorf("%w: the activation's codes, scales and zero points do not belong together", ErrShape)
	}
	if err := matrix("W", len(w), a.K, n); err != nil {
		return nil, err
	}
	if a.K < 1 || a.K > MaxK || len(sums) != n {
		return nil, fmt.Errorf("%w: K is %d (1 to %d), %d column sums for %d columns", ErrShape, a.K, MaxK, len(sums), n)
	}
	acc := make([]int32, a.M*n)
	for i := range a.M {
		out := acc[i*n : (i+1)*n]
		for k, q := range a.Codes[i*a.K : (i+1)*a.K] {
			for j, v := range w[k*n : (k+1)*n] {
				out[j] += int32(q) * int32(v)
			}
		}
		for j := range out {
			out[j] -= int32(a.Zero[i]) * sums[j]
		}
	}
	return acc, nil
}

// MatMulQuantized is fewbit.MatMulQuantized: y [a.M,n] = float(acc) *
// (a.Scale * scale), with acc of Accumulate and one weight scale a column.
func MatMulQuantized(a *Rows, w []int8, n int, scale []float32, sums []int32) ([]float32, error) {
	acc, err := Accumulate(a, w, n, sums)
	if err != nil {
		return nil, err
	}
	if len(scale) != n {
		return nil, fmt.Errorf("%w: %d weight scales for %d columns", ErrShape, len(scale), n)
	}
	y := make([]float32, len(acc))
	for i, s := range a.Scale {
		for j, ws := range scale {
			y[i*n+j] = float32(acc[i*n+j]) * (s * ws)
		}
	}
	return y, nil
}

// matrix checks that n values are a [rows,cols] matrix.
func matrix(name string, n, rows, cols int) error {
	if rows < 0 || cols < 0 || (cols > 0 && rows > math.MaxInt/cols) || n != rows*cols {
		return fmt.Errorf("%w: %s has %d values, expected [%d,%d]", ErrShape, name, n, rows, cols)
	}
	return nil
}

package quant

import (
	"context"
	"errors"
	"fmt"
	"math"
)

// Algebra is the fast arithmetic that the weight solvers need: an engine's own
// kernels. PlainAlgebra is the same in plain Go.
type Algebra interface {
	GEMM
	// AddGram adds x'x, where x are rows of k values, to the lower triangle sum,
	// whose row i begins at TriangleRow(i).
	AddGram(ctx context.Context, sum []float32, x []float32, k int) error
	// SubProduct subtracts a b' from c in float64: [m,k] x [n,k] -> [m,n]. The rows
	// of a begin stride values apart.
	SubProduct(ctx context.Context, c, a []float64, stride, m, k int, b []float64, n int) error
}

// Loops are inner loops of the solvers outside Go, which give the same numbers bit for
// bit sooner. Each returns whether it did so; else it has done nothing, and the loop in
// Go does it. An Algebra may have them: a method Loops, whose nil is none.
type Loops interface {
	// RoundStrip is strip.run without groups, of columns from to to: of the rows order of
	// w and codes, by rows of m that are k values apart; carried may be nil.
	RoundStrip(m []float32, k int, order []int, w, carried, scales []float32, n, from, to int, lo, hi float32, d []float32, codes []int8) bool
	// ClipScales replaces the scales of columns from to to of w, rows of n values, by the
	// share of them that rounds with the least error.
	ClipScales(w []float32, n, from, to int, importance, shares []float32, top float32, scales []float32) bool
}

func loopsOf(alg GEMM) Loops {
	if l, ok := alg.(interface{ Loops() Loops }); ok {
		return l.Loops()
	}
	return nil
}

// PlainAlgebra implements Algebra in Go: the reference for tests, and fast
// enough for small matrices.
type PlainAlgebra struct{}

var _ Algebra = PlainAlgebra{}

// MatMul implements GEMM.
func (PlainAlgebra) MatMul(_ context.Context, a []float32, m, k int, b []float32, n int) ([]float32, error) {
	y := make([]float32, m*n)
	for i := range m {
		for j := range k {
			axpy(y[i*n:(i+1)*n], a[i*k+j], b[j*n:(j+1)*n])
		}
	}
	return y, nil
}

// AddGram implements Algebra.
func (PlainAlgebra) AddGram(_ context.Context, sum []float32, x []float32, k int) error {
	for r := 0; r < len(x); r += k {
		row := x[r : r+k]
		for i, v := range row {
			if v != 0 {
				axpy(sum[TriangleRow(i):TriangleRow(i+1)], v, row[:i+1])
			}
		}
	}
	return nil
}

// SubProduct implements Algebra.
func (PlainAlgebra) SubProduct(_ context.Context, c, a []float64, stride, m, k int, b []float64, n int) error {
	for i := range m {
		for j := range n {
			c[i*n+j] -= dot(a[i*stride:i*stride+k], b[j*k:(j+1)*k])
		}
	}
	return nil
}

// axpy adds a*x to y.
func axpy(y []float32, a float32, x []float32) {
	x = x[:len(y)]
	for i := range y {
		y[i] += a * x[i]
	}
}

// dot has four sums, so that no addition waits for the one before it.
func dot(a, b []float64) float64 {
	var s0, s1, s2, s3 float64
	for ; len(a) >= 4 && len(b) >= 4; a, b = a[4:], b[4:] {
		s0 += a[0] * b[0]
		s1 += a[1] * b[1]
		s2 += a[2] * b[2]
		s3 += a[3] * b[3]
	}
	for i, v := range a {
		s0 += v * b[i]
	}
	return s0 + s1 + (s2 + s3)
}

// ErrSingular: a Hessian cannot be factored.
var ErrSingular = errors.New("the calibration data does not determine the weights")

// cholBlock is the number of columns that the factorization takes at a time.
const cholBlock = 128

// cholesky replaces the lower triangle of a [k,k] by its Cholesky factor, or
// returns ErrSingular when a is not positive definite. Left-looking by blocks
// of columns, so that nearly all the work is SubProduct's.
func cholesky(ctx context.Context, alg Algebra, a []float64, k int) error {
	var top, panel, below []float64
	for j := 0; j < k; j += cholBlock {
		if err := ctx.Err(); err != nil {
			return err
		}
		nb := min(cholBlock, k-j)
		m := k - j
		panel = grow(panel, m*nb)
		for i := range m {
			copy(panel[i*nb:(i+1)*nb], a[(j+i)*k+j:(j+i)*k+j+nb])
		}
		if j > 0 {
			top = grow(top, nb*j)
			for i := range nb {
				copy(top[i*j:(i+1)*j], a[(j+i)*k:(j+i)*k+j])
			}
			if err := alg.SubProduct(ctx, panel, a[j*k:], k, m, j, top, nb); err != nil {
				return err
			}
		}
		if err := cholSmall(panel, nb); err != nil {
			return fmt.Errorf("%w: pivot %d", err, j)
		}
		for i := range nb {
			copy(a[(j+i)*k+j:(j+i)*k+j+nb], panel[i*nb:(i+1)*nb])
		}
		if m == nb {
			break
		}
		// Below the diagonal block D: the panel times the inverse of D'.
		below = grow(below, (m-nb)*nb)
		clear(below)
		if err := alg.SubProduct(ctx, below, panel[nb*nb:m*nb], nb, m-nb, nb, negatedInverse(panel[:nb*nb], nb), nb); err != nil {
			return err
		}
		for i := range m - nb {
			copy(a[(j+nb+i)*k+j:(j+nb+i)*k+j+nb], below[i*nb:(i+1)*nb])
		}
	}
	return nil
}

// negatedInverse returns the inverse of the lower triangle of d [n,n], times -1.
func negatedInverse(d []float64, n int) []float64 {
	inv := make([]float64, n*n)
	for i := range n {
		row := inv[i*n : i*n+i+1]
		row[i] = -1
		for j := range i {
			f := d[i*n+j]
			for c, v := range inv[j*n : j*n+j+1] {
				row[c] -= f * v
			}
		}
		for c := range row {
			row[c] /= d[i*n+i]
		}
	}
	return inv
}

// cholSmall factors the leading n x n of a, row by row.
func cholSmall(a []float64, n int) error {
	for i := range n {
		for j := range i {
			a[i*n+j] = (a[i*n+j] - dot(a[i*n:i*n+j], a[j*n:j*n+j])) / a[j*n+j]
		}
		d := a[i*n+i] - dot(a[i*n:i*n+i], a[i*n:i*n+i])
		if !(d > 0) || math.IsInf(d, 0) {
			return ErrSingular
		}
		a[i*n+i] = math.Sqrt(d)
	}
	return nil
}

func grow(s []float64, n int) []float64 {
	if cap(s) < n {
		return make([]float64, n)
	}
	return s[:n]
}

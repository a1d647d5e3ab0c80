package quant

import (
	"context"
	"fmt"
	"math"
	"sort"
	"sync"
)

// GPTQ (Frantar et al. 2023, arXiv:2210.17323) rounds the weights of a column
// one after the other and lets those not yet rounded make up for the error, by
// the Hessian H = X'X of the output's squared error. It is written here in the
// equivalent form of Babai's nearest plane (Chen et al. 2025, arXiv:2507.18553):
// with H = L'L, L lower triangular, the error of a column with d = w - q is
// |L d|^2, and the value that row i takes before it is rounded is
//
//	w'_i = w_i + sum_{j<i} L_ij/L_ii d_j
//
// so that one Cholesky factorization is enough and no inverse is needed.
const (
	// gptqDamp is added to the diagonal of H as a share of its mean (the
	// reference's percdamp), ten times as much after each failure.
	gptqDamp     = 0.01
	gptqMaxDamp  = 1.0
	gptqBlock    = 64  // rows whose errors wait before one product applies them
	gptqColumns  = 128 // columns that one goroutine takes at a time
	gptqMeasured = 64  // columns on which the error of plain rounding is measured
)

// factor is a Hessian ready to round by.
type factor struct {
	k     int
	order []int     // row rounded i-th
	m     []float32 // [k,k], in that order: L_ij/L_ii for j <= i
	power []float64 // L_ii^2: what an error of 1 at step i costs
	diag  []float32 // of H, in that order
	damp  float64
}

// factored holds *[]float64, the Hessians of newFactor: one of 3,072 inputs is 75 MB.
var factored sync.Pool

// newFactor factors the Gram matrix, a lower triangle, of inputs that are
// divided by smooth. With byPower the rows with the largest inputs come first
// ("act-order"), which needs scales that are fixed beforehand.
func newFactor(ctx context.Context, alg Algebra, gram []float32, k int, smooth []float32, byPower bool) (*factor, error) {
	h := make([]float64, k) // diagonal of H
	var mean float64
	for i := range h {
		h[i] = float64(gram[TriangleRow(i)+i])
		if smooth != nil {
			h[i] /= float64(smooth[i]) * float64(smooth[i])
		}
		if math.IsNaN(h[i]) || math.IsInf(h[i], 0) {
			return nil, fmt.Errorf("%w: its inputs hold NaN or infinity", ErrSingular)
		}
		mean += h[i] / float64(k)
	}
	f := &factor{k: k, order: make([]int, k)}
	for i := range f.order {
		f.order[i] = i
	}
	if byPower {
		sort.SliceStable(f.order, func(a, b int) bool { return h[f.order[a]] > h[f.order[b]] })
	}
	by := make([]float64, k) // what an input is multiplied by
	for i := range by {
		if by[i] = 1; smooth != nil {
			by[i] = 1 / float64(smooth[i])
		}
	}
	buf, _ := factored.Get().(*[]float64)
	if buf == nil || cap(*buf) < k*k {
		buf = new(make([]float64, k*k))
	}
	defer factored.Put(buf)
	a := (*buf)[:k*k] // of which only the lower triangle is read
	f.m = make([]float32, k*k)
	for damp := gptqDamp; ; damp *= 10 {
		// The whole of the matrix, so that each row is gathered from one place.
		mirror(f.m, gram, k)
		// Reversed, since H = L'L while the factorization gives C C'.
		parallel(k, k/2, func(from, to int) {
			for r := from; r < to; r++ {
				i := f.order[k-1-r]
				row := f.m[i*k : (i+1)*k]
				for c := range r {
					j := f.order[k-1-c]
					a[r*k+c] = float64(row[j]) * by[i] * by[j]
				}
				a[r*k+r] = h[i] + damp*mean
				if h[i] == 0 { // never active: rounds to nearest, on its own
					a[r*k+r] = 1
				}
			}
		})
		err := cholesky(ctx, alg, a, k)
		if err == nil {
			f.damp = damp
			break
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if damp*10 > gptqMaxDamp*1.001 {
			return nil, fmt.Errorf("with %.2g of the mean on the diagonal: %w", damp, err)
		}
	}
	f.power, f.diag = make([]float64, k), make([]float32, k)
	d := make([]float64, k)
	for i := range d {
		d[i] = a[(k-1-i)*k+k-1-i]
		f.power[i], f.diag[i] = d[i]*d[i], float32(math.Max(h[f.order[i]], mean*1e-9))
	}
	parallel((k+turnTile-1)/turnTile, turnTile*k, func(from, to int) {
		for i0 := from * turnTile; i0 < min(to*turnTile, k); i0 += turnTile {
			for j0 := 0; j0 < k; j0 += turnTile {
				for i := i0; i < min(i0+turnTile, k); i++ {
					row, end := f.m[i*k:(i+1)*k], min(j0+turnTile, k)
					for j := j0; j < min(end, i); j++ {
						row[j] = float32(a[(k-1-j)*k+k-1-i] / d[i])
					}
					clear(row[min(max(j0, i), end):end])
					if j0 == i0 {
						row[i] = 1
					}
				}
			}
		}
	})
	return f, nil
}

// turnTile is the side of the squares in which matrices are turned: their rows and
// columns stay in the first cache.
const turnTile = 32

// mirror writes the whole symmetric matrix [k,k] of a lower triangle.
func mirror(to, triangle []float32, k int) {
	parallel((k+turnTile-1)/turnTile, turnTile*k, func(from, end int) {
		for i0 := from * turnTile; i0 < min(end*turnTile, k); i0 += turnTile {
			for i := i0; i < min(i0+turnTile, k); i++ {
				copy(to[i*k:i*k+i+1], triangle[TriangleRow(i):TriangleRow(i+1)])
			}
			// Right of the diagonal: columns i0 on of the rows below.
			for j0 := i0; j0 < k; j0 += turnTile {
				for i := i0; i < min(i0+turnTile, k); i++ {
					for j := max(j0, i+1); j < min(j0+turnTile, k); j++ {
						to[i*k+j] = triangle[TriangleRow(j)+i]
					}
				}
			}
		}
	})
}

// grid says which values the rounded weights may take.
type grid struct {
	lo, hi float32 // codes
	// group rows share a scale that is fitted when they are reached, by fit(their
	// values as earlier errors have left them, their importance); 0: the scales
	// are given, one a column.
	group  int
	scales []float32
	fit    func(x, importance []float32) float32
	// units, one a column: the scales of groups are steps of them (stepScale); nil:
	// they are any.
	units []float32
}

// rounded is a weight [k,n] as codes and scales: one a column, or [groups,n].
type rounded struct {
	codes  []int8
	scales []float32
}

// round rounds w [k,n] onto the grid.
func (f *factor) round(ctx context.Context, alg Algebra, w []float32, n int, g grid) (*rounded, error) {
	k := f.k
	out := &rounded{codes: make([]int8, k*n), scales: g.scales}
	if g.group > 0 {
		groups := (k + g.group - 1) / g.group
		out.scales = make([]float32, groups*n)
	}
	block := gptqBlock
	if g.group > 0 {
		block = max(g.group, gptqBlock/g.group*g.group)
	}
	d := make([]float32, k*n) // errors, in the order of rounding
	loops := loopsOf(alg)
	for start := 0; start < k; start += block {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rows := min(block, k-start)
		carried, err := f.carried(ctx, alg, d, n, start, rows)
		if err != nil {
			return nil, err
		}
		parallel((n+gptqColumns-1)/gptqColumns, gptqColumns*rows*(rows+40), func(from, to int) {
			s := &strip{factor: f, grid: g, out: out, w: w, d: d, n: n, start: start, rows: rows}
			for c := from; c < to; c++ {
				c0, c1 := c*gptqColumns, min((c+1)*gptqColumns, n)
				if loops == nil || g.group > 0 || !loops.RoundStrip(f.m[start*k+start:], k, f.order[start:start+rows], w, carried, g.scales, n, c0, c1, g.lo, g.hi, d[start*n:], out.codes) {
					s.run(carried, c0, c1)
				}
			}
		})
	}
	return out, nil
}

// carried returns [rows,n], what the errors d of all rows before start ask of the
// block of rows that begins there; nil of the first block.
func (f *factor) carried(ctx context.Context, alg Algebra, d []float32, n, start, rows int) ([]float32, error) {
	if start == 0 {
		return nil, nil
	}
	m := make([]float32, rows*start)
	for i := range rows {
		copy(m[i*start:(i+1)*start], f.m[(start+i)*f.k:(start+i)*f.k+start])
	}
	return alg.MatMul(ctx, m, rows, start, d[:start*n], n)
}

// strip rounds some columns of one block of rows.
type strip struct {
	*factor
	grid
	out         *rounded
	w, d        []float32
	n           int
	start, rows int
	want        []float32 // [rows, width] the values to be rounded
	x, imp      []float32 // of one group of one column
}

func (s *strip) run(carried []float32, c0, c1 int) {
	width := c1 - c0
	if cap(s.want) < s.rows*width {
		s.want = make([]float32, s.rows*width)
	}
	s.want = s.want[:s.rows*width]
	for r := range s.rows {
		i := s.start + r
		row := s.want[r*width : (r+1)*width]
		copy(row, s.w[s.order[i]*s.n+c0:s.order[i]*s.n+c1])
		if carried != nil {
			for c, v := range carried[r*s.n+c0 : r*s.n+c1] {
				row[c] += v
			}
		}
	}
	for r := range s.rows {
		i := s.start + r
		if s.group > 0 && i%s.group == 0 {
			s.refit(r, c0, width)
		}
		row := s.want[r*width : (r+1)*width]
		for j := s.start; j < i; j++ {
			axpy(row, s.m[i*s.k+j], s.d[j*s.n+c0:j*s.n+c1])
		}
		scales := s.out.scales[c0:c1]
		if s.group > 0 {
			scales = s.out.scales[i/s.group*s.n+c0 : i/s.group*s.n+c1]
		}
		at := s.order[i] * s.n
		codes, w, d := s.out.codes[at+c0:at+c1], s.w[at+c0:at+c1], s.d[i*s.n+c0:i*s.n+c1]
		for c, v := range row {
			q := nearest(v, scales[c], s.lo, s.hi)
			if w[c] == 0 { // what was pruned stays out
				q = 0
			}
			codes[c] = int8(q)
			q *= scales[c]
			d[c] = w[c] - q
		}
	}
}

// nearest is the code of v, half to even: adding and subtracting 1.5*2^23 rounds
// in float32.
func nearest(v, scale, lo, hi float32) float32 {
	const magic = 12582912
	q := min(max(v/scale, lo), hi)
	return q + magic - magic
}

// refit chooses the scales of the group that begins at row r of the block. Its
// rows are taken as they would be if none of the group were rounded: the optimum
// given all earlier errors.
func (s *strip) refit(r, c0, width int) {
	rows := min(s.group, s.rows-r)
	free := make([]float32, rows*width)  // the optimum
	moved := make([]float32, rows*width) // w minus it
	s.x, s.imp = grow32(s.x, rows), grow32(s.imp, rows)
	for q := range rows {
		i := s.start + r + q
		row := free[q*width : (q+1)*width]
		copy(row, s.want[(r+q)*width:(r+q+1)*width])
		for j := s.start; j < s.start+r; j++ {
			axpy(row, s.m[i*s.k+j], s.d[j*s.n+c0:j*s.n+c0+width])
		}
		for j := range q {
			axpy(row, s.m[i*s.k+s.start+r+j], moved[j*width:(j+1)*width])
		}
		w := s.w[s.order[i]*s.n+c0 : s.order[i]*s.n+c0+width]
		for c, v := range row {
			moved[q*width+c] = w[c] - v
		}
		// Rows after this one will make up for what they can: of an error at i
		// this is what remains, where E[x^2] is what it would cost alone.
		s.imp[q] = float32(s.power[i])
	}
	scales := s.out.scales[(s.start+r)/s.group*s.n+c0:]
	for c := range width {
		for q := range rows {
			s.x[q] = free[q*width+c]
		}
		scales[c] = s.fit(s.x, s.imp)
		if s.units != nil {
			scales[c] = stepScale(s.x, s.imp, scales[c], s.units[c0+c])
		}
	}
}

func grow32(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

// cost returns sum |L d|^2 over the columns of d [k,n], rows in their own order.
func (f *factor) cost(ctx context.Context, alg Algebra, d []float32, n int) (float64, error) {
	x := make([]float32, len(d))
	for i, r := range f.order {
		copy(x[i*n:(i+1)*n], d[r*n:(r+1)*n])
	}
	y, err := alg.MatMul(ctx, f.m, f.k, f.k, x, n)
	if err != nil {
		return 0, err
	}
	var sum float64
	for i := range f.k {
		var s float64
		for _, v := range y[i*n : (i+1)*n] {
			s += float64(v) * float64(v)
		}
		sum += s * f.power[i]
	}
	return sum, nil
}

// checkFinite refuses weights that no grid holds.
func checkFinite(w []float32) error {
	for _, v := range w {
		if a := math.Abs(float64(v)); !(a <= math.MaxFloat32) {
			return fmt.Errorf("%w: it holds NaN or infinity", ErrWeight)
		}
	}
	return nil
}

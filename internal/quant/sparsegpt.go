package quant

import "context"

// SparseGPT (Frantar and Alistarh 2023, arXiv:2301.00774) walks through the
// input channels as GPTQ does; what is not left out keeps the value that earlier
// errors ask of it. In the form of gptq.go: the weight at step i is then
// w'_i = w_i + sum_{j<i} L_ij/L_ii d_j, and leaving it out costs L_ii^2 w'_i^2,
// which is the authors' w^2 / [H^-1]_ii with H^-1 of the channels still to come.

// prune returns w [k,n] with zeros and the error that is left, sum |L d|^2.
// Channels that were never active are dead: leaving them out costs nothing.
func (f *factor) prune(ctx context.Context, alg Algebra, w []float32, n int, s Sparsity, dead []bool) (out []float32, loss float64, err error) {
	k := f.k
	out = make([]float32, k*n)
	d := make([]float32, k*n) // w - out
	strips := (n + gptqColumns - 1) / gptqColumns
	losses := make([]float64, strips)
	for start := 0; start < k; start += pruneBlock {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		rows := min(pruneBlock, k-start)
		b := &pruning{factor: f, dead: dead, w: w, d: d, out: out, n: n, start: start, rows: rows, pattern: s.Pattern}
		b.want = append([]float32(nil), w[start*n:(start+rows)*n]...)
		carried, err := f.carried(ctx, alg, d, n, start, rows)
		if err != nil {
			return nil, 0, err
		}
		for i, v := range carried {
			b.want[i] += v
		}
		work := gptqColumns * rows * (rows + 40)
		if !s.Pattern {
			scores := make([]float32, rows*n)
			parallel(strips, work, func(from, to int) {
				for c := from; c < to; c++ {
					b.scores(scores, c*gptqColumns, min((c+1)*gptqColumns, n))
				}
			})
			b.zero = lowest(scores, int(s.Share*float64(rows*n)))
		}
		parallel(strips, work, func(from, to int) {
			for c := from; c < to; c++ {
				losses[c] += b.apply(c*gptqColumns, min((c+1)*gptqColumns, n))
			}
		})
	}
	for _, l := range losses {
		loss += l
	}
	return out, loss, nil
}

// pruning is one block of rows.
type pruning struct {
	*factor
	dead        []bool
	w, d, out   []float32
	want        []float32 // [rows,n] the values that earlier blocks ask for
	zero        []bool    // [rows,n]; nil: chosen by pattern on the way
	n           int
	start, rows int
	pattern     bool
}

// cost is what an error of 1 at row r of the block costs.
func (b *pruning) cost(r int) float64 {
	if b.dead[b.start+r] {
		return 0
	}
	return b.power[b.start+r]
}

// free returns rows from to to of columns c0 to c1 as they would be if none of
// them were left out, given the errors of the rows before.
func (b *pruning) free(from, to, c0, c1 int) []float32 {
	width := c1 - c0
	values, moved := make([]float32, (to-from)*width), make([]float32, (to-from)*width)
	for r := from; r < to; r++ {
		i := b.start + r
		row := values[(r-from)*width : (r-from+1)*width]
		copy(row, b.want[r*b.n+c0:r*b.n+c1])
		for j := range from {
			axpy(row, b.m[i*b.k+b.start+j], b.d[(b.start+j)*b.n+c0:(b.start+j)*b.n+c1])
		}
		for q := range r - from {
			axpy(row, b.m[i*b.k+b.start+from+q], moved[q*width:(q+1)*width])
		}
		for c, v := range row {
			moved[(r-from)*width+c] = b.w[i*b.n+c0+c] - v
		}
	}
	return values
}

func (b *pruning) scores(to []float32, c0, c1 int) {
	width := c1 - c0
	values := b.free(0, b.rows, c0, c1)
	for r := range b.rows {
		cost := float32(b.cost(r))
		for c, v := range values[r*width : (r+1)*width] {
			to[r*b.n+c0+c] = v * v * cost
		}
	}
}

// apply leaves out what was chosen, row by row, and returns what that costs.
func (b *pruning) apply(c0, c1 int) (loss float64) {
	width := c1 - c0
	row := make([]float32, width)
	var group []bool // [patternGroup, width]
	for r := range b.rows {
		i := b.start + r
		if b.pattern && r%patternGroup == 0 {
			group = b.choose(r, c0, c1)
		}
		copy(row, b.want[r*b.n+c0:r*b.n+c1])
		for j := range r {
			axpy(row, b.m[i*b.k+b.start+j], b.d[(b.start+j)*b.n+c0:(b.start+j)*b.n+c1])
		}
		at := i*b.n + c0
		var sum float64
		for c, v := range row {
			zero := false
			if b.pattern {
				zero = group[r%patternGroup*width+c]
			} else {
				zero = b.zero[r*b.n+c0+c]
			}
			if zero {
				sum += float64(v) * float64(v)
				v = 0
			}
			b.out[at+c], b.d[at+c] = v, b.w[at+c]-v
		}
		loss += sum * b.cost(r)
	}
	return loss
}

// choose marks the two of each four rows from r on that cost least, by column.
func (b *pruning) choose(r, c0, c1 int) []bool {
	width := c1 - c0
	values := b.free(r, r+patternGroup, c0, c1)
	mark := make([]bool, len(values))
	for c := range width {
		var scores [patternGroup]float32
		for i := range scores {
			v := values[i*width+c]
			scores[i] = v * v * float32(b.cost(r+i))
		}
		for i, zero := range lowest(scores[:], patternZeros) {
			mark[i*width+c] = zero
		}
	}
	return mark
}

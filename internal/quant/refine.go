package quant

import (
	"context"
	"slices"
)

const (
	// refineMaxK is the widest input for which scales are searched by the error of
	// the output: depthwise kernels and first layers, where few codes must make up
	// for each other and each scale is a lattice of its own.
	refineMaxK = 64
	// refineScales are tried from refineLeast to 1 of the largest weight's.
	refineScales = 48
	refineLeast  = 0.5
	// refineSweeps bounds the passes over a column's codes.
	refineSweeps = 20
)

// total adds the rows of x, [rows, Groups, K], to Total.
func (g *Gram) total(x []float32) {
	n := len(g.Total)
	for at := 0; at < len(x); at += n {
		for i, v := range x[at : at+n] {
			g.Total[i] += float64(v)
		}
	}
}

// centered is the sum of (x-m)'(x-m) for one group, m the mean row: what remains
// of an output's error once its mean is corrected in the bias, so that rounding
// need not spend its freedom on the mean.
func (g *Gram) centered(group int) []float32 {
	k := g.K
	h := slices.Clone(g.group(group))
	t := g.Total[group*k : (group+1)*k]
	for i := range k {
		row := h[TriangleRow(i):TriangleRow(i+1)]
		for j := range row {
			row[j] = float32(float64(row[j]) - t[i]*t[j]/float64(max(g.Rows, 1)))
		}
		row[i] = max(row[i], 0)
	}
	return h
}

// refine lowers the error of r, w [k,n] rounded by f, which factors gram with its
// inputs divided by smooth: for narrow inputs by other scales, where each column has
// its own, for all by single codes. AdaRound (Nagel et al. 2020, arXiv:2004.10568)
// poses the choice of each code up or down as a quadratic binary problem in the
// Hessian (its section 3.2) and relaxes it; here a local minimum is found by
// moving one code at a time, as long as any move gains.
func (f *factor) refine(ctx context.Context, alg Algebra, w []float32, n int, c Config, gram, smooth []float32, r *rounded) error {
	k := f.k
	h := f.hessian(gram, smooth)
	_, top := c.weightScheme().Codes()
	hi := float32(top)
	best := f.columnCosts(h, w, n, r)
	if k <= refineMaxK && c.Granularity != PerTensor {
		amax := make([]float32, n)
		for i, v := range w {
			amax[i%n] = max(amax[i%n], v, -v)
		}
		for step := range refineScales {
			if err := ctx.Err(); err != nil {
				return err
			}
			share := float32(1 - (1-refineLeast)*float64(step)/(refineScales-1))
			scales := make([]float32, n)
			for c := range scales {
				scales[c] = max(amax[c]*share/hi, minWeightScale)
			}
			try, err := f.round(ctx, alg, w, n, grid{lo: -hi, hi: hi, scales: scales})
			if err != nil {
				return err
			}
			f.descend(h, w, n, top, try)
			costs := f.columnCosts(h, w, n, try)
			for c := range n {
				if costs[c] < best[c] {
					best[c], r.scales[c] = costs[c], scales[c]
					for i := range k {
						r.codes[i*n+c] = try.codes[i*n+c]
					}
				}
			}
		}
	}
	f.descend(h, w, n, top, r)
	return ctx.Err()
}

// hessian is the whole matrix that f factors: gram with the damping, in float64.
func (f *factor) hessian(gram, smooth []float32) []float64 {
	k := f.k
	var mean float64
	h := make([]float64, k*k)
	for i := range k {
		for j := range i + 1 {
			v := float64(gram[TriangleRow(i)+j])
			if smooth != nil {
				v /= float64(smooth[i]) * float64(smooth[j])
			}
			h[i*k+j], h[j*k+i] = v, v
		}
		mean += h[i*k+i] / float64(k)
	}
	for i := range k {
		if h[i*k+i] == 0 {
			h[i*k+i] = 1
		} else {
			h[i*k+i] += f.damp * mean
		}
	}
	return h
}

// columnCosts returns d'hd for each column, d = w - q.
func (f *factor) columnCosts(h []float64, w []float32, n int, r *rounded) []float64 {
	k := f.k
	out := make([]float64, n)
	d := make([]float64, k)
	for c := range n {
		for i := range k {
			d[i] = float64(w[i*n+c]) - float64(r.codes[i*n+c])*float64(r.scales[c])
		}
		for i := range k {
			out[c] += d[i] * dot(h[i*k:(i+1)*k], d)
		}
	}
	return out
}

// descend moves codes of each column by one, the move that gains most first, until
// none gains.
func (f *factor) descend(h []float64, w []float32, n int, top int32, r *rounded) {
	k := f.k
	parallel(n, k*k, func(from, to int) {
		d, g := make([]float64, k), make([]float64, k)
		for c := from; c < to; c++ {
			s := float64(r.scales[c])
			for i := range k {
				d[i] = float64(w[i*n+c]) - float64(r.codes[i*n+c])*s
			}
			for i := range k {
				g[i] = dot(h[i*k:(i+1)*k], d)
			}
			for range refineSweeps * k {
				at, move, gain := -1, int8(0), 0.0
				for i := range k {
					if w[i*n+c] == 0 {
						continue // pruned weights stay zero
					}
					// A code one up takes s from d_i.
					up := -2*s*g[i] + s*s*h[i*k+i]
					down := 2*s*g[i] + s*s*h[i*k+i]
					code := int32(r.codes[i*n+c])
					if up < gain && code < top {
						at, move, gain = i, 1, up
					}
					if down < gain && code > -top {
						at, move, gain = i, -1, down
					}
				}
				if at < 0 {
					break
				}
				r.codes[at*n+c] += move
				step := s * float64(move)
				row := h[at*k : (at+1)*k]
				for i := range g {
					g[i] -= step * row[i]
				}
			}
		}
	})
}

package calib

import "math"

const (
	mseCandidates = 100
	mseRounds     = 4 // of coordinate descent; it stops earlier when nothing improves
)

// mse minimises sum (x - Q(x))^2 over 100 shrunken ranges amax*i/100 and then,
// for an asymmetric scheme, over each end in turn.
func mse(h *Histogram, s Scheme) (Range, error) {
	if err := h.check(); err != nil {
		return Range{}, err
	}
	full := Range{h.lo, h.hi}.WithZero()
	if full == (Range{}) {
		return full, nil
	}
	pos, neg := newMass(h, 0), newMass(h, 1)
	loss := func(r Range) float64 {
		q := ParamsFor(r, s)
		lo, hi := s.Codes()
		step := float64(q.Scale)
		return pos.loss(step, int(hi-q.Zero)) + neg.loss(step, int(q.Zero-lo))
	}
	best, least := full, loss(full)
	try := func(r Range) bool {
		e := loss(r)
		if e < least {
			best, least = r, e
			return true
		}
		return false
	}
	for i := 1; i < mseCandidates; i++ {
		f := float32(i) / mseCandidates
		try(Range{full.Lo * f, full.Hi * f})
	}
	if s.Symmetric || full.Lo == 0 || full.Hi == 0 {
		return best, nil
	}
	for range mseRounds {
		better := false
		for i := 1; i <= mseCandidates; i++ {
			better = try(Range{best.Lo, full.Hi * (float32(i) / mseCandidates)}) || better
		}
		for i := 1; i <= mseCandidates; i++ {
			better = try(Range{full.Lo * (float32(i) / mseCandidates), best.Hi}) || better
		}
		if !better {
			break
		}
	}
	return best, nil
}

// mass is one sign's distribution of magnitudes with prefix sums of its
// moments, so that the loss of a range costs one look-up a code. Inside a cell
// the mass is taken as uniform. The sums start at zero, where the values are
// small, so that an outlier does not cancel the digits of the rest.
type mass struct {
	code0, lin0 int // first log cell; index of linear bin firstLin
	state       binState
	top         float64
	edge        []float64    // lower edge of each cell, and the top
	n           []float64    // values in each cell
	sum         [][3]float64 // of 1, x, x^2 below each cell
}

func newMass(h *Histogram, sign int) *mass {
	cells := h.magnitudes(1 << sign)
	if len(cells) == 0 {
		return &mass{}
	}
	s := &h.sides[sign]
	m := &mass{state: h.state, top: cells[len(cells)-1].Hi}
	firstLog := int(h.state.thr >> cellSh) // none below the linear bins
	m.code0 = firstLog
	for e := range s.low {
		if s.low[e] != nil {
			m.code0 = min(m.code0, e<<cellBits)
			break
		}
	}
	m.lin0 = firstLog - m.code0
	size := m.lin0
	if s.lin != nil {
		size += sideBins - firstLin
	}
	m.edge, m.n, m.sum = make([]float64, size+1), make([]float64, size), make([][3]float64, size+1)
	for i := range size {
		if i < m.lin0 {
			code := m.code0 + i
			m.edge[i] = codeEdge(code)
			if p := s.low[code>>cellBits]; p != nil {
				m.n[i] = float64(p[code&(CellsPerOctave-1)])
			}
		} else {
			j := i - m.lin0 + firstLin
			m.edge[i] = math.Ldexp(float64(j), h.state.k)
			m.n[i] = float64(s.lin[j])
		}
	}
	m.edge[size] = math.Ldexp(float64(sideBins), h.state.k)
	if s.lin == nil {
		m.edge[size] = math.Float64frombits(math.Float64bits(codeEdge(firstLog)))
	}
	for i := range size {
		a, b := m.edge[i], math.Min(m.edge[i+1], m.top)
		w := moments(m.n[i], a, math.Max(a, b))
		for d := range w {
			m.sum[i+1][d] = m.sum[i][d] + w[d]
		}
	}
	return m
}

// moments of n values spread evenly over [a, b].
func moments(n, a, b float64) [3]float64 {
	return [3]float64{n, n * (a + b) / 2, n * (a*a + a*b + b*b) / 3}
}

// upTo returns the moments of the mass below x.
func (m *mass) upTo(x float64) [3]float64 {
	if x >= m.top {
		return m.sum[len(m.n)]
	}
	i := 0
	if f := float32(x); math.Float32bits(f) >= m.state.thr {
		i = m.lin0 - firstLin + int(x*float64(m.state.scale))
	} else {
		i = int(math.Float32bits(f)>>cellSh) - m.code0
	}
	if i < 0 {
		return [3]float64{}
	}
	if i >= len(m.n) {
		return m.sum[len(m.n)]
	}
	r := m.sum[i]
	a, b := m.edge[i], math.Min(m.edge[i+1], m.top)
	if m.n[i] == 0 || x <= a || b <= a {
		return r
	}
	x = math.Min(x, b)
	w := moments(m.n[i]*(x-a)/(b-a), a, x)
	return [3]float64{r[0] + w[0], r[1] + w[1], r[2] + w[2]}
}

// loss is sum (x - step*round(x/step))^2 with codes 0..last, saturating.
func (m *mass) loss(step float64, last int) float64 {
	if len(m.n) == 0 {
		return 0
	}
	var from [3]float64
	e := 0.
	for j := 0; j <= last; j++ {
		c := float64(j) * step
		if j == last || c+step/2 >= m.top {
			to := m.sum[len(m.n)]
			return e + around(from, to, c)
		}
		to := m.upTo(c + step/2)
		e += around(from, to, c)
		from = to
	}
	return e
}

// around is the second moment about c of the mass between two prefixes.
func around(from, to [3]float64, c float64) float64 {
	return math.Max(0, (to[2]-from[2])-2*c*(to[1]-from[1])+c*c*(to[0]-from[0]))
}

package quant

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/fewbit/fewbit/internal/calib"
	"github.com/fewbit/fewbit/internal/graph"
)

// Smoothing search (SmoothQuant, Xiao et al. 2023, arXiv:2211.10438): channel j
// of the input is divided by s_j = max|X_j|^a / max|W_j|^(1-a) and row j of the
// weights multiplied by it, which moves the range of outlier channels from the
// activations, where one scale serves all, to the weights. Here the exponent
// and the range are chosen jointly, for each input, by the error of the
// consumers' outputs on a sample of rows.
var (
	// smoothAlphas are the exponents tried besides no smoothing. Below 0.4 and
	// above 0.9 never won on MiniLM, BERT-base or ViT.
	smoothAlphas = []float64{0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
)

const (
	// smoothGain is the factor by which smoothing must lower the error to be
	// worth its multiplication at run time.
	smoothGain = 0.9
	// smoothMin lets smoothing shrink channels and never stretch one: a quiet
	// channel that is stretched to the range of the others has no room left for
	// the values that calibration did not see.
	smoothMin = 1
	// channelFloor stands in for a channel that was never active.
	channelFloor = 1e-5
)

// GEMM multiplies row-major matrices: [m,k] x [k,n] -> [m,n].
type GEMM interface {
	MatMul(ctx context.Context, a []float32, m, k int, b []float32, n int) ([]float32, error)
}

// Statistics are what the choice of ranges needs from a calibration run.
type Statistics interface {
	// Histogram of a tensor's values, nil when it was not observed.
	Histogram(tensor string) *calib.Histogram
	// Threshold is the range that a method gives the tensor.
	Threshold(tensor, method string, s calib.Scheme) (calib.Range, error)
	// ChannelMax is max|x| for each channel of a tensor's last axis, nil when
	// it was not observed.
	ChannelMax(tensor string) []float32
	// Rows is a sample of a tensor's rows, nil when none was kept.
	Rows(tensor string) *Rows
}

// Ranges is the pass that chooses a range (and smoothing) for every planned
// tensor. It changes Choices only, not the graph.
type Ranges struct {
	Plan    *Plan
	Stats   Statistics
	GEMM    GEMM
	Choices Choices
	// Known are choices for this plan that were made on the same grounds; may be nil.
	Known Choices
	// AtOnce is for how many tensors a choice is looked for at a time, each with a few
	// copies of its kept rows; 0 is 1. A Thresholder is asked for one after the other.
	AtOnce int
	// Progress is told the share of tensors done, by one goroutine at a time; may be nil.
	Progress func(float64)
}

var _ Pass = (*Ranges)(nil)

// Name implements Pass.
func (r *Ranges) Name() string { return "ranges" }

// Run implements Pass.
func (r *Ranges) Run(ctx context.Context, m *graph.Model) (Stats, error) {
	groups := map[string][]*Op{}
	for _, g := range r.Plan.Linears() {
		groups[g[0].X[0]] = g
	}
	tensors := slices.Clone(r.Plan.Tensors)
	free := map[string]bool{} // those that need no range
	if r.Plan.Config.Scheme == INT8Dynamic || r.Plan.Config.rows() {
		for _, g := range r.Plan.Linears() {
			if x := g[0].X[0]; !slices.Contains(r.Plan.Tensors, x) {
				tensors = append(tensors, x)
				free[x] = true
			}
		}
	}
	found, errs := make([]*Choice, len(tensors)), make([]error, len(tensors))
	var next, done atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex
	workers := max(r.AtOnce, 1)
	if r.Plan.Config.Thresholder != nil {
		workers = 1
	}
	for range workers {
		wg.Go(func() {
			for i := int(next.Add(1) - 1); i < len(tensors) && ctx.Err() == nil; i = int(next.Add(1) - 1) {
				t := tensors[i]
				if found[i], errs[i] = r.choose(ctx, m.Graph, t, groups[t], free[t]); errs[i] != nil {
					next.Store(int64(len(tensors))) // the others need not be looked at
					return
				}
				if r.Progress != nil {
					mu.Lock()
					r.Progress(float64(done.Add(1)) / float64(len(tensors)))
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return Stats{}, err
	}
	smoothed := 0
	for i, c := range found {
		if errs[i] != nil {
			return Stats{}, fmt.Errorf("tensor %q: %w", tensors[i], errs[i])
		}
		if c == nil {
			continue
		}
		if c.Smooth != nil {
			smoothed++
		}
		r.Choices[tensors[i]] = c
	}
	return Stats{Changed: len(r.Choices), Note: fmt.Sprintf("%d ranges, %d inputs smoothed", len(r.Choices), smoothed)}, nil
}

// choose returns the choice for one tensor, which the operators g read and which needs
// no range when it is free; nil is none.
func (r *Ranges) choose(ctx context.Context, g *graph.Graph, t string, group []*Op, free bool) (*Choice, error) {
	if c := r.Known[t]; c != nil {
		return c, nil
	}
	c := &Choice{Tensor: t, Errors: map[string]float64{}, Candidates: map[string]calib.Range{}}
	rows := r.Stats.Rows(t)
	fixed, isFixed := r.Plan.Fixed(t)
	switch {
	case isFixed:
		c.fix(fixed, r.Plan.Config.actScheme())
		return c, nil
	case free && rows.empty():
		return nil, nil // nothing to choose smoothing by
	case group != nil && !rows.empty() && r.GEMM != nil && !r.Plan.InChain(t) && r.Plan.Config.Method != MovingAverage:
		return c, r.linear(ctx, g, c, group, rows)
	case free && r.Plan.Config.rows():
		return nil, nil
	}
	return c, r.plain(c)
}

// empty reports whether no row without NaN and infinity was kept.
func (r *Rows) empty() bool {
	return r == nil || !slices.ContainsFunc(r.data, func(row []float32) bool { return checkFinite(row) == nil })
}

// histogram returns the statistics of t or ErrUncalibrated.
func (r *Ranges) histogram(t string) (*calib.Histogram, error) {
	h := r.Stats.Histogram(t)
	if h == nil {
		return nil, fmt.Errorf("%w: it was not observed", ErrUncalibrated)
	}
	return h, nil
}

// plain chooses from the histogram alone: the configured method, or for auto
// the one with the smallest squared error of the tensor itself.
func (r *Ranges) plain(c *Choice) error {
	s := r.Plan.Config.actScheme()
	methods, pick := []string{r.Plan.Config.Method}, r.Plan.Config.Method
	c.Why = "set by the user"
	if pick == Auto {
		// MSE minimises the squared error of the tensor itself: without the
		// consumers' outputs it is the best of the methods by definition.
		methods, pick = autoMethods, "mse"
		c.Own = true
		c.Why = "smallest squared error of the tensor itself"
	}
	for _, name := range methods {
		rg, err := r.threshold(c.Tensor, name, s)
		if err != nil {
			return err
		}
		c.Candidates[name] = rg.WithZero()
	}
	c.set(pick, c.Candidates[pick], s)
	return nil
}

// threshold is the range of a tensor by a method; a device may have found it.
func (r *Ranges) threshold(tensor, method string, s calib.Scheme) (calib.Range, error) {
	if method != External {
		return r.Stats.Threshold(tensor, method, s)
	}
	h, err := r.histogram(tensor)
	if err != nil {
		return calib.Range{}, err
	}
	return r.Plan.Config.threshold(h, method, s)
}

// autoMethods are the candidates of auto for a tensor.
var autoMethods = []string{"minmax", "percentile", "mse", "entropy"}

// linear chooses exponent and range jointly for the consumers g of one input.
func (r *Ranges) linear(ctx context.Context, g *graph.Graph, c *Choice, group []*Op, rows *Rows) error {
	x, m := rows.Finite()
	t := &trial{cfg: r.Plan.Config, gemm: r.GEMM, x: x, m: m, k: rows.K, scheme: r.Plan.Config.actScheme()}
	most := trialColumns
	if t.cfg.Granularity == PerTensor { // the scale is that of all columns
		most = 0
	}
	if err := t.weights(g, group, most); err != nil {
		return err
	}
	if err := t.reference(ctx); err != nil {
		return err
	}
	methods := []string{"minmax", "percentile", "mse"}
	if m := r.Plan.Config.Method; m != Auto {
		methods = []string{m}
	}
	if r.Plan.Config.Scheme == INT8Dynamic || r.Plan.Config.rows() {
		methods = []string{"minmax"}
	}
	h, err := r.histogram(c.Tensor)
	if err != nil {
		return err
	}
	plain := &setting{hist: h}
	if err := t.try(ctx, c, plain, methods); err != nil {
		return err
	}
	best := plain
	if chMax := r.Stats.ChannelMax(c.Tensor); !r.Plan.Config.NoSmooth && len(chMax) == t.k {
		smooth, err := r.exponent(ctx, t, c, chMax, methods)
		if err != nil {
			return err
		}
		// A smoothed tensor must beat the plain one by the gain that pays for
		// its multiplication.
		if smooth.err < plain.err*smoothGain {
			best = smooth
		}
	}
	c.set(best.method, best.r, t.scheme)
	c.Smooth, c.Alpha = best.s, best.alpha
	c.Why = fmt.Sprintf("smallest output error of %d operators on %d rows and %d columns: %.3g", len(group), t.m, t.n, best.err)
	if best != plain {
		c.Why += fmt.Sprintf(", without smoothing %.3g", plain.err)
	}
	return nil
}

// exponent tries every exponent with the first method and the other methods
// with the best exponent.
func (r *Ranges) exponent(ctx context.Context, t *trial, c *Choice, chMax []float32, methods []string) (*setting, error) {
	var best *setting
	for _, a := range smoothAlphas {
		st := &setting{alpha: a, s: smoothVector(chMax, t.rowMax, a)}
		st.hist = t.smoothedHistogram(st.s, chMax, methods[0] != "minmax")
		if err := t.try(ctx, c, st, methods[:1]); err != nil {
			return nil, err
		}
		if best == nil || st.err < best.err {
			best = st
		}
	}
	if len(methods) > 1 && methods[0] == "minmax" {
		best.hist = t.smoothedHistogram(best.s, chMax, true)
	}
	return best, t.try(ctx, c, best, methods[1:])
}

// setting is one way to smooth (s nil: none) and the best range found for it.
type setting struct {
	alpha  float64
	s      []float32
	hist   *calib.Histogram // of the smoothed tensor
	method string           // "" before the first try
	r      calib.Range
	err    float64
}

// try measures methods under the setting, records them in c and keeps the best.
func (t *trial) try(ctx context.Context, c *Choice, st *setting, methods []string) error {
	if len(methods) == 0 {
		return nil
	}
	cands := make([]candidate, len(methods))
	for i, name := range methods {
		rg, err := t.cfg.threshold(st.hist, name, t.scheme)
		if err != nil {
			return err
		}
		cands[i] = candidate{name, rg.WithZero()}
	}
	errs, err := t.errors(ctx, st.s, cands)
	if err != nil {
		return err
	}
	for i, e := range errs {
		key := cands[i].method
		if st.s != nil {
			key = fmt.Sprintf("smooth %.1f, %s", st.alpha, key)
		}
		c.Errors[key], c.Candidates[key] = e, cands[i].r
		if st.method == "" || e < st.err {
			st.method, st.r, st.err = cands[i].method, cands[i].r, e
		}
	}
	return nil
}

// smoothVector returns s for exponent a, divided by its geometric mean so that
// the average range of activations and weights stays where it was.
func smoothVector(xmax, wmax []float32, a float64) []float32 {
	s := make([]float64, len(xmax))
	var logs float64
	for j := range s {
		x, w := math.Max(float64(xmax[j]), channelFloor), math.Max(float64(wmax[j]), channelFloor)
		s[j] = math.Pow(x, a) / math.Pow(w, 1-a)
		logs += math.Log(s[j])
	}
	mean := math.Exp(logs / float64(len(s)))
	out := make([]float32, len(s))
	for j := range s {
		out[j] = float32(math.Max(s[j]/mean, smoothMin))
	}
	return out
}

// FakeQuantize returns dequantize(quantize(x)), element by element.
func FakeQuantize(x []float32, p calib.QParams, s calib.Scheme) []float32 {
	lo, hi := s.Codes()
	out := make([]float32, len(x))
	inv := 1 / p.Scale
	minV, maxV := float32(lo-p.Zero), float32(hi-p.Zero)
	parallel(len(x), 1, func(a, b int) {
		for i := a; i < b; i++ {
			// Adding and subtracting 1.5*2^23 rounds half to even in float32.
			const round = 12582912
			v := min(max(x[i]*inv, minV), maxV)
			out[i] = (v + round - round) * p.Scale
		}
	})
	return out
}

// fakeQuantDynamic quantizes with the range of all rows together, as
// DynamicQuantizeLinear does for one run of that many rows.
func fakeQuantDynamic(x []float32, s calib.Scheme) []float32 {
	var r calib.Range
	for _, v := range x {
		r.Lo, r.Hi = min(r.Lo, v), max(r.Hi, v)
	}
	return FakeQuantize(x, calib.ParamsFor(r, s), s)
}

// parallel splits [0,n), n items of so many elements each, over up to eight
// goroutines when there is enough to do.
func parallel(n, elements int, f func(a, b int)) {
	const grain = 1 << 16
	parts := min(max(n*elements/grain, 1), 8, n)
	if parts == 1 {
		f(0, n)
		return
	}
	var wg sync.WaitGroup
	for i := range parts {
		wg.Go(func() { f(i*n/parts, (i+1)*n/parts) })
	}
	wg.Wait()
}

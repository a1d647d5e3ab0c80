package reconstruct

import (
	"math"
	"runtime"
	"sync"
)

// The rectified sigmoid reaches 0 and 1 (AdaRound, Nagel et al. 2020,
// arXiv:2004.10568, equation 23).
const (
	stretch = 1.1
	sink    = -0.1
)

// soften returns h(v) = clip(sigmoid(v) (stretch - sink) + sink, 0, 1) and its derivative.
func soften(v float32) (h, slope float32) {
	s := float32(1 / (1 + math.Exp(-float64(v))))
	h = s*(stretch-sink) + sink
	if h <= 0 {
		return 0, 0
	}
	if h >= 1 {
		return 1, 0
	}
	return h, s * (1 - s) * (stretch - sink)
}

// harden returns v with h(v) = h, for h between 0 and 1 without either: there the
// derivative is 0 and nothing would be learned.
func harden(h float32) float32 {
	s := (float64(min(max(h, leastSoft), 1-leastSoft)) - sink) / (stretch - sink)
	return float32(math.Log(s / (1 - s)))
}

// lean is the share of the way from the float value to the code of the start at which a
// weight begins. The papers begin at the value; with few steps a start that is solved is
// worth keeping in part.
const lean = 0.5

// leastSoft is how near to a code a weight begins at most.
const leastSoft = 0.02

// curve tabulates the relaxation, so that a step costs no exponential a weight.
type curve [curveSize]point

type point struct {
	h, slope float32
	pull     float32 // derivative of the regularizer with respect to h
}

const (
	// curveEnd is beyond where h reaches 0 and 1.
	curveEnd  = 3
	curveSize = 6 << 10 // h is off by 2^-12 at most
)

func newCurve() *curve {
	c := new(curve)
	for i := range c {
		c[i].h, c[i].slope = soften((float32(i)+0.5)*2*curveEnd/curveSize - curveEnd)
	}
	return c
}

// at is the point nearest to v, which lies between -curveEnd and curveEnd.
func (c *curve) at(v float32) *point {
	return &c[min(max(int((v+curveEnd)*(curveSize/(2*curveEnd))), 0), curveSize-1)]
}

// bend sets the derivative of lambda sum(1 - |2h - 1|^beta); beta 0 is no regularizer.
func (c *curve) bend(lambda, beta float64) {
	for i := range c {
		u := 2*float64(c[i].h) - 1
		if c[i].pull = 0; beta > 0 {
			c[i].pull = float32(-2 * lambda * beta * math.Copysign(math.Pow(math.Abs(u), beta-1), u))
		}
	}
}

// Weight is a weight whose codes are learned: each is one of the two between which its
// value begins.
type Weight struct {
	// Name of the block's input that takes the weight.
	Name string
	// Dims of Values, Steps and Codes.
	Dims []int64
	// Values are the float weights; one that is exactly 0 keeps the code 0.
	Values []float32
	// Steps is what a code of one stands for, of each value; it may be negative.
	Steps []float32
	// Codes lie between Lo and Hi. They are the start, and then what was learned.
	Codes  []int8
	Lo, Hi int8
}

// dequantize writes what the codes stand for.
func (w *Weight) dequantize(out []float32) {
	for i, c := range w.Codes {
		out[i] = float32(c) * w.Steps[i]
	}
}

// rounding is the relaxation of a weight's codes.
type rounding struct {
	*Weight
	base  []int8    // the lower of two codes
	v     []float32 // the relaxation h(v) lies between them
	soft  []float32 // what the block reads
	grad  []float32 // of soft, summed over a batch
	adam  *adam
	curve *curve
	pull  float64 // mean magnitude of the derivative with respect to h, of the warm-up
}

// fixed marks in base a weight that has one code only.
const fixed = math.MinInt8

// relax gives each weight the two codes beside its float value, or, where its start lies
// further away (GPTQ lets weights make up for others), the start and the one next to it
// towards the value, and begins between value and start.
func relax(w *Weight) *rounding {
	n := len(w.Values)
	r := &rounding{Weight: w, base: make([]int8, n), v: make([]float32, n), soft: make([]float32, n), grad: make([]float32, n), adam: newAdam(n), curve: newCurve()}
	for i, x := range w.Values {
		c, at := w.Codes[i], x/w.Steps[i]
		if x == 0 {
			r.base[i] = fixed
			continue
		}
		lo := int8(min(max(math.Floor(float64(at)), float64(w.Lo)), float64(w.Hi-1)))
		switch {
		case c < lo:
			lo = c
		case c > lo+1:
			lo = c - 1
		}
		r.base[i] = lo
		h := min(max(at-float32(lo), 0), 1)
		h += lean * (float32(c-lo) - h)
		r.v[i] = harden(h)
	}
	return r
}

// write makes soft what the relaxation stands for.
func (r *rounding) write() {
	parallel(len(r.v), func(from, to int) {
		for i := from; i < to; i++ {
			if r.base[i] == fixed {
				r.soft[i] = float32(r.Codes[i]) * r.Steps[i]
				continue
			}
			r.soft[i] = (float32(r.base[i]) + r.curve.at(r.v[i]).h) * r.Steps[i]
		}
	})
}

// measure notes how strongly the error pulls at h, for the weight of the regularizer.
func (r *rounding) measure() {
	var sum float64
	for i, g := range r.grad {
		sum += math.Abs(float64(g * r.Steps[i]))
	}
	r.pull = max(r.pull, sum/float64(max(len(r.grad), 1)))
}

// step moves the relaxation against the derivative of the error and, with beta > 0, of
// the regularizer lambda sum(1 - |2h - 1|^beta) (equation 24), lambda a share of pull.
func (r *rounding) step(rate, beta float64) {
	r.curve.bend(regularize*r.pull, beta)
	r.adam.begin()
	parallel(len(r.v), func(from, to int) {
		for i := from; i < to; i++ {
			if r.base[i] == fixed {
				continue
			}
			p := r.curve.at(r.v[i])
			v := r.v[i] - float32(rate)*r.adam.next(i, (r.grad[i]*r.Steps[i]+p.pull)*p.slope)
			r.v[i] = min(max(v, -curveEnd), curveEnd)
		}
	})
}

// settle rounds the relaxation to codes.
func (r *rounding) settle() {
	for i, b := range r.base {
		if b == fixed {
			continue
		}
		r.Codes[i] = b
		if h, _ := soften(r.v[i]); h >= 0.5 {
			r.Codes[i]++
		}
	}
}

// adam is the optimizer of Kingma and Ba 2015 (arXiv:1412.6980, algorithm 1), without
// its epsilon, which would have the unit of a derivative.
type adam struct {
	m, v     []float32
	one, two float64 // powers of the decays
}

const (
	decayOne = 0.9
	decayTwo = 0.999
)

func newAdam(n int) *adam { return &adam{m: make([]float32, n), v: make([]float32, n), one: 1, two: 1} }

func (a *adam) begin() { a.one, a.two = a.one*decayOne, a.two*decayTwo }

// next returns what parameter i, whose derivative is d, moves down by, times the rate.
func (a *adam) next(i int, d float32) float32 {
	a.m[i] = decayOne*a.m[i] + (1-decayOne)*d
	a.v[i] = decayTwo*a.v[i] + (1-decayTwo)*d*d
	if a.v[i] == 0 {
		return 0
	}
	return float32(float64(a.m[i]) / (1 - a.one) / math.Sqrt(float64(a.v[i])/(1-a.two)))
}

// parallel calls f for parts of [0,n).
func parallel(n int, f func(from, to int)) {
	const least = 1 << 14
	parts := min(runtime.GOMAXPROCS(0), max(n/least, 1))
	if parts == 1 {
		f(0, n)
		return
	}
	var wg sync.WaitGroup
	for p := range parts {
		wg.Go(func() { f(p*n/parts, (p+1)*n/parts) })
	}
	wg.Wait()
}

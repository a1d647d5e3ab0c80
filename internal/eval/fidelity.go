package eval

import (
	"fmt"
	"math"
	"sort"
)

const (
	// MaxSQNR bounds every SQNR in dB, both ways: no noise at all is +200, noise
	// where there should be silence -200. float32 itself resolves about 150 dB,
	// so +200 always means "no difference seen", and reports need no infinity.
	MaxSQNR = 200.0
	// maskMagnitude: |x| from here on is a mask constant (attention masks add
	// -3.4e38), not a signal. One such element would drown every other in a sum
	// of squares, so it is counted and left out.
	maskMagnitude = 1e30
)

// Error accumulates the difference between a reference tensor and its
// quantized counterpart over any number of calls. The zero value is ready.
// It holds a fixed number of words and never retains its arguments.
type Error struct {
	Count  int64   `json:"count"`  // elements compared
	Signal float64 `json:"signal"` // sum of y²
	Noise  float64 `json:"noise"`  // sum of (y-ŷ)²
	MaxAbs float64 `json:"max_abs"`
	// Dot and QuantSq complete the cosine of everything seen: sum of y*ŷ, ŷ².
	Dot     float64 `json:"dot"`
	QuantSq float64 `json:"quant_sq"`
	// Masked counts elements left out because the reference is a mask constant.
	Masked int64 `json:"masked,omitempty"`
	// RefNonFinite and QuantNonFinite count NaN and ±Inf on either side; those
	// elements enter no sum.
	RefNonFinite   int64 `json:"ref_non_finite,omitempty"`
	QuantNonFinite int64 `json:"quant_non_finite,omitempty"`
	// Broken counts elements where the reference was an ordinary number and the
	// quantized value is none, or beyond 1e30: damage that no SQNR can express.
	Broken int64 `json:"broken,omitempty"`
}

// Observe adds one pair of tensors, element by element. It returns ErrLength
// unless both have as many elements.
func (e *Error) Observe(ref, quant []float32) error {
	if len(ref) != len(quant) {
		return fmt.Errorf("%w: %d reference elements, %d quantized", ErrLength, len(ref), len(quant))
	}
	// Locals keep the loop in registers; blocks bound the float64 error growth.
	const block = 4096
	for len(ref) > 0 {
		n := min(block, len(ref))
		e.block(ref[:n], quant[:n])
		ref, quant = ref[n:], quant[n:]
	}
	return nil
}

func (e *Error) block(ref, quant []float32) {
	// Two sets of sums, for even and odd elements, keep two chains of additions
	// in flight.
	var a, b sums
	quant = quant[:len(ref)]
	i := 0
	for ; i+2 <= len(ref); i += 2 {
		y0, q0, y1, q1 := float64(ref[i]), float64(quant[i]), float64(ref[i+1]), float64(quant[i+1])
		// One test passes ordinary pairs: false for NaN, Inf and masks.
		if !(math.Abs(y0) < maskMagnitude && math.Abs(q0) < maskMagnitude && math.Abs(y1) < maskMagnitude && math.Abs(q1) < maskMagnitude) {
			e.odd(&a, y0, q0)
			e.odd(&b, y1, q1)
			continue
		}
		d0, d1 := y0-q0, y1-q1
		a.signal += y0 * y0
		b.signal += y1 * y1
		a.noise += d0 * d0
		b.noise += d1 * d1
		a.dot += y0 * q0
		b.dot += y1 * q1
		a.quant += q0 * q0
		b.quant += q1 * q1
		if d0 = math.Abs(d0); d0 > a.maxAbs {
			a.maxAbs = d0
		}
		if d1 = math.Abs(d1); d1 > b.maxAbs {
			b.maxAbs = d1
		}
	}
	e.Count += int64(i)
	for ; i < len(ref); i++ {
		e.Count++
		e.odd(&a, float64(ref[i]), float64(quant[i]))
	}
	e.Signal += a.signal + b.signal
	e.Noise += a.noise + b.noise
	e.Dot += a.dot + b.dot
	e.QuantSq += a.quant + b.quant
	e.MaxAbs = max(e.MaxAbs, a.maxAbs, b.maxAbs)
}

type sums struct{ signal, noise, dot, quant, maxAbs float64 }

// odd adds one element that may be no ordinary number, already counted by the
// caller.
func (e *Error) odd(s *sums, y, q float64) {
	if math.Abs(y) < maskMagnitude && math.Abs(q) < maskMagnitude {
		d := y - q
		s.signal += y * y
		s.noise += d * d
		s.dot += y * q
		s.quant += q * q
		s.maxAbs = max(s.maxAbs, math.Abs(d))
		return
	}
	e.Count--
	finite := func(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
	if !finite(y) {
		e.RefNonFinite++
	}
	if !finite(q) {
		e.QuantNonFinite++
	}
	switch {
	case math.Abs(y) < maskMagnitude:
		e.Broken++
	case finite(y) && finite(q):
		e.Masked++
	}
}

// Merge adds what o has seen.
func (e *Error) Merge(o Error) {
	e.Count += o.Count
	e.Signal += o.Signal
	e.Noise += o.Noise
	e.MaxAbs = max(e.MaxAbs, o.MaxAbs)
	e.Dot += o.Dot
	e.QuantSq += o.QuantSq
	e.Masked += o.Masked
	e.RefNonFinite += o.RefNonFinite
	e.QuantNonFinite += o.QuantNonFinite
	e.Broken += o.Broken
}

// SQNR returns 10*log10(sum y² / sum (y-ŷ)²) in dB, within ±MaxSQNR.
// Nothing compared gives 0.
func (e Error) SQNR() float64 {
	switch {
	case e.Noise == 0 && e.Count == 0:
		return 0
	case e.Noise == 0:
		return MaxSQNR
	case e.Signal == 0:
		return -MaxSQNR
	}
	return min(MaxSQNR, max(-MaxSQNR, 10*(math.Log10(e.Signal)-math.Log10(e.Noise))))
}

// RelMSE returns sum (y-ŷ)² / sum y²: 0 for no difference. A silent reference
// with noise gives 10^(MaxSQNR/10), the same cap as SQNR.
func (e Error) RelMSE() float64 {
	if e.Noise == 0 {
		return 0
	}
	return math.Pow(10, -e.SQNR()/10)
}

// Cosine returns the cosine of everything seen, taken as one vector, in -1..1.
// Two silent vectors agree (1); one silent vector does not (0).
func (e Error) Cosine() float64 { return cosine(e.Dot, e.Signal, e.QuantSq) }

// Sound reports whether no ordinary number became NaN or infinite.
func (e Error) Sound() bool { return e.Broken == 0 }

func cosine(dot, aa, bb float64) float64 {
	switch {
	case aa == 0 && bb == 0:
		return 1
	case aa == 0 || bb == 0:
		return 0
	}
	return min(1, max(-1, dot/(math.Sqrt(aa)*math.Sqrt(bb))))
}

// Tensors collects an Error for each named tensor inside the graph.
type Tensors map[string]*Error

// Observe adds one pair under name.
func (t Tensors) Observe(name string, ref, quant []float32) error {
	e := t[name]
	if e == nil {
		e = new(Error)
		t[name] = e
	}
	if err := e.Observe(ref, quant); err != nil {
		return fmt.Errorf("tensor %q: %w", name, err)
	}
	return nil
}

// Merge adds what o has seen.
func (t Tensors) Merge(o Tensors) {
	for name, e := range o {
		if t[name] == nil {
			t[name] = new(Error)
		}
		t[name].Merge(*e)
	}
}

// TensorFidelity is one line of a ranking.
type TensorFidelity struct {
	Name   string  `json:"name"`
	SQNR   float64 `json:"sqnr_db"`
	Cosine float64 `json:"cosine"`
	MaxAbs float64 `json:"max_abs"`
	RelMSE float64 `json:"rel_mse"`
	Count  int64   `json:"count"`
	Broken int64   `json:"broken,omitempty"`
}

// Ranked returns all tensors, the worst first: broken ones, then by SQNR, then
// by name.
func (t Tensors) Ranked() []TensorFidelity {
	r := make([]TensorFidelity, 0, len(t))
	for name, e := range t {
		r = append(r, TensorFidelity{name, e.SQNR(), e.Cosine(), e.MaxAbs, e.RelMSE(), e.Count, e.Broken})
	}
	sort.Slice(r, func(i, j int) bool {
		a, b := r[i], r[j]
		if (a.Broken > 0) != (b.Broken > 0) {
			return a.Broken > 0
		}
		if a.SQNR != b.SQNR {
			return a.SQNR < b.SQNR
		}
		return a.Name < b.Name
	})
	return r
}

// Summary describes a distribution: of per-sample cosines, or of latencies.
type Summary struct {
	N    int     `json:"n"`
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
	P1   float64 `json:"p1"`
	P5   float64 `json:"p5"`
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	Max  float64 `json:"max"`
}

// Summarize describes x, which it leaves as it is. Percentiles interpolate
// linearly between order statistics. No values give the zero Summary.
func Summarize(x []float64) Summary {
	if len(x) == 0 {
		return Summary{}
	}
	s := append([]float64(nil), x...)
	sort.Float64s(s)
	var sum float64
	for _, v := range s {
		sum += v
	}
	return Summary{
		N: len(s), Mean: sum / float64(len(s)), Min: s[0], Max: s[len(s)-1],
		P1: quantile(s, .01), P5: quantile(s, .05), P50: quantile(s, .5), P90: quantile(s, .9), P99: quantile(s, .99),
	}
}

package batch

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/tensor"
)

const (
	// maxTrialBytes bounds one made-up input.
	maxTrialBytes = 64 << 20
	// trialTolerance is how far values of a row may lie apart, as a share of the
	// largest: the steps of a quantized model may fall to the other side where a
	// kernel for more rows sums in another order.
	trialTolerance = 0.05
)

// trialSizes are guesses for the variable dimensions behind the first: short texts,
// small and usual images, sound.
var trialSizes = []int64{8, 64, 224, 16384, 1}

// Independent reports whether s answers each row as if it had come alone, so that
// requests may share a run. The interface cannot tell: a softmax over the first
// dimension has that of one over the second. So two rows of made-up numbers run
// alone and together. A model that refuses all of them counts as dependent.
func Independent(ctx context.Context, s engine.Session) (bool, error) {
	r := ruleFor(s.Spec())
	if r == nil {
		return true, nil // nothing will be joined
	}
	for i, size := range trialSizes {
		if i > 0 && !r.varies() {
			break
		}
		other := size
		if r.length != "" { // padding must not count either
			other = (size + 1) / 2
		}
		a, b := r.made(size, 0), r.made(other, 1)
		if a == nil || b == nil {
			continue
		}
		ran, same := r.tried(ctx, s, []*request{a, b})
		if err := ctx.Err(); err != nil {
			return false, err
		}
		if ran {
			return same, nil
		}
	}
	return false, nil
}

// varies reports whether a dimension behind the first does.
func (r *rule) varies() bool {
	for _, io := range r.spec.Inputs {
		for _, d := range io.Dims[1:] {
			if d < 0 {
				return true
			}
		}
	}
	return false
}

// made is a request of one row, nil when it would be too large.
func (r *rule) made(size int64, seed uint64) *request {
	q := &request{feeds: make(engine.Feeds, len(r.spec.Inputs))}
	for _, io := range r.spec.Inputs {
		dims := append([]int64{1}, io.Dims[1:]...)
		for i, d := range dims {
			if d < 0 {
				dims[i] = size
			}
		}
		n, err := tensor.Elems(dims)
		if err != nil || io.Type.Bytes(n) > maxTrialBytes {
			return nil
		}
		t, err := tensor.New(io.Type, dims...)
		if err != nil {
			return nil
		}
		fill(t, io.Name == maskInput, seed)
		q.feeds[io.Name] = t
	}
	q.rows, q.width = r.size(q.feeds)
	if q.rows == 0 {
		return nil
	}
	return q
}

// fill gives t values: of floats -1 to 1, of integers 0 and 1, which every table has;
// of a mask ones.
func fill(t *tensor.Tensor, mask bool, seed uint64) {
	x := 2*seed + 1
	next := func() uint64 { // splitmix64
		x += 0x9e3779b97f4a7c15
		z := x
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	unit := func() float32 { return float32(int64(next()>>11))/(1<<52) - 1 }
	switch t.Type {
	case tensor.Float32:
		for i, v := 0, tensor.View[float32](t); i < len(v); i++ {
			v[i] = unit()
		}
		return
	case tensor.Float64:
		for i, v := 0, tensor.View[float64](t); i < len(v); i++ {
			v[i] = float64(unit())
		}
		return
	case tensor.Float16, tensor.BFloat16:
		half := tensor.F32ToF16
		if t.Type == tensor.BFloat16 {
			half = tensor.F32ToBF16
		}
		for i := 0; i < len(t.Data); i += 2 {
			binary.LittleEndian.PutUint16(t.Data[i:], half(unit()))
		}
		return
	}
	size := t.Type.Bits() / 8
	for i := range t.Len() {
		if mask || next()&1 == 1 {
			t.Data[int(i)*size] = 1 // little-endian
		}
	}
}

// tried runs requests alone and together. ran is false when they cannot run alone.
func (r *rule) tried(ctx context.Context, s engine.Session, group []*request) (ran, same bool) {
	rows, width := int64(0), int64(0)
	for _, q := range group {
		res, err := s.Run(ctx, q.feeds, nil)
		if err != nil {
			return false, false
		}
		defer res.Close()
		q.res = res
		rows, width = rows+q.rows, max(width, q.width)
	}
	joined := r.join(group, map[string]*tensor.Tensor{})
	if joined == nil {
		return true, false
	}
	all, err := s.Run(ctx, joined, nil)
	if err != nil {
		return true, false
	}
	parts := r.split(all, group, rows, width)
	if parts == nil {
		all.Close()
		return true, false
	}
	same = true
	for i, p := range parts {
		same = same && alike(group[i].res.Tensors(), p.Tensors())
		p.Close()
	}
	return true, same
}

// alike reports whether two results are the same but for roundings.
func alike(a, b engine.Feeds) bool {
	if len(a) != len(b) {
		return false
	}
	for name, x := range a {
		y := b[name]
		if y == nil || x.Type != y.Type || x.Len() != y.Len() {
			return false
		}
		u, v := numbers(x), numbers(y)
		if u == nil && string(x.Data) != string(y.Data) || !close32(u, v) {
			return false
		}
	}
	return true
}

// numbers are floats, or codes, which are of a step more or less where what they are made
// of is rounded otherwise; nil of what is one thing or another, such as classes.
func numbers(t *tensor.Tensor) []float32 {
	switch t.Type {
	case tensor.Int8:
		return widened[int8](t)
	case tensor.Uint8:
		return widened[uint8](t)
	case tensor.Int16:
		return widened[int16](t)
	case tensor.Uint16:
		return widened[uint16](t)
	}
	v, err := t.F32()
	if err != nil {
		return nil
	}
	return v
}

func widened[T int8 | uint8 | int16 | uint16](t *tensor.Tensor) []float32 {
	codes := tensor.View[T](t)
	v := make([]float32, len(codes))
	for i, c := range codes {
		v[i] = float32(c)
	}
	return v
}

func close32(u, v []float32) bool {
	most := 0.0
	for _, x := range u {
		if a := math.Abs(float64(x)); !math.IsInf(a, 0) {
			most = max(most, a) // not of NaN
		}
	}
	for i, x := range u {
		a, b := float64(x), float64(v[i])
		switch {
		case a == b, math.IsNaN(a) && math.IsNaN(b):
		case !(math.Abs(a-b) <= trialTolerance*most):
			return false
		}
	}
	return true
}

//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"
)

// Tolerances, absolute: values are of order one. The reference takes the same
// roundings of Q, K and V (to half; to INT8 by row), so what is left is the
// probabilities' rounding to half and the order of sums.
const (
	attentionTolerance   = 4e-6
	attentionTolerance16 = 2e-3
	// What INT8 scores may differ from those in float, of normal Q and K: the
	// scores are off by about 1 %.
	attentionTolerance8 = 6e-2
)

type attentionCase struct {
	Attention
	packed  bool      // Q, K and V are one tensor
	mask    bool      // with Mask, random
	lengths []int32   // KeyLengths
	all     []float32 // instead: masks of all keys, one for each batch item
	offset  int64     // of the operands, in elements
}

func (c attentionCase) String() string {
	return fmt.Sprintf("%dx%d heads of %d/%d, %d queries, %d keys, %v scores of %v, mask %v/%v/%v lengths %v causal %v packed %v",
		c.Batch, c.Heads, c.HeadDim, c.VDim, c.QLen, c.KVLen, c.Scores, c.Type, c.mask, c.MaskHeads, c.MaskQ, c.lengths, c.Causal, c.packed)
}

// rounded is what the kernel makes of a row of Q or K.
func (c attentionCase) rounded(row []float32, scores Type) []float64 {
	v := make([]float64, len(row))
	switch scores {
	case S8:
		var largest float32
		for _, x := range row {
			largest = max(largest, float32(math.Abs(float64(x))))
		}
		scale, inverse := largest/127, 127/largest
		if largest == 0 {
			scale, inverse = 1, 1
		}
		for i, x := range row {
			v[i] = float64(clamp(rne(x*inverse), -127, 127)) * float64(scale)
		}
	case F16:
		for i, x := range row {
			v[i] = float64(fromHalf(toHalf(x)))
		}
	default:
		for i, x := range row {
			v[i] = float64(x)
		}
	}
	return v
}

// reference in float64; q, k and v lie as the Heads say.
func (c attentionCase) reference(q, k, v, mask []float32, scores Type) []float32 {
	y := make([]float32, c.Batch*c.QLen*c.Heads*int64(c.VDim))
	planes, rows := int64(1), int64(1)
	if c.MaskHeads {
		planes = c.Heads
	}
	if c.MaskQ {
		rows = c.QLen
	}
	dim, vDim := int64(c.HeadDim), int64(c.VDim)
	for b := range c.Batch {
		keys := c.KVLen
		if c.lengths != nil && c.lengths[b] >= 1 {
			keys = min(keys, int64(c.lengths[b]))
		}
		for h := range c.Heads {
			var ks, vs [][]float64
			for j := range keys {
				ks = append(ks, c.rounded(k[b*c.K.Batch+j*c.K.Row+h*dim:][:dim], scores))
				half := F16
				if scores == F32 {
					half = F32
				}
				vs = append(vs, c.rounded(v[b*c.V.Batch+j*c.V.Row+h*vDim:][:vDim], half))
			}
			for i := range c.QLen {
				query := c.rounded(q[b*c.Q.Batch+i*c.Q.Row+h*dim:][:dim], scores)
				p := make([]float64, 0, keys)
				most := -math.MaxFloat32
				for j := range keys {
					if c.Causal && j > i+c.KVLen-c.QLen {
						break
					}
					var s float64
					for l, x := range query {
						s += x * ks[j][l]
					}
					s *= float64(c.Scale)
					if mask != nil {
						m := mask[((b*planes+h%planes)*rows+i%rows)*c.KVLen+j]
						if math.Abs(float64(m)) > 1e30 { // absorbs the score
							s = math.Max(float64(float32(s)+m), -math.MaxFloat32)
						} else {
							s += float64(m)
						}
					}
					p = append(p, s)
					most = max(most, s)
				}
				var total float64
				for j, s := range p {
					p[j] = math.Exp(s - most)
					total += p[j]
				}
				for d := range vDim {
					var sum float64
					for j := range p {
						sum += p[j] * vs[j][d]
					}
					y[(b*c.QLen+i)*c.Heads*vDim+h*vDim+d] = float32(sum / total)
				}
			}
		}
	}
	return y
}

// run compares one launch. exact says that the device computes in FP32 whatever Scores is.
func (c attentionCase) run(t *testing.T, exact bool) {
	t.Helper()
	r := random(uint64(c.QLen*c.KVLen) + uint64(c.HeadDim))
	wide, wideV := c.Heads*int64(c.HeadDim), c.Heads*int64(c.VDim)
	if c.Scale == 0 {
		c.Scale = float32(1 / math.Sqrt(float64(c.HeadDim)))
	}

	// The values, each tensor with a row and a batch stride of its own, and NaN
	// wherever the kernel has nothing to read.
	nan := float32(math.NaN())
	fill := func(h *Heads, length, width, row int64) []float32 {
		h.Row = row
		h.Batch = length*row + 16
		v := make([]float32, c.Batch*h.Batch)
		for i := range v {
			v[i] = nan
		}
		for b := range c.Batch {
			for i := range length {
				copy(v[b*h.Batch+i*row:], normal(r, int(width)))
			}
		}
		return v
	}
	upload := func(h *Heads, v []float32) {
		if c.Type == F16 {
			hs := halves(v)
			copy(v, floats(hs))
			h.Data = in(t, append(make([]uint16, c.offset), hs...)).Add(2 * c.offset)
		} else {
			h.Data = in(t, append(make([]float32, c.offset), v...)).Add(4 * c.offset)
		}
	}
	var q, k, v []float32
	if c.packed {
		q = fill(&c.Q, c.QLen, 2*wide+wideV, 2*wide+wideV+16)
		upload(&c.Q, q)
		c.K, c.V, k, v = c.Q, c.Q, q[wide:], q[2*wide:]
		size := int64(c.Type.Size())
		c.K.Data, c.V.Data = c.Q.Data.Add(size*wide), c.Q.Data.Add(2*size*wide)
	} else {
		q, k, v = fill(&c.Q, c.QLen, wide, wide), fill(&c.K, c.KVLen, wide, wide+8), fill(&c.V, c.KVLen, wideV, wideV+32)
		for b, n := range c.lengths { // padding that must not be touched
			for i := max(int64(n), 1); n >= 1 && i < c.KVLen; i++ {
				k[int64(b)*c.K.Batch+i*c.K.Row], v[int64(b)*c.V.Batch+i*c.V.Row] = nan, nan
			}
		}
		upload(&c.Q, q)
		upload(&c.K, k)
		upload(&c.V, v)
	}
	if c.lengths != nil {
		c.KeyLengths = in(t, c.lengths)
	}
	var mask []float32
	if c.mask {
		planes, rows := int64(1), int64(1)
		if c.MaskHeads {
			planes = c.Heads
		}
		if c.MaskQ {
			rows = c.QLen
		}
		mask = normal(r, int(c.Batch*planes*rows*c.KVLen))
		for i := range mask {
			switch r.IntN(6) {
			case 0:
				mask[i] = -math.MaxFloat32
			case 1:
				mask[i] = float32(math.Inf(-1))
			case 2:
				mask[i] = -10000
			}
			if c.all != nil {
				mask[i] = c.all[int64(i)/(planes*rows*c.KVLen)]
			}
		}
		c.Mask = in(t, mask)
	}

	c.Out.Row = wideV + 8
	c.Out.Batch = c.QLen*c.Out.Row + 8
	n := int(c.Batch * c.Out.Batch)
	scores, tolerance := c.Scores, attentionTolerance
	if exact {
		scores = F32
	}
	if scores != F32 || c.Type == F16 {
		tolerance = attentionTolerance16
	}
	var got []float32
	if c.Type == F16 {
		c.Out.Data = in(t, halves(make([]float32, n+int(c.offset)))).Add(2 * c.offset)
		ok(t, c.Run(0))
		got = floats(out[uint16](t, c.Out.Data, n))
	} else {
		c.Out.Data = in(t, make([]float32, n+int(c.offset))).Add(4 * c.offset)
		ok(t, c.Run(0))
		got = out[float32](t, c.Out.Data, n)
	}
	var dense []float32
	for i, y := range got {
		at := int64(i) % c.Out.Batch
		if at < c.QLen*c.Out.Row && at%c.Out.Row < wideV {
			dense = append(dense, y)
		} else if y != 0 {
			t.Fatalf("%v: wrote between the rows, at %d", c, i)
		}
	}
	compare := func(what string, want []float32, tolerance float64) {
		t.Helper()
		near(t, c.String()+what, dense, want, tolerance, 1)
	}
	compare("", c.reference(q, k, v, mask, scores), tolerance)
	if scores == S8 {
		compare(", against float", c.reference(q, k, v, mask, F32), attentionTolerance8)
	}
}

// attentionSweep covers kernels, masks and ragged lengths.
func attentionSweep(t *testing.T, exact bool) {
	for i, c := range []attentionCase{
		{Attention: Attention{Batch: 1, Heads: 1, QLen: 1, KVLen: 1, HeadDim: 8, VDim: 8}},
		{Attention: Attention{Batch: 2, Heads: 2, QLen: 5, KVLen: 7, HeadDim: 32, VDim: 24}},
		{Attention: Attention{Batch: 2, Heads: 1, QLen: 70, KVLen: 70, HeadDim: 64, VDim: 64}, packed: true, mask: true},
		{Attention: Attention{Batch: 1, Heads: 2, QLen: 64, KVLen: 64, HeadDim: 64, VDim: 64, MaskQ: true}, mask: true, packed: true},
		{Attention: Attention{Batch: 2, Heads: 3, QLen: 9, KVLen: 65, HeadDim: 40, VDim: 56, MaskHeads: true}, mask: true},
		{Attention: Attention{Batch: 2, Heads: 2, QLen: 17, KVLen: 33, HeadDim: 16, VDim: 32, MaskHeads: true, MaskQ: true}, mask: true, lengths: []int32{20, 33}},
		{Attention: Attention{Batch: 4, Heads: 1, QLen: 20, KVLen: 131, HeadDim: 64, VDim: 64}, lengths: []int32{1, 64, 0, 100}},
		{Attention: Attention{Batch: 1, Heads: 1, QLen: 77, KVLen: 77, HeadDim: 64, VDim: 64, Causal: true}, packed: true},
		{Attention: Attention{Batch: 2, Heads: 1, QLen: 3, KVLen: 150, HeadDim: 128, VDim: 104, Causal: true, Scale: 0.3}, lengths: []int32{149, 70}},
		{Attention: Attention{Batch: 1, Heads: 2, QLen: 33, KVLen: 130, HeadDim: 96, VDim: 128, Scale: 0.05}},
	} {
		for _, scores := range []Type{F32, F16, S8} {
			for _, in := range []Type{F32, F16} {
				c.Scores, c.Type = scores, in
				c.run(t, exact)
			}
		}
		if i < 5 { // rows that no vector fits
			c.offset, c.Type, c.Scores = 1, []Type{F32, F16}[i%2], S8
			c.run(t, true)
		}
	}
}

func TestAttention(t *testing.T) {
	dev, err := Device()
	ok(t, err)
	schedules(t, func(t *testing.T) { attentionSweep(t, dev.SM < 80) })
}

// A query without a key that counts gets the mean of V, or what softmax makes of
// its scores, and no NaN, however the keys are masked.
func TestAttentionFullyMasked(t *testing.T) {
	dev, err := Device()
	ok(t, err)
	none := float32(math.Inf(-1))
	schedules(t, func(t *testing.T) {
		for _, scores := range []Type{F32, F16, S8} {
			for _, perQuery := range []bool{false, true} {
				c := attentionCase{Attention: Attention{Batch: 3, Heads: 1, QLen: 3, KVLen: 70, HeadDim: 32, VDim: 32, Scores: scores, MaskQ: perQuery}, mask: true, all: []float32{none, -math.MaxFloat32, -100}}
				c.run(t, dev.SM < 80)
			}
			c := attentionCase{Attention: Attention{Batch: 2, Heads: 1, QLen: 3, KVLen: 70, HeadDim: 32, VDim: 32, Scores: scores}, lengths: []int32{0, -5}}
			c.run(t, dev.SM < 80)
		}
	})
}

// A NaN among the operands is not hidden.
func TestAttentionKeepsNaN(t *testing.T) {
	x := make([]float32, 64*32)
	x[5*32] = float32(math.NaN())
	p, mask := in(t, x), in(t, make([]float32, 64))
	for _, scores := range []Type{F32, F16} {
		y := device[float32](t, 64*32)
		a := Attention{Batch: 1, Heads: 1, QLen: 64, KVLen: 64, HeadDim: 32, VDim: 32, Scores: scores, Q: Heads{Data: p}, K: Heads{Data: p}, V: Heads{Data: p}, Out: Heads{Data: y}, Mask: mask}
		ok(t, a.Run(0))
		for i, v := range out[float32](t, y, 64*32) {
			if i%32 == 0 && v == v {
				t.Fatalf("%v: result %d is %v", scores, i, v)
			}
		}
	}
}

func TestAttentionRefusesArguments(t *testing.T) {
	x := device[float32](t, 4096)
	h := Heads{Data: x}
	good := Attention{Batch: 1, Heads: 2, QLen: 4, KVLen: 4, HeadDim: 32, VDim: 32, Q: h, K: h, V: h, Out: Heads{Data: x.Add(8192)}}
	a := good
	ok(t, CopyIn(x, make([]float32, 4096)))
	ok(t, a.Run(0))
	for name, change := range map[string]func(*Attention){
		"null":           func(a *Attention) { a.K.Data = 0 },
		"batch":          func(a *Attention) { a.Batch = -1 },
		"no heads":       func(a *Attention) { a.Heads = 0 },
		"no keys":        func(a *Attention) { a.KVLen = 0 },
		"long":           func(a *Attention) { a.QLen = 1 << 40 },
		"head dimension": func(a *Attention) { a.HeadDim = 12 },
		"large heads":    func(a *Attention) { a.VDim = 136 },
		"type":           func(a *Attention) { a.Type = BF16 },
		"scores":         func(a *Attention) { a.Scores = U8 },
		"short rows":     func(a *Attention) { a.Q.Row = 32 },
		"scale":          func(a *Attention) { a.Scale = float32(math.Inf(1)) },
		"overlap":        func(a *Attention) { a.Batch, a.Out.Batch = 2, 64 },
		"causal":         func(a *Attention) { a.Causal, a.QLen = true, 5 },
		"grid": func(a *Attention) {
			a.Batch, a.Heads, a.Q.Row, a.K.Row, a.V.Row, a.Out.Row = 1<<30, 8, 256, 256, 256, 256
		},
	} {
		a := good
		change(&a)
		if a.Run(0) == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

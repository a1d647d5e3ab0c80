package quant

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/tensor"
)

// TestInt4Layout checks codes and scales by hand: one block, one column, the
// extreme value gets code 0.
func TestInt4Layout(t *testing.T) {
	w := make([]float32, 32)
	for i := range w {
		w[i] = float32(i-8) * .5 // -4 .. 11.5
	}
	for i := 16; i < 32; i++ {
		w[i] = 0
	}
	w[0] = -4 // the extreme value: scale = -4/-8 = .5, so w = (code-8)*.5 exactly
	q, err := QuantizeInt4(w, 32, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	if q.Scales[0] != .5 {
		t.Fatalf("scale %v", q.Scales[0])
	}
	if q.Codes[0] != 0x10 || q.Codes[1] != 0x32 || q.Codes[8] != 0x88 {
		t.Errorf("codes % x", q.Codes)
	}
	for i, v := range q.Dequantize() {
		if v != w[i] {
			t.Errorf("weight %d: %v, want %v", i, v, w[i])
		}
	}
}

// TestInt4Error: never worse than plain rounding with the extreme value's
// scale, and the ragged last block is right.
func TestInt4Error(t *testing.T) {
	const k, n = 77, 9
	w := randoms(5, k*n)
	q, err := QuantizeInt4(w, k, n, nil)
	if err != nil {
		t.Fatal(err)
	}
	d := q.Dequantize()
	for col := range n {
		for b := 0; b < k; b += Int4Block {
			var extreme float64
			for r := b; r < min(b+Int4Block, k); r++ {
				if v := float64(w[r*n+col]); math.Abs(v) > math.Abs(extreme) {
					extreme = v
				}
			}
			s := extreme / -8
			var plain, got float64
			for r := b; r < min(b+Int4Block, k); r++ {
				v := float64(w[r*n+col])
				p := max(min(math.RoundToEven(v/s), 7), -8) * s
				plain += (v - p) * (v - p)
				e := v - float64(d[r*n+col])
				got += e * e
			}
			if got > plain*1.0001 {
				t.Errorf("column %d block %d: error %v, plain rounding %v", col, b, got, plain)
			}
		}
	}
}

// TestInt4Importance: errors move to the rows that do not matter.
func TestInt4Importance(t *testing.T) {
	w := randoms(6, 32)
	imp := make([]float32, 32)
	for i := range imp {
		imp[i] = 1e-6
	}
	imp[3], imp[4], imp[5] = 1, 1, 1
	of := func(imp []float32) (e float64) {
		q, err := QuantizeInt4(w, 32, 1, imp)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{3, 4, 5} {
			d := float64(q.Dequantize()[i] - w[i])
			e += d * d
		}
		return e
	}
	if a, b := of(imp), of(nil); a > b {
		t.Errorf("error on the important rows %v with importance, %v without", a, b)
	}
}

func TestHalf(t *testing.T) {
	m := mlp()
	m.Graph.SetInit("b1", tensor.From([]float32{1, 2, 3}, 3)) // too small to convert
	if _, err := (Half{}).Run(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if m.Graph.Init("w1") != nil || m.Graph.Init("w1_fp16").Type != tensor.Float16 || m.Graph.Init("b1") == nil {
		t.Errorf("converted wrongly:\n%s", m.Text())
	}
	if err := m.Check(); err != nil {
		t.Error(err)
	}
	big := mlp()
	v := append([]float32(nil), tensor.View[float32](big.Graph.Init("w1"))...)
	v[0] = 1e6
	big.Graph.SetInit("w1", tensor.From(v, 32, 32))
	if _, err := (Half{}).Run(t.Context(), big); err != nil || big.Graph.Init("w1") == nil {
		t.Error("a weight past 65504 must stay in FP32")
	}
}

// TestHalfNothing: the refusal says why no weight became 16 bits.
func TestHalfNothing(t *testing.T) {
	huge, excluded := mlp(), Half{Config: Config{Exclude: []string{"MatMul", "Gemm"}}}
	for _, w := range []string{"w1", "w2"} {
		v, err := huge.Graph.Init(w).F32()
		if err != nil {
			t.Fatal(err)
		}
		v[0] = 1e6
	}
	small := model([]*graph.Value{value("x", -1, 4)}, []*graph.Value{value("y", -1, 4)}, node("Relu", "act", "x", "y"))
	for _, c := range []struct {
		h    Half
		m    *graph.Model
		want string
	}{
		{Half{}, huge, "the weights of 256 elements or more have values past 65504"},
		{excluded, mlp(), "excluded, outputs, or read in the body"},
		{Half{}, small, "no FP32 weight of 256 elements or more"},
	} {
		if _, err := c.h.Run(t.Context(), c.m); !errors.Is(err, ErrNothing) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// Where no squared error is a number, a block has the scale of its largest weight, not none.
func TestInt4WithoutImportance(t *testing.T) {
	const k, n = 64, 3
	w := randoms(7, k*n)
	for _, v := range []float64{math.NaN(), math.Inf(1), math.MaxFloat32} {
		imp := make([]float32, k)
		for i := range imp {
			imp[i] = float32(v)
		}
		q, err := QuantizeInt4(w, k, n, imp)
		if err != nil {
			t.Fatal(err)
		}
		var power, noise float64
		for i, d := range q.Dequantize() {
			power += float64(w[i] * w[i])
			noise += float64((w[i] - d) * (w[i] - d))
		}
		if !(noise < .02*power) {
			t.Errorf("importance %v: relative error %v", v, noise/power)
		}
		if s := stepScale(w[:32], imp[:32], 1, .25); s == 0 || s != s {
			t.Errorf("importance %v: a step of %v", v, s)
		}
	}
}

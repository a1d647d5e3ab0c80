package calib

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestChannelMaxMatchesDefinition(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 6))
		channels, inner := 1+r.IntN(40), 1+r.IntN(3)*r.IntN(9)
		x := hard(r, channels*inner*(1+r.IntN(9)))
		want := make([]float32, channels)
		for i, v := range x {
			if a := abs32(v); a <= math.MaxFloat32 {
				want[i/inner%channels] = max(want[i/inner%channels], a)
			}
		}
		c, err := NewChannelMax(channels)
		if err != nil {
			t.Fatal(err)
		}
		c.ObserveInner(x, inner)
		if !slices.Equal(c.Max(), want) {
			t.Fatalf("seed %d: %d channels, inner %d: %v, expected %v", seed, channels, inner, c.Max(), want)
		}
		if inner > 1 {
			continue
		}
		for _, kn := range available() {
			m := make([]float32, channels)
			kn.absMax(x, m)
			if !slices.Equal(m, want) {
				t.Fatalf("seed %d, %s: %v, expected %v", seed, kn.name, m, want)
			}
		}
	}
}

func TestChannelMaxMerge(t *testing.T) {
	a, _ := NewChannelMax(2)
	b, _ := NewChannelMax(2)
	a.Observe([]float32{1, -5})
	b.Observe([]float32{-3, 2, 2, 2})
	if err := a.Merge(b); err != nil || !slices.Equal(a.Max(), []float32{3, 5}) {
		t.Error(a.Max(), err)
	}
	c, _ := NewChannelMax(3)
	for _, o := range []Observer{c, new(Histogram), NewMovingAverage(0)} {
		if err := a.Merge(o); !errors.Is(err, ErrMerge) {
			t.Errorf("%T: %v", o, err)
		}
	}
	for _, n := range []int{0, -1, MaxChannels + 1} {
		if _, err := NewChannelMax(n); !errors.Is(err, ErrShape) {
			t.Errorf("%d channels: %v", n, err)
		}
		if _, err := NewChannelSum(n); !errors.Is(err, ErrShape) {
			t.Errorf("%d channels: %v", n, err)
		}
	}
}

// bigMean is the mean in unlimited precision, rounded once.
func bigMean(x []float32) float64 {
	sum, n := new(big.Rat), int64(0)
	for _, v := range x {
		if r := new(big.Rat).SetFloat64(float64(v)); r != nil {
			sum.Add(sum, r)
			n++
		}
	}
	if n == 0 {
		return 0
	}
	f, _ := sum.Quo(sum, new(big.Rat).SetInt64(n)).Float64()
	return f
}

func TestChannelMeanIsExact(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 7))
		channels := 1 + r.IntN(4)
		x := hard(r, channels*(1+r.IntN(300)))
		by := make([][]float32, channels)
		for i, v := range x {
			by[i%channels] = append(by[i%channels], v)
		}
		whole, _ := NewChannelSum(channels)
		whole.Observe(x)
		// The same values in another order and as two shards.
		a, _ := NewChannelSum(channels)
		b, _ := NewChannelSum(channels)
		for _, row := range r.Perm(len(x) / channels) {
			[]*ChannelSum{a, b}[r.IntN(2)].Observe(x[row*channels : (row+1)*channels])
		}
		if err := a.Merge(b); err != nil {
			t.Fatal(err)
		}
		for i, got := range whole.Mean() {
			if want := bigMean(by[i]); got != want {
				t.Fatalf("seed %d: %v, expected %v", seed, got, want)
			}
			if a.s[i].fixed().Cmp(whole.s[i].fixed()) != 0 || a.n[i] != whole.n[i] {
				t.Fatalf("seed %d: shards give %v, expected %v", seed, a.Mean(), whole.Mean())
			}
		}
	}
	c, _ := NewChannelSum(1)
	if err := c.Merge(new(Histogram)); !errors.Is(err, ErrMerge) {
		t.Error(err)
	}
}

func TestExactSumCarries(t *testing.T) {
	var s exactSum
	s.n = maxUncarry - 3 // as if that many had been added: the carry comes early, not late
	for range 10 {
		s.add(math.MaxFloat32)
		s.add(-math.SmallestNonzeroFloat32)
	}
	for range 10 {
		s.add(-math.MaxFloat32)
	}
	if got := s.over(1); got != -10*math.SmallestNonzeroFloat32 {
		t.Errorf("%g left of a sum that cancels", got)
	}
	v := s.fixed()
	var back exactSum
	back.setFixed(v)
	s.carry()
	if back.d != s.d {
		t.Errorf("%v becomes %v", s.d, back.d)
	}
}

func TestMovingAverage(t *testing.T) {
	m := NewMovingAverage(0.1)
	if _, err := m.Range(); !errors.Is(err, ErrNoData) {
		t.Error(err)
	}
	nan := float32(math.NaN())
	m.Observe([]float32{nan, -2, 10, float32(math.Inf(1))})
	m.Observe([]float32{nan})
	m.Observe(nil)
	m.Observe([]float32{-12, 0, 20})
	if r, err := m.Range(); err != nil || r != (Range{-3, 11}) {
		t.Errorf("%v %v, expected [-3, 11]", r, err)
	}
	if err := m.Merge(NewMovingAverage(0.1)); !errors.Is(err, ErrOrderDependent) {
		t.Error(err)
	}
	if NewMovingAverage(7).c != MovingAverageC {
		t.Error("a weight above 1 is accepted")
	}
}

func BenchmarkChannels(b *testing.B) {
	x := normal(1, 128*768, 1)
	per := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(x)), "ns/elem")
	}
	b.Run("max", func(b *testing.B) {
		c, _ := NewChannelMax(768)
		for b.Loop() {
			c.Observe(x)
		}
		per(b)
	})
	b.Run("sum", func(b *testing.B) {
		c, _ := NewChannelSum(768)
		for b.Loop() {
			c.Observe(x)
		}
		per(b)
	})
}

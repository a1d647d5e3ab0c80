package calib

import (
	"math"
	"math/big"
)

// exactSum is the exact sum of float32 values: a fixed-point number wide enough
// for every one of them (Kulisch), held as digits of 32 bits with room for
// carries. It does not depend on order, as a sum of floats would. Neumaier's
// compensated sum is 2-3 times cheaper but still depends on order in the last
// places, so shards would not merge byte for byte.
//
// Digit i has the weight 2^(32*i - 149); a float32 is a 24-bit integer times
// 2^(p-149), p = 0..253, so it touches two neighbouring digits.
type exactSum struct {
	d [sumDigits]int64
	n uint32 // additions since the last carry
}

const (
	sumDigits  = 11      // 253 + 24 bits of value, 64 of carries: 341 < 11*32
	sumUnit    = -149    // exponent of the last bit of digit 0
	maxUncarry = 1 << 30 // each adds less than 2^32 to a digit of 63 bits
)

// add adds v; NaN and infinities are ignored.
func (s *exactSum) add(v float32) {
	b := math.Float32bits(v)
	e := b >> 23 & 0xff
	m := int64(b & (1<<23 - 1))
	switch {
	case e == 255:
		return
	case e > 0:
		m |= 1 << 23
		e--
	}
	m <<= e & 31
	low, high := m&(1<<32-1), m>>32
	if b>>31 == 1 {
		low, high = -low, -high
	}
	i := e >> 5
	s.d[i] += low
	s.d[i+1] += high
	if s.n++; s.n == maxUncarry {
		s.carry()
	}
}

// carry brings every digit but the last into [0, 2^32): the one form of a
// value.
func (s *exactSum) carry() {
	for i := 0; i < sumDigits-1; i++ {
		s.d[i+1] += s.d[i] >> 32
		s.d[i] &= 1<<32 - 1
	}
	s.n = 0
}

func (s *exactSum) merge(o *exactSum) {
	s.carry()
	c := *o
	c.carry()
	for i := range s.d {
		s.d[i] += c.d[i]
	}
	s.carry()
}

// over returns the sum divided by n, rounded once to float64.
func (s *exactSum) over(n uint64) float64 {
	if n == 0 {
		return 0
	}
	q := new(big.Rat).SetFrac(s.fixed(), new(big.Int).SetUint64(n))
	q.Mul(q, new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Lsh(big.NewInt(1), -sumUnit)))
	f, _ := q.Float64()
	return f
}

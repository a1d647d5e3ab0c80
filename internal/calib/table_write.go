package calib

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"sort"
	"strconv"
	"unicode/utf8"
)

// The file. Keys stand in this order, tensors and methods are sorted, there is
// one line a tensor, floats are the shortest decimal that reads back the same,
// and nothing depends on time or machine: equal statistics, equal bytes.
//
//	{"version":1,"model_sha256":"…","samples":64,"shard":"1/2","method":"mse",
//	"scheme":{"type":"UINT8","symmetric":false,"bits":0,"reduce_range":false},"methods":["minmax"],
//	"sample_ids":["32 hex digits",…],
//	"tensors":{
//	"name":{"calls":64,"count":…,"zeros":…,"nan":0,"inf":[0,0],"min":…,"max":…,
//	  "exp":k,"pos":"128:5,3,1;140:2","neg":"…","pos_low":"…","neg_low":"…",
//	  "axis":-1,"channel_max":[…],"channel_sum":{"n":[…],"sum":["-1f",…]},
//	  "moving":{…},"ranges":{"minmax":[lo,hi]}},
//	…}}
//
// "exp" is the k of the linear bin width 2^k; "pos" and "neg" are the counts of
// linear bins 128..4095 as runs first:count,count,… without zeros; "pos_low"
// and "neg_low" are those of log cells by the upper 16 bits of the float.
// "channel_sum" is in units of 2^-149, hexadecimal. "axis" and the keys after
// it stand only where they were collected, "min" to "neg_low" only where a
// finite value was seen.

// Write writes the table. Names must be valid UTF-8 (ErrTable).
func (t *Table) Write(w io.Writer) error {
	b := bufio.NewWriterSize(w, 1<<16)
	e := encoder{w: b}
	e.raw(`{"version":`).int(TableVersion)
	e.raw(`,"model_sha256":`).str(t.ModelSHA256)
	e.raw(`,"samples":`).int(len(t.Samples))
	e.raw(`,"shard":`).str(t.Shard.String())
	e.raw(`,"method":`).str(t.Method)
	if len(t.Methods) > 0 {
		e.raw(",\n\"scheme\":{\"type\":").str(t.Scheme.Type.String())
		e.raw(`,"symmetric":`).raw(strconv.FormatBool(t.Scheme.Symmetric))
		e.raw(`,"bits":`).int(t.Scheme.Bits)
		e.raw(`,"reduce_range":`).raw(strconv.FormatBool(t.Scheme.ReduceRange)).raw(`}`)
		e.raw(`,"methods":`)
		e.list(len(t.Methods), func(i int) { e.str(t.Methods[i]) })
	}
	e.raw(",\n\"sample_ids\":")
	ids := append([]SampleID(nil), t.Samples...)
	sortIDs(ids)
	e.list(len(ids), func(i int) { e.str(hex.EncodeToString(ids[i][:])) })
	e.raw(",\n\"tensors\":{\n")
	for i, name := range t.Names() {
		if i > 0 {
			e.raw(",\n")
		}
		e.str(name)
		e.raw(":")
		e.stats(t.Tensors[name])
	}
	e.raw("\n}}\n")
	if e.err != nil {
		return e.err
	}
	return b.Flush()
}

type encoder struct {
	w   *bufio.Writer
	err error
	buf []byte
}

func (e *encoder) raw(s string) *encoder {
	e.w.WriteString(s) // bufio keeps the first error for Flush
	return e
}

func (e *encoder) int(v int) *encoder { return e.raw(strconv.Itoa(v)) }

func (e *encoder) uint(v uint64) *encoder { return e.raw(strconv.FormatUint(v, 10)) }

func (e *encoder) f32(v float32) *encoder {
	e.buf = strconv.AppendFloat(e.buf[:0], float64(v), 'g', -1, 32)
	e.w.Write(e.buf)
	return e
}

func (e *encoder) f64(v float64) *encoder {
	e.buf = strconv.AppendFloat(e.buf[:0], v, 'g', -1, 64)
	e.w.Write(e.buf)
	return e
}

func (e *encoder) str(s string) *encoder {
	if !utf8.ValidString(s) && e.err == nil {
		e.err = fmt.Errorf("%w: %q is not valid UTF-8 and cannot be written as JSON", ErrTable, s)
	}
	b, err := json.Marshal(s)
	if err != nil && e.err == nil {
		e.err = err
	}
	e.w.Write(b)
	return e
}

func (e *encoder) list(n int, each func(i int)) {
	e.raw("[")
	for i := range n {
		if i > 0 {
			e.raw(",")
		}
		each(i)
	}
	e.raw("]")
}

func (e *encoder) stats(s *Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.hist
	e.raw(`{"calls":`).uint(s.calls)
	e.raw(`,"count":`).uint(h.finite)
	e.raw(`,"zeros":`).uint(h.zeros)
	e.raw(`,"nan":`).uint(h.nan)
	e.raw(`,"inf":[`).uint(h.inf[0]).raw(",").uint(h.inf[1]).raw("]")
	if h.finite > 0 {
		e.raw(`,"min":`).f32(h.lo)
		e.raw(`,"max":`).f32(h.hi)
		e.raw(`,"exp":`).int(h.state.k)
		for i, key := range [2]string{`,"pos":"`, `,"neg":"`} {
			e.raw(key)
			lin := h.sides[i].lin
			e.runs(len(lin), func(j int) uint64 { return lin[j] })
			e.raw(`"`)
		}
		for i, key := range [2]string{`,"pos_low":"`, `,"neg_low":"`} {
			e.raw(key)
			e.runs(octaves<<cellBits, h.sides[i].lowCount)
			e.raw(`"`)
		}
	}
	if s.spec.channels() {
		e.raw(`,"axis":`).int(s.spec.Axis)
	}
	if s.spec.ChannelMax {
		e.raw(`,"channel_max":`)
		var m []float32
		if s.max != nil {
			m = s.max.m
		}
		e.list(len(m), func(i int) { e.f32(m[i]) })
	}
	if s.spec.ChannelMean {
		var sums ChannelSum
		if s.sum != nil {
			sums = *s.sum
		}
		e.raw(`,"channel_sum":{"n":`)
		e.list(len(sums.n), func(i int) { e.uint(sums.n[i]) })
		e.raw(`,"sum":`)
		e.list(len(sums.s), func(i int) { e.str(sums.s[i].fixed().Text(16)) })
		e.raw("}")
	}
	if m := s.moving; m != nil {
		e.raw(`,"moving":{"c":`).f64(m.c).raw(`,"lo":`).f64(m.lo).raw(`,"hi":`).f64(m.hi).raw(`,"n":`).uint(m.n).raw("}")
	}
	if len(s.ranges) > 0 {
		methods := make([]string, 0, len(s.ranges))
		for m := range s.ranges {
			methods = append(methods, m)
		}
		sort.Strings(methods)
		e.raw(`,"ranges":{`)
		for i, m := range methods {
			if i > 0 {
				e.raw(",")
			}
			r := s.ranges[m]
			e.str(m).raw(":[").f32(r.Lo + 0).raw(",").f32(r.Hi + 0).raw("]")
		}
		e.raw("}")
	}
	e.raw("}")
}

// lowCount returns the count of a log cell.
func (s *side) lowCount(code int) uint64 {
	if cells := s.low[code>>cellBits]; cells != nil {
		return cells[code&(CellsPerOctave-1)]
	}
	return 0
}

// runs writes the non-zero counts 0..n-1 as first:count,count;first:count …
func (e *encoder) runs(n int, count func(i int) uint64) {
	b := e.buf[:0]
	for i, open := 0, false; i < n; i++ {
		c := count(i)
		switch {
		case c == 0:
			open = false
			continue
		case open:
			b = append(b, ',')
		default:
			if len(b) > 0 {
				b = append(b, ';')
			}
			b = append(strconv.AppendInt(b, int64(i), 10), ':')
			open = true
		}
		b = strconv.AppendUint(b, c, 10)
	}
	e.w.Write(b)
	e.buf = b
}

// fixed returns the sum in units of 2^-149.
func (s *exactSum) fixed() *big.Int {
	c := *s
	c.carry()
	v, d := new(big.Int), new(big.Int)
	for i := sumDigits - 1; i >= 0; i-- {
		v.Add(v.Lsh(v, 32), d.SetInt64(c.d[i]))
	}
	return v
}

// setFixed is the inverse of fixed; v has less than maxFixedBits bits.
func (s *exactSum) setFixed(v *big.Int) {
	*s = exactSum{}
	abs, d, mask := new(big.Int).Abs(v), new(big.Int), big.NewInt(1<<32-1)
	for i := range s.d {
		s.d[i] = d.And(abs, mask).Int64()
		if v.Sign() < 0 {
			s.d[i] = -s.d[i]
		}
		abs.Rsh(abs, 32)
	}
	s.carry()
}

// maxFixedBits bounds a sum read from a file: 277 bits of one value, 64 of
// additions.
const maxFixedBits = 277 + 64

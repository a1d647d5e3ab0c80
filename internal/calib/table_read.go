package calib

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"strings"

	"github.com/fewbit/fewbit/internal/tensor"
)

// Limits of a table that ReadTable accepts.
const (
	MaxTableBytes  = 256 << 20 // of the file
	MaxTableMemory = 1 << 30   // of the histograms that it unfolds to
	MaxTensors     = 1 << 16
	MaxNameBytes   = 1 << 12
	MaxSamples     = 1 << 21
	MaxMethods     = 64
	// maxCount keeps the sum of all counts of a table far from overflow.
	maxCount = 1 << 56
)

// ReadTable reads a table. The file is hostile input: anything that Write
// would not have written is refused with ErrTable, saying where.
func ReadTable(r io.Reader) (*Table, error) {
	limited := &io.LimitedReader{R: r, N: MaxTableBytes + 1}
	d := &decoder{d: json.NewDecoder(limited), memory: MaxTableMemory}
	d.d.UseNumber()
	t, err := d.table()
	if limited.N <= 0 {
		return nil, fmt.Errorf("%w: longer than %d MiB", ErrTable, MaxTableBytes>>20)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (d *decoder) table() (*Table, error) {
	t := &Table{}
	samples, version := 0, 0
	err := d.object(16, "version samples tensors", func(key string) (err error) {
		switch key {
		case "version":
			if version, err = d.int(0, math.MaxInt32); err == nil && version != TableVersion {
				err = d.bad("version %d, this program reads version %d", version, TableVersion)
			}
		case "model_sha256":
			if t.ModelSHA256, err = d.str(64); err == nil && t.ModelSHA256 != "" {
				if b, e := hex.DecodeString(t.ModelSHA256); e != nil || len(b) != 32 {
					err = d.bad("model_sha256 is not 64 hexadecimal digits")
				}
			}
		case "samples":
			samples, err = d.int(0, MaxSamples)
		case "shard":
			var s string
			if s, err = d.str(8 * MaxShards); err == nil {
				if t.Shard, err = ParseShard(s); err != nil {
					err = d.bad("%v", err)
				}
			}
		case "method":
			t.Method, err = d.str(MaxNameBytes)
		case "scheme":
			err = d.scheme(&t.Scheme)
		case "methods":
			err = d.array(MaxMethods, func() error {
				s, err := d.str(MaxNameBytes)
				t.Methods = append(t.Methods, s)
				return err
			})
		case "sample_ids":
			err = d.array(MaxSamples, func() error {
				s, err := d.str(2 * len(SampleID{}))
				if err != nil {
					return err
				}
				var id SampleID
				if n, err := hex.Decode(id[:], []byte(s)); err != nil || n != len(id) {
					return d.bad("sample id %q is not 32 hexadecimal digits", s)
				}
				t.Samples = append(t.Samples, id)
				return nil
			})
		case "tensors":
			t.Tensors = map[string]*Stats{}
			err = d.object(MaxTensors, "", func(name string) error {
				s, err := d.stats()
				if err != nil {
					return fmt.Errorf("tensor %.80q: %w", name, err)
				}
				t.Tensors[name] = s
				return nil
			})
		default:
			err = d.bad("unknown key %.80q", key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if _, err := d.d.Token(); err != io.EOF {
		return nil, d.bad("something follows the table")
	}
	if samples != len(t.Samples) {
		return nil, d.bad("%d samples and %d sample ids", samples, len(t.Samples))
	}
	sortIDs(t.Samples)
	return t, d.checkRanges(t)
}

// checkRanges wants each tensor to have the ranges of exactly t.Methods.
func (d *decoder) checkRanges(t *Table) error {
	for i, m := range t.Methods {
		if i > 0 && m <= t.Methods[i-1] {
			return d.bad("the methods are not sorted")
		}
	}
	if len(t.Methods) > 0 {
		if err := t.Scheme.Check(); err != nil {
			return d.bad("%v", err)
		}
	}
	for name, s := range t.Tensors {
		if len(s.ranges) != len(t.Methods) {
			return d.bad("tensor %.80q has ranges of %d methods, expected %d", name, len(s.ranges), len(t.Methods))
		}
		for _, m := range t.Methods {
			if _, ok := s.ranges[m]; !ok {
				return d.bad("tensor %.80q has no range of method %.80q", name, m)
			}
		}
	}
	return nil
}

func (d *decoder) scheme(s *Scheme) error {
	return d.object(4, "type symmetric bits reduce_range", func(key string) (err error) {
		switch key {
		case "type":
			var name string
			if name, err = d.str(16); err == nil {
				var ok bool
				if s.Type, ok = tensor.ParseDType(name); !ok {
					err = d.bad("unknown element type %q", name)
				}
			}
		case "symmetric":
			s.Symmetric, err = d.bool()
		case "bits":
			s.Bits, err = d.int(0, 16)
		case "reduce_range":
			s.ReduceRange, err = d.bool()
		default:
			err = d.bad("unknown key %.80q", key)
		}
		return err
	})
}

func (d *decoder) stats() (*Stats, error) {
	s := &Stats{}
	h := &s.hist
	var text [4]string // pos, neg, pos_low, neg_low
	k, axis := 0, false
	has := map[string]bool{}
	err := d.object(24, "calls count zeros nan inf", func(key string) (err error) {
		has[key] = true
		switch key {
		case "calls":
			s.calls, err = d.count()
		case "count":
			h.finite, err = d.count()
		case "zeros":
			h.zeros, err = d.count()
		case "nan":
			h.nan, err = d.count()
		case "inf":
			i := 0
			err = d.array(2, func() (err error) { h.inf[i], err = d.count(); i++; return err })
			if err == nil && i != 2 {
				err = d.bad("inf has %d counts, expected 2", i)
			}
		case "min":
			h.lo, err = d.f32()
		case "max":
			h.hi, err = d.f32()
		case "exp":
			k, err = d.int(minExp, 127)
		case "pos", "neg", "pos_low", "neg_low":
			i := map[string]int{"pos": 0, "neg": 1, "pos_low": 2, "neg_low": 3}[key]
			text[i], err = d.str(MaxTableBytes)
		case "axis":
			axis = true
			s.spec.Axis, err = d.int(-tensor.MaxRank, tensor.MaxRank-1)
		case "channel_max":
			s.spec.ChannelMax = true
			s.max, err = d.channelMax()
		case "channel_sum":
			s.spec.ChannelMean = true
			s.sum, err = d.channelSum()
		case "moving":
			s.spec.MovingAverage = true
			s.moving, err = d.moving()
		case "ranges":
			s.ranges = map[string]Range{}
			err = d.object(MaxMethods, "", func(m string) error {
				r, err := d.interval()
				s.ranges[m] = r
				return err
			})
		default:
			err = d.bad("unknown key %.80q", key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if axis != s.spec.channels() {
		return nil, d.bad("axis and channel statistics do not come together")
	}
	for _, key := range []string{"min", "max", "exp", "pos", "neg", "pos_low", "neg_low"} {
		if has[key] != (h.finite > 0) {
			return nil, d.bad("%d finite values, and %q present: %v", h.finite, key, has[key])
		}
	}
	if h.finite > 0 {
		err = d.histogram(h, k, text)
	}
	return s, err
}

// histogram unfolds the cells and checks every fact that they determine.
func (d *decoder) histogram(h *Histogram, k int, text [4]string) error {
	if h.lo > h.hi || k != expFor(math.Float32bits(h.AbsMax())) {
		return d.bad("min %v, max %v and exp %d do not fit together", h.lo, h.hi, k)
	}
	h.state = stateFor(k)
	total := h.zeros
	for i := range h.sides {
		s := &h.sides[i]
		err := d.runs(text[i], firstLin, sideBins, func(j int, n uint64) error {
			if s.lin == nil {
				if err := d.spend(8 * sideBins); err != nil {
					return err
				}
			}
			s.linear()[j] = n
			total += n
			return nil
		})
		if err != nil {
			return err
		}
		err = d.runs(text[2+i], 0, int(h.state.thr>>cellSh), func(code int, n uint64) error {
			if s.low[code>>cellBits] == nil {
				if err := d.spend(8 * CellsPerOctave); err != nil {
					return err
				}
			}
			s.octave(code >> cellBits)[code&(CellsPerOctave-1)] = n
			total += n
			return nil
		})
		if err != nil {
			return err
		}
	}
	if total != h.finite {
		return d.bad("the cells hold %d values, expected %d", total, h.finite)
	}
	// min and max lie in the outermost cells.
	probe := Histogram{state: h.state}
	for _, v := range [2]float32{h.lo, h.hi} {
		if v != 0 {
			probe.addBits(math.Float32bits(v), 1)
		}
	}
	for i, v := range [2]float32{h.hi, -h.lo} {
		cells := h.magnitudes(1 << i)
		switch {
		case v > 0:
			want := probe.magnitudes(1 << i)
			if len(cells) == 0 || cells[len(cells)-1].Lo != want[len(want)-1].Lo {
				return d.bad("min %v or max %v is not in the outermost cell", h.lo, h.hi)
			}
		case len(cells) > 0:
			return d.bad("min %v, max %v, and cells on the other side of 0", h.lo, h.hi)
		case v == 0 && h.zeros == 0:
			return d.bad("min %v, max %v, and no value is 0", h.lo, h.hi)
		case v < 0: // all on the other side: its smallest value
			if h.zeros > 0 {
				return d.bad("min %v, max %v, and zeros", h.lo, h.hi)
			}
			other, want := h.magnitudes(2>>i), probe.magnitudes(2>>i)
			if other[0].Lo != want[0].Lo {
				return d.bad("min %v or max %v is not in the outermost cell", h.lo, h.hi)
			}
		}
	}
	return nil
}

func (d *decoder) spend(bytes int) error {
	if d.memory -= bytes; d.memory < 0 {
		return d.bad("the histograms need more than %d MiB", MaxTableMemory>>20)
	}
	return nil
}

// runs parses the form that encoder.runs writes, and only that.
func (d *decoder) runs(text string, from, to int, put func(i int, n uint64) error) error {
	next := from - 1 // the next run starts after this index: runs do not touch
	for text != "" {
		var run string
		var more bool
		run, text, more = strings.Cut(text, ";")
		first, counts, ok := strings.Cut(run, ":")
		i, err := strconv.ParseUint(first, 10, 31)
		if !ok || err != nil || int(i) <= next || first[0] == '0' && len(first) > 1 || more && text == "" {
			return d.bad("cells %.40q, expected runs first:count,count;… in order", run)
		}
		at := int(i)
		for counts != "" || at == int(i) {
			var c string
			c, counts, more = strings.Cut(counts, ",")
			n, err := strconv.ParseUint(c, 10, 64)
			if err != nil || n == 0 || n > maxCount || c[0] == '0' || more && counts == "" {
				return d.bad("cell count %.40q, expected a positive integer up to 2^56", c)
			}
			if at >= to {
				return d.bad("cell %d, expected %d to %d", at, from, to-1)
			}
			if err := put(at, n); err != nil {
				return err
			}
			at++
		}
		next = at
	}
	return nil
}

func (d *decoder) channelMax() (*ChannelMax, error) {
	c := &ChannelMax{}
	err := d.array(MaxChannels, func() error {
		v, err := d.f32()
		if err == nil && v < 0 {
			err = d.bad("channel maximum %v is negative", v)
		}
		c.m = append(c.m, v)
		return err
	})
	if err != nil || len(c.m) == 0 {
		return nil, err // nothing was seen yet
	}
	return c, nil
}

func (d *decoder) channelSum() (*ChannelSum, error) {
	c := &ChannelSum{}
	err := d.object(2, "n sum", func(key string) error {
		switch key {
		case "n":
			return d.array(MaxChannels, func() error {
				v, err := d.count()
				c.n = append(c.n, v)
				return err
			})
		case "sum":
			return d.array(MaxChannels, func() error {
				text, err := d.str(maxFixedBits/4 + 2)
				if err != nil {
					return err
				}
				v, ok := new(big.Int).SetString(text, 16)
				if !ok || v.BitLen() > maxFixedBits {
					return d.bad("channel sum %q is not a hexadecimal integer of %d bits", text, maxFixedBits)
				}
				if err := d.spend(8 * (sumDigits + 1)); err != nil {
					return err
				}
				c.s = append(c.s, exactSum{})
				c.s[len(c.s)-1].setFixed(v)
				return nil
			})
		}
		return d.bad("unknown key %.80q", key)
	})
	switch {
	case err != nil:
		return nil, err
	case len(c.n) != len(c.s):
		return nil, d.bad("%d channel counts and %d sums", len(c.n), len(c.s))
	case len(c.n) == 0:
		return nil, nil
	}
	return c, nil
}

func (d *decoder) moving() (*MovingAverage, error) {
	m := &MovingAverage{}
	err := d.object(4, "c lo hi n", func(key string) (err error) {
		switch key {
		case "c":
			m.c, err = d.float(64)
		case "lo":
			m.lo, err = d.float(64)
		case "hi":
			m.hi, err = d.float(64)
		case "n":
			m.n, err = d.count()
		default:
			err = d.bad("unknown key %.80q", key)
		}
		return err
	})
	if err == nil && (!(m.c > 0 && m.c <= 1) || m.lo > m.hi || max(-m.lo, m.hi) > math.MaxFloat32) {
		err = d.bad("moving average of weight %v with range [%v, %v]", m.c, m.lo, m.hi)
	}
	return m, err
}

// interval reads a range, [lo, hi] with 0 inside.
func (d *decoder) interval() (Range, error) {
	var v [2]float32
	i := 0
	err := d.array(2, func() (err error) { v[i], err = d.f32(); i++; return err })
	if err == nil && (i != 2 || v[0] > 0 || v[1] < 0) {
		err = d.bad("range %v, expected [lo, hi] around 0", v)
	}
	return Range{v[0], v[1]}, err
}

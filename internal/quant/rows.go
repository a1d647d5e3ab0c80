package quant

import (
	"fmt"
	"math"
	"slices"
	"sort"
)

const (
	// leastRows is how many rows of an activation are kept, at least, to measure
	// output errors on. 384 rows of 768 channels are 1.2 MB.
	leastRows = 384
	// rowValues is how many values they have at least: in few of them a range finds no
	// outlier, and would be chosen as if there were none.
	rowValues = 1 << 16
)

// RowLimit is how many rows of k channels are kept.
func RowLimit(k int) int { return max(leastRows, rowValues/max(k, 1)) }

// Rows is a bounded uniform sample of a tensor's rows (its last axis): the
// rows with the smallest keys, where a row's key is a hash of its sample and
// position. So the sample does not depend on order, batch size or shards, and
// two samples merge by keeping the smallest keys of both (bottom-k sampling,
// Cohen and Kaplan 2007).
type Rows struct {
	K    int // channels
	keys []uint64
	data [][]float32
}

// NewRows returns an empty sample of rows of k channels.
func NewRows(k int) *Rows { return &Rows{K: k} }

// Observe offers the rows of x, which belong to the sample with the given hash.
func (r *Rows) Observe(sample uint64, x []float32) error {
	if r.K <= 0 || len(x)%r.K != 0 {
		return fmt.Errorf("%w: %d values are not rows of %d", ErrConfig, len(x), r.K)
	}
	for i := 0; i*r.K < len(x); i++ {
		r.offer(mix(sample, uint64(i)), x[i*r.K:(i+1)*r.K])
	}
	return nil
}

// Wanted returns which of the n rows of a sample Keep would keep now, in order:
// whoever has the rows elsewhere needs to fetch no others. At most RowLimit(K).
func (r *Rows) Wanted(sample uint64, n int) []int {
	limit, most := uint64(math.MaxUint64), RowLimit(r.K)
	if len(r.keys) >= most {
		limit = r.keys[0]
	}
	var rows []int
	for i := range n {
		if mix(sample, uint64(i)) < limit {
			rows = append(rows, i)
		}
	}
	if len(rows) > most {
		sort.Slice(rows, func(a, b int) bool { return mix(sample, uint64(rows[a])) < mix(sample, uint64(rows[b])) })
		rows = rows[:most]
		sort.Ints(rows)
	}
	return rows
}

// Keep is Observe for the rows of a sample that Wanted has named, which x holds
// one after the other. Other samples may have been offered in between.
func (r *Rows) Keep(sample uint64, rows []int, x []float32) error {
	if len(x) != len(rows)*r.K {
		return fmt.Errorf("%w: %d values are not %d rows of %d", ErrConfig, len(x), len(rows), r.K)
	}
	for i, at := range rows {
		r.offer(mix(sample, uint64(at)), x[i*r.K:(i+1)*r.K])
	}
	return nil
}

// offer takes a row when its key is among the smallest.
func (r *Rows) offer(key uint64, row []float32) {
	if len(r.keys) < RowLimit(r.K) {
		r.keys = append(r.keys, key)
		r.data = append(r.data, append([]float32(nil), row...))
		r.up(len(r.keys) - 1)
	} else if key < r.keys[0] {
		r.keys[0] = key
		copy(r.data[0], row)
		r.down(0)
	}
}

// Len returns the number of rows kept.
func (r *Rows) Len() int { return len(r.keys) }

// Values returns the kept rows, concatenated in key order.
func (r *Rows) Values() []float32 {
	at := make([]int, len(r.keys))
	for i := range at {
		at[i] = i
	}
	sort.Slice(at, func(i, j int) bool { return r.keys[at[i]] < r.keys[at[j]] })
	out := make([]float32, 0, len(at)*r.K)
	for _, i := range at {
		out = append(out, r.data[i]...)
	}
	return out
}

// Finite returns the rows of Values that have neither NaN nor infinity, and how many.
func (r *Rows) Finite() ([]float32, int) {
	x := r.Values()
	out := x[:0]
	for row := range slices.Chunk(x, r.K) {
		if checkFinite(row) == nil {
			out = append(out, row...)
		}
	}
	return out, len(out) / r.K
}

// The keys are a max-heap, so that the largest is replaced first.
func (r *Rows) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if r.keys[p] >= r.keys[i] {
			return
		}
		r.swap(p, i)
		i = p
	}
}

func (r *Rows) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(r.keys) {
			return
		}
		if c+1 < len(r.keys) && r.keys[c+1] > r.keys[c] {
			c++
		}
		if r.keys[i] >= r.keys[c] {
			return
		}
		r.swap(i, c)
		i = c
	}
}

func (r *Rows) swap(i, j int) {
	r.keys[i], r.keys[j] = r.keys[j], r.keys[i]
	r.data[i], r.data[j] = r.data[j], r.data[i]
}

// mix is splitmix64 (Steele, Lea and Flood 2014) over sample and position: a
// fixed function, so that runs on different machines keep the same rows.
func mix(sample, i uint64) uint64 {
	z := sample + (i+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

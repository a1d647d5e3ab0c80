package telemetry

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets are linear within each power of two (HDR histogram, G. Tene): 64 a
// power, so a bucket is at most 1/64 of its lower edge wide and its middle is
// at most 1/128 = 0.8 % from any value inside.
const (
	subBits    = 6
	subBuckets = 1 << subBits
	// maxBits bounds values to 2^37 ns = 137 s; longer ones count as the last bucket.
	maxBits    = 37
	numBuckets = (maxBits - subBits + 1) * subBuckets
)

// bucketOf returns the bucket of a duration in nanoseconds.
func bucketOf(ns int64) int {
	if ns < subBuckets {
		return int(max(ns, 0))
	}
	shift := bits.Len64(uint64(ns)) - 1 - subBits
	if shift >= maxBits-subBits {
		return numBuckets - 1
	}
	return shift<<subBits + int(ns>>shift)
}

// bucketMiddle returns the middle of a bucket, in nanoseconds.
func bucketMiddle(b int) float64 {
	if b < 2*subBuckets {
		return float64(b)
	}
	shift := b>>subBits - 1
	low := int64(b&(subBuckets-1)|subBuckets) << shift
	return float64(low) + float64(int64(1)<<shift-1)/2
}

// counts is a histogram that many goroutines add to without locks.
type counts struct {
	bucket [numBuckets]atomic.Uint32
	sum    atomic.Int64 // nanoseconds
	max    atomic.Int64
}

func (c *counts) add(d time.Duration) {
	ns := int64(max(d, 0))
	c.bucket[bucketOf(ns)].Add(1)
	c.sum.Add(ns)
	for {
		m := c.max.Load()
		if ns <= m || c.max.CompareAndSwap(m, ns) {
			return
		}
	}
}

// Histogram is a plain histogram of durations, merged from any number of
// others: merging is exact, in any order.
type Histogram struct {
	n      [numBuckets]uint64
	total  uint64
	sum    int64
	maxima int64
}

// Add counts one duration.
func (h *Histogram) Add(d time.Duration) {
	ns := int64(max(d, 0))
	h.n[bucketOf(ns)]++
	h.total++
	h.sum += ns
	h.maxima = max(h.maxima, ns)
}

// Merge adds all of o to h.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range o.n {
		h.n[i] += n
	}
	h.total += o.total
	h.sum += o.sum
	h.maxima = max(h.maxima, o.maxima)
}

func (h *Histogram) mergeCounts(c *counts) {
	for i := range c.bucket {
		n := uint64(c.bucket[i].Load())
		h.n[i] += n
		h.total += n
	}
	h.sum += c.sum.Load()
	h.maxima = max(h.maxima, c.max.Load())
}

// Count returns the number of durations.
func (h *Histogram) Count() uint64 { return h.total }

// Max returns the longest duration, exactly.
func (h *Histogram) Max() time.Duration { return time.Duration(h.maxima) }

// Mean returns the mean, exactly; 0 when h is empty.
func (h *Histogram) Mean() time.Duration {
	if h.total == 0 {
		return 0
	}
	return time.Duration(h.sum / int64(h.total))
}

// Quantile returns the nearest-rank q-quantile (0 < q <= 1), within 0.8 % for
// durations below 137 s; 0 when h is empty. It is never above Max.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.total == 0 {
		return 0
	}
	rank := uint64(q * float64(h.total))
	if float64(rank) < q*float64(h.total) {
		rank++
	}
	rank = min(max(rank, 1), h.total)
	var seen uint64
	for b, n := range h.n {
		if seen += n; seen >= rank {
			if seen == h.total && b == bucketOf(h.maxima) && rank == h.total {
				return time.Duration(h.maxima)
			}
			return time.Duration(min(bucketMiddle(b), float64(h.maxima)))
		}
	}
	return time.Duration(h.maxima)
}

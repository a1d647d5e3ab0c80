// Package calib collects what a calibration run must know about each tensor in
// one streaming pass with bounded memory, and turns it into quantization
// ranges.
//
// Every statistic is exact in the sense that matters for sharding: it depends
// only on the multiset of values seen, never on batch size, order or how the
// samples were split, and two observers merge into exactly the state that one
// observer of all values would have. The one exception is MovingAverage, which
// is order-dependent by definition and refuses to merge.
//
// The path of a value: Collector -> Stats -> Histogram (and ChannelMax,
// ChannelSum when asked for) -> Thresholder -> Range -> ParamsFor -> QParams.
// Table is the file form of the statistics; shards merge byte for byte.
package calib

import "errors"

// Errors of this package. They are wrapped with what was read and what to do.
var (
	// ErrMerge: two observers or tables do not describe the same thing.
	ErrMerge = errors.New("calibration statistics do not merge")
	// ErrOrderDependent: a moving average has no meaning across shards.
	ErrOrderDependent = errors.New("a moving average depends on the order of the samples and cannot be merged")
	// ErrNoData: nothing finite was observed, so there is no range.
	ErrNoData = errors.New("no calibration data")
	// ErrAllNaN: values were observed and none of them was finite.
	ErrAllNaN = errors.New("every calibration value is NaN or infinite")
	// ErrMethod: an unknown threshold method or a bad parameter of one.
	ErrMethod = errors.New("unknown calibration method")
	// ErrShard: text that names no shard.
	ErrShard = errors.New("bad shard")
	// ErrScheme: a quantization scheme that no target has.
	ErrScheme = errors.New("bad quantization scheme")
	// ErrTable: a calibration table or cache that cannot be read.
	ErrTable = errors.New("bad calibration table")
	// ErrShape: values that do not fit the channels they are observed under.
	ErrShape = errors.New("values do not fit the observed channels")
)

// Observer accumulates statistics of a stream of values. x is read before
// Observe returns and never retained. An Observer is not safe for concurrent
// use; Collector is.
type Observer interface {
	Observe(x []float32)
	// Merge adds everything that o has seen. It returns ErrMerge when o is of
	// another kind and leaves o unchanged.
	Merge(o Observer) error
}

//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import (
	"math"
	"unsafe"
)

// RangeStats is fb_range_stats: what RangeAdd and HistogramObserve keep of the
// values themselves, in device memory.
type RangeStats struct {
	Finite, Zeros, NaN, PosInf, NegInf uint64 // counts; Finite includes Zeros
	Lo, Hi                             uint32 // keys of the smallest and largest finite value
	Top                                uint32 // bits of the largest finite |x|
	_                                  uint32
}

// MinMax returns the smallest and largest finite value, false where there was none.
func (r *RangeStats) MinMax() (lo, hi float32, ok bool) {
	return OfKey(r.Lo), OfKey(r.Hi), r.Finite > 0
}

// OfKey is the float of a key: keys are unsigned and in the order of the floats.
func OfKey(key uint32) float32 {
	if key>>31 == 1 {
		return math.Float32frombits(key &^ (1 << 31))
	}
	return math.Float32frombits(^key)
}

// Sizes of a Histogram's arrays for each sign.
const (
	LinearBins = C.FB_LINEAR_BINS
	LogCells   = C.FB_LOG_CELLS
)

// Histogram is fb_histogram, a calib.Histogram in device memory. The arrays are
// by sign, positive first.
type Histogram struct {
	Range    RangeStats
	Exponent int32 // linear bins are 2^Exponent wide
	_        uint32
	Linear   [2][LinearBins]uint64
	Cells    [2][LogCells]uint64
}

// KLTensor is fb_kl_tensor: what the entropy search takes of a tensor.
type KLTensor struct {
	Bins, Levels, Exponent int32
	Finite, Others         int32  // 1 where there was a finite value, a NaN or an infinity
	Lo, Hi                 uint32 // keys
}

// Tap is a tensor of N float values and the Histogram that it is counted in.
type Tap struct {
	X         Ptr
	N         int64
	Histogram Ptr
}

// The structures above are laid out as C has them.
var (
	_ [C.sizeof_fb_range_stats]byte = [unsafe.Sizeof(RangeStats{})]byte{}
	_ [C.sizeof_fb_histogram]byte   = [unsafe.Sizeof(Histogram{})]byte{}
	_ [C.sizeof_fb_kl_tensor]byte   = [unsafe.Sizeof(KLTensor{})]byte{}
	_ [C.sizeof_fb_tap]byte         = [unsafe.Sizeof(Tap{})]byte{}
)

// RangeInit empties count RangeStats.
func RangeInit(out Ptr, count int, s Stream) error {
	return check("initialize ranges", C.fb_range_init(at[C.fb_range_stats](out), C.int(count), stream(s)))
}

// RangeAdd adds n values to the RangeStats at out.
func RangeAdd(x Ptr, n int64, out Ptr, s Stream) error {
	return check("range", C.fb_range(at[C.float](x), C.int64_t(n), at[C.fb_range_stats](out), stream(s)))
}

// HistogramInit empties count Histograms.
func HistogramInit(h Ptr, count int, s Stream) error {
	return check("initialize histograms", C.fb_histogram_init(at[C.fb_histogram](h), C.int(count), stream(s)))
}

// HistogramObserve adds each tensor to its histogram; two taps of a call have
// different ones.
func HistogramObserve(taps []Tap, s Stream) error {
	if len(taps) == 0 {
		return nil
	}
	return check("histogram", C.fb_histogram_observe((*C.fb_tap)(unsafe.Pointer(unsafe.SliceData(taps))), C.int(len(taps)), stream(s)))
}

// ChannelMax raises m [channels] to |x| of x [outer, channels, inner], NaN and
// infinities left out.
func ChannelMax(x Ptr, outer, channels, inner int64, m Ptr, s Stream) error {
	return check("channel maxima", C.fb_channel_max(at[C.float](x), C.int64_t(outer), C.int64_t(channels), C.int64_t(inner), at[C.float](m), stream(s)))
}

// HistogramLinear writes the linear bins of |x|, counts [count, LinearBins] u64,
// and tensors [count] KLTensor for codes of bits bits.
func HistogramLinear(h Ptr, count, bits int, symmetric bool, counts, tensors Ptr, s Stream) error {
	var sym C.int
	if symmetric {
		sym = 1
	}
	return check("linear bins", C.fb_histogram_linear(at[C.fb_histogram](h), C.int(count), C.int(bits), sym, at[C.uint64_t](counts), at[C.fb_kl_tensor](tensors), stream(s)))
}

// KLWorkspace is the bytes that KLThreshold needs for count tensors.
func KLWorkspace(count int) int64 { return int64(C.fb_kl_workspace(C.int(count))) }

// KLThreshold searches the entropy threshold of each tensor: keep [count] s32 bins
// of counts [count, LinearBins], and its divergence [count] f64, which may be 0.
// logs is calib.LogTable.
func KLThreshold(counts, tensors Ptr, count int, logs, keep, divergence, workspace Ptr, workspaceBytes int64, s Stream) error {
	return check("entropy search", C.fb_kl_threshold(at[C.uint64_t](counts), at[C.fb_kl_tensor](tensors), C.int(count), at[C.double](logs), at[C.int32_t](keep), at[C.double](divergence),
		unsafe.Pointer(at[byte](workspace)), C.size_t(max(workspaceBytes, 0)), stream(s)))
}

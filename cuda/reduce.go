//go:build cuda

package cuda

// #include "fewbit_cuda.h"
import "C"

import "fmt"

// Reduction is what Reduce does over an axis.
type Reduction int32

// The reductions.
const (
	ReduceSum  Reduction = C.FB_REDUCE_SUM
	ReduceMean Reduction = C.FB_REDUCE_MEAN
	ReduceMax  Reduction = C.FB_REDUCE_MAX
	ReduceMin  Reduction = C.FB_REDUCE_MIN
	ReduceL2   Reduction = C.FB_REDUCE_L2
)

var reductions = [...]string{ReduceSum: "ReduceSum", ReduceMean: "ReduceMean", ReduceMax: "ReduceMax", ReduceMin: "ReduceMin", ReduceL2: "ReduceL2"}

func (r Reduction) String() string {
	if r < 0 || int(r) >= len(reductions) {
		return fmt.Sprintf("Reduction(%d)", int32(r))
	}
	return reductions[r]
}

// Reduce reduces x [outer, axis, inner] f32 over axis into y [outer, inner], in
// the same order every time. An empty axis gives 0, or the infinity that the
// other values of ReduceMax and ReduceMin are compared with.
func Reduce(r Reduction, x Ptr, outer, axis, inner int64, y Ptr, s Stream) error {
	return check(r.String(), C.fb_reduce(C.int(r), at[C.float](x), C.int64_t(outer), C.int64_t(axis), C.int64_t(inner), at[C.float](y), stream(s)))
}

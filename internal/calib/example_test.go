package calib_test

import (
	"fmt"
	"math"

	"github.com/fewbit/fewbit/internal/calib"
)

// From values to quantization parameters. Two shards merge into what one
// observer of everything would have seen.
func Example() {
	var a, b calib.Histogram
	a.Observe([]float32{-1, 0, 0.5})
	b.Observe([]float32{1.55, 0.25})
	if err := a.Merge(&b); err != nil {
		fmt.Println(err)
	}
	method, err := calib.ByName("minmax")
	if err != nil {
		fmt.Println(err)
	}
	r, err := method.Threshold(&a, calib.U8)
	if err != nil {
		fmt.Println(err)
	}
	q := calib.ParamsFor(r, calib.U8)
	fmt.Printf("%v of %d values: scale %.2f, zero point %d\n", r, a.Count(), q.Scale, q.Zero)
	// Output: {-1 1.55} of 5 values: scale 0.01, zero point 100
}

// A calibrator of one's own: three standard deviations around the mean, within
// what was observed. quant.Config.Thresholder takes it.
func ExampleThresholderFunc() {
	var threeSigma calib.Thresholder = calib.ThresholderFunc(func(h *calib.Histogram, _ calib.Scheme) (calib.Range, error) {
		seen, ok := h.MinMax()
		if !ok {
			return calib.Range{}, calib.ErrNoData
		}
		mean, variance := h.Moments()
		far := 3 * math.Sqrt(variance)
		return calib.Range{Lo: max(seen.Lo, float32(mean-far)), Hi: min(seen.Hi, float32(mean+far))}.WithZero(), nil
	})
	h := &calib.Histogram{}
	h.Observe(append(make([]float32, 999), 100)) // one outlier
	r, err := threeSigma.Threshold(h, calib.U8)
	fmt.Printf("%.2f %.2f %v\n", r.Lo, r.Hi, err)
	// Output: 0.00 9.58 <nil>
}

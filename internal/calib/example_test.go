package calib_test

import (
	"fmt"

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

//go:build cuda

package calib

// LogTable returns the table of the search's logarithm for a device: the
// reciprocal and the logarithm of 512 steps of the mantissa, in turn.
func LogTable() []float64 {
	v := make([]float64, 0, 2<<logBits)
	for _, s := range logSteps() {
		v = append(v, s[0], s[1])
	}
	return v
}

//go:build !cgo || !amd64

package calib

// available lists the implementations that run here, slowest first. Without
// cgo on amd64 only the portable one is built.
func available() []kernels { return []kernels{plain} }

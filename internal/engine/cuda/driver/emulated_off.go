//go:build cuda && !cudaemu

package driver

// Emulated is true where the driver is the one of the tests.
const Emulated = false

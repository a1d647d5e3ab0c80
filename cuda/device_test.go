//go:build cuda && !cudaemu

package cuda

import "unsafe"

func sizeOf[T any](v T) uintptr { return unsafe.Sizeof(v) }

func seeds() []uint32  { return []uint32{0} }
func configure(uint32) {}
func prepare()         {}
func message() string  { return "" }
func isEmulated() bool { return false }

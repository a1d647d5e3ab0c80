//go:build cgo

package quant

// #cgo CFLAGS: -O3
// #cgo noescape fb_quant_grams_avx512
// #cgo nocallback fb_quant_grams_avx512
// #include "patches_amd64.h"
import "C"

import (
	"sync"
	"unsafe"
)

var hasAVX512 = sync.OnceValue(func() bool { return C.fb_quant_avx512() != 0 })

// addGrams is addGramsGo in the instructions of this processor.
func addGrams(sum, rows []float32, n, groups, k, from, to int) {
	if !hasAVX512() {
		addGramsGo(sum, rows, n, groups, k, from, to)
		return
	}
	_, _ = rows[:n*groups*k], sum[:groups*TriangleRow(k)]
	C.fb_quant_grams_avx512((*C.float)(unsafe.Pointer(unsafe.SliceData(rows))), C.long(n), C.long(groups*k), C.long(k), C.long(from), C.long(to),
		(*C.float)(unsafe.Pointer(unsafe.SliceData(sum))))
}

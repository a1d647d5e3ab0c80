//go:build cgo

package calib

// #cgo CFLAGS: -O3
// #cgo noescape fb_calib_scan_avx2
// #cgo nocallback fb_calib_scan_avx2
// #cgo noescape fb_calib_scan_avx512
// #cgo nocallback fb_calib_scan_avx512
// #cgo noescape fb_calib_bin_avx2
// #cgo nocallback fb_calib_bin_avx2
// #cgo noescape fb_calib_absmax_avx2
// #cgo nocallback fb_calib_absmax_avx2
// #cgo noescape fb_calib_drain_avx2
// #cgo nocallback fb_calib_drain_avx2
// #include "kernels_amd64.h"
import "C"

import "unsafe"

// available lists the implementations that this CPU runs, slowest first.
func available() []kernels {
	ks := []kernels{plain}
	level := C.fb_calib_level()
	if level >= 1 {
		ks = append(ks, kernels{"avx2", scanAVX2, binAVX2, drainAVX2, absMaxAVX2})
	}
	if level >= 2 {
		ks = append(ks, kernels{"avx512", scanAVX512, binAVX2, drainAVX2, absMaxAVX2})
	}
	return ks
}

func ptr(x []float32) (*C.float, C.long) {
	return (*C.float)(unsafe.Pointer(unsafe.SliceData(x))), C.long(len(x))
}

func facts(f C.fb_scan_facts) scanFacts {
	return scanFacts{uint32(f.abs_max), float32(f.lo), float32(f.hi)}
}

func scanAVX2(x []float32) scanFacts {
	p, n := ptr(x)
	return facts(C.fb_calib_scan_avx2(p, n))
}

func scanAVX512(x []float32) scanFacts {
	p, n := ptr(x)
	return facts(C.fb_calib_scan_avx512(p, n))
}

func binAVX2(x []float32, scale float32, base int32, t *binTable) binFacts {
	p, n := ptr(x)
	r := C.fb_calib_bin_avx2(p, n, C.float(scale), C.int32_t(base), (*C.uint16_t)(unsafe.Pointer(t)))
	return binFacts{int32(r.below), int32(r.zeros)}
}

func words(x []float32) *C.uint32_t {
	return (*C.uint32_t)(unsafe.Pointer(unsafe.SliceData(x)))
}

func absMaxAVX2(x, m []float32) {
	if len(m) > 0 {
		C.fb_calib_absmax_avx2(words(x), C.long(len(x)/len(m)), C.long(len(m)), words(m))
	}
}

func drainAVX2(a, b []uint16, to []uint64) {
	C.fb_calib_drain_avx2((*C.uint16_t)(unsafe.Pointer(unsafe.SliceData(a))), (*C.uint16_t)(unsafe.Pointer(unsafe.SliceData(b))),
		(*C.uint64_t)(unsafe.Pointer(unsafe.SliceData(to))), C.long(len(to)))
}

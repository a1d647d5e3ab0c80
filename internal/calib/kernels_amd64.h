// Inner loops of the calibration observers. See kernels.go for the layout of
// the table and for what each function promises; the Go functions there are
// the reference and agree bit for bit.
#ifndef FEWBIT_CALIB_KERNELS_H
#define FEWBIT_CALIB_KERNELS_H
#include <stdint.h>

typedef struct { uint32_t abs_max; float lo, hi; } fb_scan_facts;
typedef struct { int32_t below, zeros; } fb_bin_facts;

// 0: neither, 1: AVX2, 2: AVX-512 F as well.
int fb_calib_level(void);

fb_scan_facts fb_calib_scan_avx2(const float *x, long n);
fb_scan_facts fb_calib_scan_avx512(const float *x, long n);
fb_bin_facts fb_calib_bin_avx2(const float *x, long n, float scale, int32_t base, uint16_t *t);
void fb_calib_absmax_avx2(const uint32_t *x, long rows, long cols, uint32_t *m);
void fb_calib_drain_avx2(uint16_t *a, uint16_t *b, uint64_t *to, long n);
#endif

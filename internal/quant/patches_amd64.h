// The inner loop of a grouped convolution's Hessians. addGramsGo is the reference and
// agrees bit for bit.
#ifndef FEWBIT_QUANT_PATCHES_H
#define FEWBIT_QUANT_PATCHES_H

// 1 where fb_quant_grams_avx512 runs.
int fb_quant_avx512(void);

// Adds x'x of n rows x of k values, `stride` values apart, to the lower triangles of
// groups from to to-1: sum begins with group 0, as the first row does.
void fb_quant_grams_avx512(const float *rows, long n, long stride, long k, long from, long to, float *sum);
#endif

/* fewbit's CUDA kernels: the C interface that Go calls through cgo.
 *
 * Plain C11, so that cgo, C++ tests and nvcc read the same declarations. Every
 * entry checks its arguments, launches on the caller's stream and returns at
 * once: nothing here synchronises, allocates, prints or exits. All pointers are
 * device memory unless a comment says host. Tensors are dense and row-major
 * unless strides are given.
 *
 * Integer parts are exact and the same on every implementation (docs/ops.md):
 * accumulators are int32, rounding is to nearest even, saturation is explicit.
 * Float parts may differ in the last bits between implementations.
 */
#ifndef FEWBIT_CUDA_H
#define FEWBIT_CUDA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef void *fb_stream; /* a CUstream / cudaStream_t; NULL is the legacy stream */

/* What an entry returns. The caller words the message, with its own shapes. */
enum {
  FB_OK = 0,
  FB_BAD_ARGUMENT = 1, /* a shape, pointer or enum outside what the entry documents */
  FB_UNSUPPORTED = 2,  /* well-formed, but no kernel for it on this device */
  FB_WORKSPACE = 3,    /* the workspace is smaller than fb_*_workspace said */
  FB_CUDA_ERROR = 1000 /* FB_CUDA_ERROR + cudaError_t of the launch */
};

enum { FB_F32 = 0, FB_F16 = 1, FB_BF16 = 2, FB_S8 = 3, FB_U8 = 4, FB_S32 = 5, FB_S64 = 6, FB_U32 = 7, FB_BOOL = 8 /* a byte, 0 or 1 */ };

enum { /* activations of epilogues and of fb_unary */
  FB_ACT_NONE = 0, FB_ACT_RELU = 1, FB_ACT_GELU = 2 /* erf */, FB_ACT_GELU_TANH = 3, FB_ACT_QUICK_GELU = 4 /* x sigmoid(1.702 x) */,
  FB_ACT_SILU = 5, FB_ACT_CLIP = 6 /* [act_min, act_max]: ReLU6 */
};

/* What runs below: filled once at start. Emulation reports itself as such. */
typedef struct fb_device_info {
  int sm;             /* 75, 80, 89, 90 ... ; the emulation lets a test choose */
  int sms;            /* multiprocessors */
  int smem_per_block; /* bytes, opt-in maximum */
  int emulated;
} fb_device_info;
int fb_device(fb_device_info *out);

/* ---- memory.cu: of the current device, synchronous; for tests and small tools. The executor has its own arena. */
int fb_malloc(void **out, size_t bytes);
int fb_free(void *p);
int fb_copy_in(void *dst, const void *src /* host */, size_t bytes);
int fb_copy_out(void *dst /* host */, const void *src, size_t bytes);
int fb_sync(fb_stream s);

/* ---- quantize.cu: activations to integers and back ---------------------------------------------------------------
 * Device activations are s8 = u8 - 128 and zero points are shifted the same way (zp - 128): what docs/ops.md specifies
 * on u8 gives the same products, and every tensor core takes s8 x s8. */

/* Per row: x [m, k] f32 -> q [m, ldq] s8 (columns k..ldq-1 zero-filled), scale [m], zero [m] s32 (the s8 zero point).
 * Range of a row is [min(x, 0), max(x, 0)]; scale = (hi - lo) / 255 (1 when the row is constant zero);
 * zp_u8 = clamp(rne(-lo / scale), 0, 255); q_u8 = clamp(rne(x / scale) + zp_u8, 0, 255). divisor [k] or NULL: x is divided by it first
 * (smoothing that could not be folded). */
int fb_quantize_rows(const float *x, int64_t m, int64_t k, const float *divisor, int8_t *q, int64_t ldq, float *scale, int32_t *zero, fb_stream s);
/* Static: one scale and u8 zero point for the tensor (host values). */
int fb_quantize_tensor(const float *x, int64_t m, int64_t k, const float *divisor, float scale, int32_t zero_u8, int8_t *q, int64_t ldq, fb_stream s);
/* Symmetric per channel: x viewed as [outer, c, inner], scale [c]; q = clamp(rne(x / scale), -127, 127), or its inverse. */
int fb_quantize_channels(const float *x, int64_t outer, int64_t c, int64_t inner, const float *scale, int8_t *q, fb_stream s);
int fb_dequantize_channels(const int8_t *q, int64_t outer, int64_t c, int64_t inner, const float *scale, float *x, fb_stream s);
/* y = (q - zero_s8) * scale, dense. */
int fb_dequantize_tensor(const int8_t *q, int64_t n, float scale, int32_t zero_s8, float *x, fb_stream s);
/* Blocks along k, symmetric INT4, two per byte, low nibble first, stored + 8, the value of largest magnitude becomes -8: x [n, k] -> q [n, k/2], scale [n, k/block]. block 16..256, power of 2. */
int fb_quantize_blocks_s4(const float *x, int64_t n, int64_t k, int block, uint8_t *q, float *scale, fb_stream s);
int fb_dequantize_blocks_s4(const uint8_t *q, const float *scale, int64_t n, int64_t k, int block, float *x, fb_stream s);

/* ---- histogram.cu: calibration ----------------------------------------------------------------------------------
 * The exact, mergeable statistics of internal/calib (histogram bins of a power-of-two width, see calib/histogram.go),
 * on the device. */
/* out[0] = min, out[1] = max, out[2..4] as u32 bit patterns: count of NaN, of +-Inf, of exact zeros. Finite values only in min/max.
 * Accumulates into out: fb_range_init first. */
int fb_range_init(float *out, fb_stream s);
int fb_range(const float *x, int64_t n, float *out, fb_stream s);
/* counts[bin] += 1 for bin = floor(x / width) - first, 0 <= bin < bins; x finite, others are skipped; outside goes to the edge bins.
 * Counts are u64. width is a power of two. bins <= 4096 stay in shared memory, private to each warp where they fit. */
int fb_histogram(const float *x, int64_t n, float width, int64_t first, int bins, uint64_t *counts, fb_stream s);
/* KL threshold of histograms of |x|, many tensors in one launch: counts [tensors, bins] u64, levels quantized levels (128 for INT8).
 * out_bin [tensors]: number of bins kept. The same search, in the same order of sums (double), as internal/calib/entropy.go. */
int fb_kl_threshold(const uint64_t *counts, int tensors, int bins, int levels, int32_t *out_bin, double *out_divergence, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_kl_workspace(int tensors, int bins);

/* ---- gemm_s8.cu ------------------------------------------------------------------------------------------------- */
typedef struct fb_gemm_s8 {
  int64_t m, n, k;       /* C [m, n] = epilogue(A [m, k] x B [n, k]^T); k of the buffers: lda, ldb */
  int64_t lda, ldb, ldc; /* lda, ldb multiples of 16, the padding is zero */
  int a_rows;            /* 1: a_scale and a_zero have m entries, 0: one */
  int act;               /* FB_ACT_* */
  float act_min, act_max;
  int out;               /* FB_F32, FB_F16, FB_S8 (with out_scale, out_zero), FB_S32 (the raw corrected accumulator, no epilogue) */
  float out_scale;       /* FB_S8: q = clamp(rne(y / out_scale) + out_zero, -128, 127) */
  int32_t out_zero;      /* s8 zero point */
  int residual;          /* type of the residual [m, ldc]: FB_F32 or FB_F16; read only where the pointer is not NULL */
  int config;            /* 0: fb_gemm_s8_pick chooses; otherwise 1 + an index into the table (tests, tuning) */
} fb_gemm_s8;
/* acc = sum_k A*B - a_zero * b_sum (int32, exact); y = act(acc * (a_scale * b_scale[n]) + bias[n]) + residual.
 * b_sum [n] = sum of row n of B (fb_row_sums). bias and residual may be NULL. */
int fb_gemm_s8_run(const fb_gemm_s8 *d, const int8_t *a, const float *a_scale, const int32_t *a_zero, const int8_t *b, const float *b_scale,
                   const int32_t *b_sum, const float *bias, const void *residual, void *c, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_gemm_s8_workspace(const fb_gemm_s8 *d);
/* Pure: the configuration that d gets on a device, printed into text (host, may be NULL); returns its index in the table, < 0 for none. */
int fb_gemm_s8_pick(const fb_gemm_s8 *d, const fb_device_info *dev, char *text, size_t text_bytes);
int fb_gemm_s8_configs(void);
int fb_row_sums(const int8_t *b, int64_t n, int64_t k, int64_t ldb, int32_t *sums, fb_stream s);

/* ---- gemm_w4.cu: weights in INT4 blocks ------------------------------------------------------------------------- */
typedef struct fb_gemm_w4 {
  int64_t m, n, k, lda, ldc; /* k multiple of block */
  int block;                 /* 32, 64, 128 or k */
  int a;                     /* FB_F16 (W4A16) or FB_S8 (W4A8: a_scale [m], a_zero [m]) */
  int act; float act_min, act_max;
  int out;                   /* FB_F32 or FB_F16 */
  int residual;
  int config;
} fb_gemm_w4;
/* Offline: q [n, k/2] as fb_quantize_blocks_s4 writes it -> the order the kernel reads, same size. scale [n, k/block] f32 -> packed_scale. */
int fb_w4_pack(const uint8_t *q, const float *scale, int64_t n, int64_t k, int block, uint8_t *packed, float *packed_scale, fb_stream s);
int fb_gemm_w4_run(const fb_gemm_w4 *d, const void *a, const float *a_scale, const int32_t *a_zero, const uint8_t *packed, const float *packed_scale,
                   const float *bias, const void *residual, void *c, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_gemm_w4_workspace(const fb_gemm_w4 *d);

/* ---- gemm_float.cu: what stays in float ------------------------------------------------------------------------- */
typedef struct fb_gemm_float {
  int64_t m, n, k, lda, ldb, ldc;
  int64_t batch, stride_a, stride_b, stride_c; /* batch >= 1; a stride of 0 shares the operand */
  int trans_b;  /* 1: B is [n, k]; 0: [k, n] */
  int in;       /* FB_F32 (true FP32 fma), FB_F16 (tensor cores, f32 accumulators) */
  int tf32;     /* FB_F32 inputs rounded to TF32 on tensor cores (sm_80+): calibration forward */
  int out;      /* FB_F32, FB_F16 */
  int act; float act_min, act_max;
  float alpha;
} fb_gemm_float;
int fb_gemm_float_run(const fb_gemm_float *d, const void *a, const void *b, const float *bias, const void *residual_f32, void *c, fb_stream s);

/* ---- attention.cu ----------------------------------------------------------------------------------------------- */
typedef struct fb_attention {
  int64_t batch, heads, q_len, kv_len;
  int head_dim, v_dim;             /* <= 128, multiples of 8 */
  int64_t q_row, k_row, v_row, o_row; /* elements between tokens: [batch, len, heads * dim] has heads * dim; packed QKV 3 * heads * dim */
  int64_t q_batch, k_batch, v_batch, o_batch; /* elements between batch items */
  float scale;                     /* of the scores, usually 1 / sqrt(head_dim) */
  int causal;
  int in;                          /* FB_F32 or FB_F16 */
  int scores;                      /* FB_F16: mma on f16 with f32 accumulators; FB_S8: per-row dynamic s8 Q and K (V in f16); FB_F32: plain fma */
  int mask_q;                      /* mask has q_len rows (1) or one row for all (0) */
  int mask_heads;                  /* mask has heads planes (1) or one (0) */
} fb_attention;
/* mask: additive f32 [batch, mask_heads ? heads : 1, mask_q ? q_len : 1, kv_len] or NULL; key_lengths [batch] s32 or NULL (keys past it are masked). out f32 or f16 as in. */
int fb_attention_run(const fb_attention *d, const void *q, const void *k, const void *v, const float *mask, const int32_t *key_lengths, void *out, fb_stream s);

/* ---- conv.cu: NHWC, s8 -------------------------------------------------------------------------------------------- */
typedef struct fb_conv_s8 {
  int n, h, w, c;             /* input [n, h, w, c]; c per group times groups */
  int oc, kh, kw, oh, ow;     /* weight [oc, kh, kw, c / groups] s8; output [n, oh, ow, oc] */
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups; /* pads at the start; those at the end follow from oh, ow */
  float x_scale; int32_t x_zero;     /* of the input, s8 zero point; padding reads x_zero */
  int act; float act_min, act_max;
  int out;                           /* FB_S8 or FB_F32 */
  float out_scale; int32_t out_zero;
  float residual_scale; int32_t residual_zero; /* residual [n, oh, ow, oc] s8: y += (r - zero) * scale, before act */
  int config;
} fb_conv_s8;
/* acc = sum (x - x_zero) * w exactly (int32); y = act(acc * (x_scale * w_scale[oc]) + bias[oc] + residual). */
int fb_conv_s8_run(const fb_conv_s8 *d, const int8_t *x, const int8_t *w, const float *w_scale, const int32_t *w_sum, const float *bias, const int8_t *residual,
                   void *y, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_conv_s8_workspace(const fb_conv_s8 *d);
/* Float convolution NCHW for what stays in float. Same geometry; x [n, c, h, w], w [oc, c/groups, kh, kw], all f32. */
int fb_conv_f32(const fb_conv_s8 *geometry, const float *x, const float *w, const float *bias, const float *residual, float *y, fb_stream s);

/* ---- norm.cu ------------------------------------------------------------------------------------------------------ */
/* y = LayerNorm(x + residual) * gamma + beta over the last axis; any of sum, y, q may be NULL: sum [m, k] receives x + residual;
 * q/scale/zero the rows of y quantized as by fb_quantize_rows with the same divisor. residual, beta, divisor may be NULL. */
int fb_layer_norm(const float *x, const float *residual, const float *gamma, const float *beta, int64_t m, int64_t k, float epsilon, float *sum, float *y,
                  const float *divisor, int8_t *q, int64_t ldq, float *scale, int32_t *zero, fb_stream s);
int fb_softmax(const float *x, int64_t m, int64_t k, float *y, fb_stream s);

/* ---- embed.cu ----------------------------------------------------------------------------------------------------- */
/* Sum of up to three tables by id: out [tokens, dim] f32. bits 32: f32 rows; 8: s8 rows with scale [rows]; 4: INT4 blocks as fb_quantize_blocks_s4 of `block`.
 * An id outside [0, rows) (negative counts from the end, as ONNX Gather) sets *fault to 1 and reads row 0. */
typedef struct fb_embed_table { const void *rows; const float *scale; const int64_t *ids; int64_t count; int64_t ids_period; int bits, block; const int32_t *zero; } fb_embed_table; /* ids_period: ids[i % ids_period], 0 = tokens; zero [rows] for bits 8, or NULL */
int fb_embed(const fb_embed_table *tables /* host */, int n_tables, int64_t tokens, int64_t dim, float *out, int32_t *fault, fb_stream s);

/* ---- pool.cu ------------------------------------------------------------------------------------------------------ */
typedef struct fb_pool { int n, h, w, c, oh, ow, kh, kw, stride_h, stride_w, pad_h, pad_w; int average, count_include_pad, nhwc; } fb_pool;
int fb_pool_f32(const fb_pool *d, const float *x, float *y, fb_stream s);
int fb_pool_s8(const fb_pool *d, const int8_t *x, float x_scale, int32_t x_zero, int8_t *y, float y_scale, int32_t y_zero, fb_stream s); /* nhwc */
/* [n, c, hw] (or [n, hw, c]) f32 -> [n, c] */
int fb_global_average_f32(const float *x, int n, int c, int64_t hw, int nhwc, float *y, fb_stream s);
/* Masked mean over tokens: x [b, t, d], mask [b, t] f32 -> [b, d] = sum(x mask) / max(sum(mask), 1e-9) */
int fb_masked_mean(const float *x, const float *mask, int64_t b, int64_t t, int64_t d, float *y, fb_stream s);

/* ---- elementwise.cu ----------------------------------------------------------------------------------------------- */
enum { FB_RANK = 6 };
typedef struct fb_view { int rank; int64_t dims[FB_RANK], strides[FB_RANK]; } fb_view; /* strides in elements, 0 broadcasts */
enum { FB_ADD = 0, FB_SUB, FB_MUL, FB_DIV, FB_POW, FB_MIN, FB_MAX, FB_EQUAL, FB_LESS, FB_GREATER, FB_AND, FB_OR };
enum { FB_ABS = 32, FB_NEG, FB_EXP, FB_LOG, FB_SQRT, FB_RECIPROCAL, FB_ERF, FB_TANH, FB_SIGMOID, FB_NOT, FB_FLOOR, FB_CEIL, FB_SIN, FB_COS, FB_HARDSIGMOID, FB_HARDSWISH, FB_LEAKY_RELU };
/* out is dense over out.dims; a, b are read with their own strides over out.dims. type FB_F32, FB_S64, FB_S32 or FB_U8 (comparisons write u8). */
int fb_binary(int op, int type, const fb_view *out, const void *a, const fb_view *av, const void *b, const fb_view *bv, void *y, fb_stream s);
int fb_unary(int op /* FB_ABS.. or FB_ACT_* */, const float *x, int64_t n, float p0, float p1, float *y, fb_stream s);
int fb_where(int size /* bytes of an element: 1, 4, 8 */, const fb_view *out, const uint8_t *cond, const fb_view *cv, const void *a, const fb_view *av, const void *b, const fb_view *bv, void *y, fb_stream s);
/* y[dst strides] = x[src strides] over dims: transpose, slice, concat, expand. size 1, 2, 4 or 8. */
int fb_copy(int size, const fb_view *src, const void *x, const fb_view *dst, void *y, fb_stream s);
int fb_cast(int from, int to, const void *x, int64_t n, void *y, fb_stream s);
/* x [outer, axis, inner] with ids [n_ids] -> [outer, n_ids, inner]; size bytes an element; ids s64 */
int fb_gather(int size, const void *x, int64_t outer, int64_t axis, int64_t inner, const int64_t *ids, int64_t n_ids, void *y, int32_t *fault, fb_stream s);
enum { FB_REDUCE_SUM = 0, FB_REDUCE_MEAN, FB_REDUCE_MAX, FB_REDUCE_MIN, FB_REDUCE_L2 };
int fb_reduce(int op, const float *x, int64_t outer, int64_t axis, int64_t inner, float *y, fb_stream s); /* over axis, deterministic */

/* The table of entries, for tests and for people: name and family. */
typedef struct fb_entry { const char *name, *family; } fb_entry;
const fb_entry *fb_entries(int *count);

#ifdef __cplusplus
}
#endif
#endif

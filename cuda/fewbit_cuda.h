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
/* Its inverse: x [m, k] dense = (q - zero) * scale by row; zero NULL stands for zeros. */
int fb_dequantize_rows(const int8_t *q, int64_t m, int64_t k, int64_t ldq, const float *scale, const int32_t *zero, float *x, fb_stream s);
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
 * The exact, mergeable statistics of internal/calib: the same cells and the same search, so that what is read back is
 * what an observer on the CPU holds after the same values, bit for bit, whatever the order. */
typedef struct fb_range_stats {
  uint64_t finite, zeros, nan, pos_inf, neg_inf; /* counts; finite ones include zeros */
  uint32_t lo, hi;   /* smallest and largest finite value, -0 as 0, as keys in the order of the floats: the bits with the first one
                        inverted for x >= 0, all of them inverted for x < 0. 2^32 - 1 and 0 where finite is 0 */
  uint32_t top, pad; /* bits of the largest finite |x| */
} fb_range_stats;
int fb_range_init(fb_range_stats *out, int count, fb_stream s);
/* Adds n values to out. */
int fb_range(const float *x, int64_t n, fb_range_stats *out, fb_stream s);

enum { FB_LINEAR_BINS = 4096, FB_LOG_CELLS = 255 * 128, FB_MIN_EXPONENT = -120 };
/* A calib.Histogram: |x| >= 2^(exponent+7) is in linear bin floor(|x| / 2^exponent), smaller non-zero |x| in the cell of the upper 16
 * bits of |x| as float. [0] counts x > 0, [1] x < 0. The exponent is the smallest that fits range.top into the bins, and at least
 * FB_MIN_EXPONENT. */
typedef struct fb_histogram {
  fb_range_stats range;
  int32_t exponent;
  uint32_t recount; /* of fb_histogram_observe, between its launches */
  uint64_t linear[2][FB_LINEAR_BINS]; /* 0..127 stay 0 */
  uint64_t cells[2][FB_LOG_CELLS];
} fb_histogram;
typedef struct fb_tap { const float *x; int64_t n; fb_histogram *histogram; } fb_tap;
int fb_histogram_init(fb_histogram *h, int count, fb_stream s);
/* Adds each tensor to its histogram: three launches for up to 64 of them. x is read until the stream has done them. Two taps of one
 * call have different histograms. */
int fb_histogram_observe(const fb_tap *taps /* host */, int count, fb_stream s);
/* m [channels] = max(m, |x|), x [outer, channels, inner]; NaN and infinities are ignored. m starts as zeros. */
int fb_channel_max(const float *x, int64_t outer, int64_t channels, int64_t inner, float *m, fb_stream s);

/* What the entropy search takes of a tensor. */
typedef struct fb_kl_tensor {
  int32_t bins;     /* of |x|, up to the one of the largest value; 0 where no value is finite */
  int32_t levels;   /* of |x|: 2^(bits-1), twice that for a tensor of one sign in an asymmetric scheme */
  int32_t exponent; /* the bins are 2^exponent wide */
  int32_t finite, others; /* 1 where there was a finite value, a NaN or an infinity */
  uint32_t lo, hi;  /* of fb_range_stats */
} fb_kl_tensor;
/* counts [count, FB_LINEAR_BINS]: all |x| of each histogram in linear bins, zeros in bin 0. bits 2..16. */
int fb_histogram_linear(const fb_histogram *h, int count, int bits, int symmetric, uint64_t *counts, fb_kl_tensor *tensors, fb_stream s);
/* How many bins to keep of each tensor, at most 65535 of them: Kullback-Leibler divergence as calib/entropy.go searches it, in the same
 * order of sums and with its logarithm, whose table is logs [512, 2]. keep [count]: all bins of a tensor with no more than
 * max(128, levels). divergence [count] of the choice, 0 where there is none; may be NULL. */
int fb_kl_threshold(const uint64_t *counts, const fb_kl_tensor *tensors, int count, const double *logs, int32_t *keep, double *divergence, void *workspace, size_t workspace_bytes,
                    fb_stream s);
size_t fb_kl_workspace(int count);

/* ---- gemm_s8.cu ------------------------------------------------------------------------------------------------- */
/* Where few tiles would leave multiprocessors idle, several blocks share a tile's k ("split"): they meet in the workspace, whose first
 * FB_COUNTER_BYTES count them. A run leaves these bytes zero, so a workspace that is kept for such products alone and was zeroed once saves a
 * launch: zeroed = 1. One workspace serves one run at a time. Workspaces are aligned to 16. */
enum { FB_COUNTER_BYTES = 4096 };
typedef struct fb_gemm_s8 {
  int64_t m, n, k;       /* C [m, n] = epilogue(A [m, k] x B [n, k]^T); k of the buffers: lda, ldb. k <= 65792, so that sums fit int32 */
  int64_t lda, ldb, ldc; /* lda, ldb multiples of 16, the padding up to the next multiple of 16 zero in A or in B; A and B aligned to 16 */
  int a_rows;            /* 1: a_scale and a_zero have m entries, 0: one */
  int act;               /* FB_ACT_* */
  float act_min, act_max;
  int out;               /* FB_F32, FB_F16, FB_S8 (with out_scale, out_zero), FB_S32 (the raw corrected accumulator, no epilogue) */
  float out_scale;       /* FB_S8: q = clamp(rne(y / out_scale) + out_zero, -128, 127) */
  int32_t out_zero;      /* s8 zero point */
  int residual;          /* type of the residual [m, ldc]: FB_F32 or FB_F16; read only where the pointer is not NULL */
  int config;            /* 0: fb_gemm_s8_pick chooses; otherwise 1 + an index into the table (tests, tuning) */
  int split;             /* with a config: blocks along k; 0: fb_gemm_s8_pick chooses */
  int zeroed;            /* 1: the counters of the workspace are zero already */
} fb_gemm_s8;
/* acc = sum_k A*B - a_zero * b_sum (int32, exact); y = act(acc * (a_scale * b_scale[n]) + bias[n]) + residual.
 * b_sum [n] = sum of row n of B (fb_row_sums). bias and residual may be NULL; so may a_zero and b_sum (no zero points), and for FB_S32 the scales.
 * C may be the residual. */
int fb_gemm_s8_run(const fb_gemm_s8 *d, const int8_t *a, const float *a_scale, const int32_t *a_zero, const int8_t *b, const float *b_scale,
                   const int32_t *b_sum, const float *bias, const void *residual, void *c, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_gemm_s8_workspace(const fb_gemm_s8 *d); /* on the current device; 0 where none is needed */
/* Pure: the configuration that d gets on a device, printed into text (host, may be NULL); returns its index in the table, < 0 for none. */
int fb_gemm_s8_pick(const fb_gemm_s8 *d, const fb_device_info *dev, char *text, size_t text_bytes);
int fb_gemm_s8_configs(void);
int fb_row_sums(const int8_t *b, int64_t n, int64_t k, int64_t ldb, int32_t *sums, fb_stream s);

/* ---- gemm_w4.cu: weights in INT4 blocks ------------------------------------------------------------------------- */
typedef struct fb_gemm_w4 {
  int64_t m, n, k;     /* k a multiple of 32 and of block */
  int64_t lda, ldc;    /* rows of A are multiples of 16 bytes, A aligned to 16 */
  int block;           /* 32, 64, a multiple of 128, or k */
  int a;               /* FB_F16 (W4A16) or FB_S8 (W4A8: a_scale [m], a_zero [m] or NULL) */
  int act;
  float act_min, act_max;
  int out;             /* FB_F32 or FB_F16 */
  int residual;        /* FB_F32 or FB_F16 */
  int config, split, zeroed; /* as in fb_gemm_s8 */
} fb_gemm_w4;
/* Offline: q [n, k/2] as fb_quantize_blocks_s4 writes it -> the order the kernel reads, n rounded up to n32 = a multiple of 32: packed n32 * k / 2
 * bytes. scale [n, k/block] f32 -> packed_scale [k/block + 1, n32]: the scales, and in the last row the sums of the dequantized weights, for zero
 * points. Both aligned to 16. */
int fb_w4_pack(const uint8_t *q, const float *scale, int64_t n, int64_t k, int block, uint8_t *packed, float *packed_scale, fb_stream s);
/* y = act(sum_k a * (q - 8) * scale + bias) + residual, with a = A (f16) or (A - a_zero) * a_scale (s8). Sums are f32; those of
 * s8 are exact over a block, or 128 of k in larger ones. C may be the residual. */
int fb_gemm_w4_run(const fb_gemm_w4 *d, const void *a, const float *a_scale, const int32_t *a_zero, const uint8_t *packed, const float *packed_scale,
                   const float *bias, const void *residual, void *c, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_gemm_w4_workspace(const fb_gemm_w4 *d);
int fb_gemm_w4_pick(const fb_gemm_w4 *d, const fb_device_info *dev, char *text, size_t text_bytes); /* as fb_gemm_s8_pick */
int fb_gemm_w4_configs(void);

/* ---- gemm_float.cu: what stays in float ------------------------------------------------------------------------- */
typedef struct fb_gemm_float {
  int64_t m, n, k, lda, ldb, ldc;
  int64_t batch, stride_a, stride_b, stride_c; /* batch >= 1; a stride of 0 shares the operand */
  int trans_b;  /* 1: B is [n, k]; 0: [k, n] */
  int in;       /* FB_F32 (true FP32 fma), FB_F16 (tensor cores, f32 accumulators; by fma before sm_80) */
  int tf32;     /* FB_F32 inputs rounded to TF32 on tensor cores: calibration forward. Up to 8 rows, and all before sm_80, are true FP32 */
  int out;      /* FB_F32, FB_F16 */
  int act; float act_min, act_max;
  float alpha;
  int own;      /* 1: never cuBLASLt */
} fb_gemm_float;
/* y = act(alpha * sum_k A*B + bias[n]) + residual, for each item of the batch. bias and residual (f32, which lies as C) may be NULL; C may be
 * the residual. Any alignment and shape; rows of multiples of 16 bytes are fast. The same bits every time. More than 8 rows of FB_F16 or tf32 go
 * through cuBLASLt where it is installed and out is FB_F32, without an activation or with FB_ACT_RELU and no residual. */
int fb_gemm_float_run(const fb_gemm_float *d, const void *a, const void *b, const float *bias, const void *residual_f32, void *c, fb_stream s);
/* Describes the kernel that d gets on a device, of operands whose rows are multiples of 16 bytes; FB_OK or FB_BAD_ARGUMENT. Pure. */
int fb_gemm_float_pick(const fb_gemm_float *d, const fb_device_info *dev, char *text, size_t text_bytes);

/* ---- cublaslt.cu: NVIDIA's library, opened at run time -------------------------------------------------------------- */
/* 1 where it is used; text (host) gets its version, or why not. A device must be current. */
int fb_cublaslt(char *text, size_t text_bytes);
/* Before the device's context goes: with lost, after it went. */
void fb_cublaslt_reset(int lost);

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
/* mask: additive f32 [batch, mask_heads ? heads : 1, mask_q ? q_len : 1, kv_len] or NULL; key_lengths [batch] s32 or NULL: keys from it on take no
 * part, unless it is below 1. causal: query i sees keys up to i + kv_len - q_len >= i. out f32 or f16 as in. A query whose keys are all masked by
 * the same amount, -inf counting as -FLT_MAX, gets the softmax of what that leaves equal, and no NaN (attention.cuh).
 * Before sm_80, and where rows do not start at multiples of 16 bytes, scores is FB_F32. FB_F16 and FB_S8 round V, and FB_F16 Q and K, to f16. */
int fb_attention_run(const fb_attention *d, const void *q, const void *k, const void *v, const float *mask, const int32_t *key_lengths, void *out, fb_stream s);

/* ---- conv.cu: NHWC, s8 -------------------------------------------------------------------------------------------- */
typedef struct fb_conv_s8 {
  int n, h, w, c;             /* input [n, h, w, c], at most 2^30 elements; c per group times groups */
  int oc, kh, kw, oh, ow;     /* weight [oc, kh, kw, c / groups] s8, kh kw c/groups <= 65792; output [n, oh, ow, oc], fewer than 2^31 - 2^15 pixels */
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w, groups; /* pads at the start; those at the end follow from oh, ow */
  float x_scale; int32_t x_zero;     /* of the input, s8 zero point; padding reads x_zero */
  int act; float act_min, act_max;
  int out;                           /* FB_S8 or FB_F32 */
  float out_scale; int32_t out_zero; /* of FB_S8: q = clamp(rne(y / out_scale) + out_zero, -128, 127); scale within 2^+-100 */
  float residual_scale; int32_t residual_zero; /* residual [n, oh, ow, oc] s8: y += (r - zero) * scale, before act */
  int config;                        /* as in fb_gemm_s8: 0, or 1 + an index into the table */
  int split, zeroed;                 /* as in fb_gemm_s8: blocks along k (0: chosen); counters at the start of the workspace are zero */
} fb_conv_s8;
/* acc = sum (x - x_zero) * w exactly (int32); y = act(acc * (x_scale * w_scale[oc]) + bias[oc] + residual). w_sum [oc] = sum of
 * each filter (fb_row_sums with k = kh kw c/groups), NULL where x_zero is 0. x and w aligned to 16. bias and residual may be NULL;
 * y may be the residual. */
int fb_conv_s8_run(const fb_conv_s8 *d, const int8_t *x, const int8_t *w, const float *w_scale, const int32_t *w_sum, const float *bias, const int8_t *residual,
                   void *y, void *workspace, size_t workspace_bytes, fb_stream s);
size_t fb_conv_s8_workspace(const fb_conv_s8 *d);
int fb_conv_s8_pick(const fb_conv_s8 *d, const fb_device_info *dev, char *text, size_t text_bytes); /* as fb_gemm_s8_pick */
int fb_conv_s8_configs(void);
/* ---- conv_float.cu: what stays in float, NCHW ---------------------------------------------------------------------- */
/* How floats multiply; sums are f32. On tensor cores operands are rounded: to TF32, 10 bits behind the point, or to F16, infinite past 65504. */
enum { FB_PRODUCTS_FP32 = 0, FB_PRODUCTS_TF32 = 1, FB_PRODUCTS_FP16 = 2 };
/* Same geometry and activation; x [n, c, h, w], w [oc, c/groups, kh, kw], y and residual [n, oc, oh, ow], all f32, but w f16 for
 * FB_PRODUCTS_FP16. Groups of fewer than 8 filters, and all before sm_80, multiply x and w as they are. The same bits every time. */
int fb_conv_float(const fb_conv_s8 *geometry, int products, const float *x, const void *w, const float *bias, const float *residual, float *y, fb_stream s);
int fb_conv_float_pick(const fb_conv_s8 *geometry, int products, const fb_device_info *dev, char *text, size_t text_bytes); /* as fb_gemm_float_pick */

/* ---- norm.cu ------------------------------------------------------------------------------------------------------ */
/* y = LayerNorm(x + residual) * gamma + beta over the last axis; any of sum, y, q may be NULL: sum [m, k] receives x + residual;
 * q/scale/zero the rows of y quantized as by fb_quantize_rows with the same divisor. residual, beta, divisor may be NULL. sum and y may be x or
 * residual. */
int fb_layer_norm(const float *x, const float *residual, const float *gamma, const float *beta, int64_t m, int64_t k, float epsilon, float *sum, float *y,
                  const float *divisor, int8_t *q, int64_t ldq, float *scale, int32_t *zero, fb_stream s);
/* Of each row; y may be x. A row of -inf is uniform. */
int fb_softmax(const float *x, int64_t m, int64_t k, float *y, fb_stream s);

/* ---- embed.cu ----------------------------------------------------------------------------------------------------- */
/* Sum of up to three tables by id: out [tokens, dim] f32. bits 32: f32 rows; 8: s8 rows with scale [rows]; 4: INT4 blocks as fb_quantize_blocks_s4 of `block`.
 * An id outside [0, rows) (negative counts from the end, as ONNX Gather) sets *fault to 1 and reads row 0. */
typedef struct fb_embed_table { const void *rows; const float *scale; const int64_t *ids; int64_t count; int64_t ids_period; int bits, block; const int32_t *zero; } fb_embed_table; /* ids_period: ids[i % ids_period], 0 = tokens; zero [rows] for bits 8, or NULL */
int fb_embed(const fb_embed_table *tables /* host */, int n_tables, int64_t tokens, int64_t dim, float *out, int32_t *fault, fb_stream s);

/* ---- pool.cu ------------------------------------------------------------------------------------------------------ */
typedef struct fb_pool {
  int n, h, w, c, oh, ow, kh, kw, stride_h, stride_w;
  int pad_h, pad_w, pad_h_end, pad_w_end; /* smaller than the kernel; those at the end matter for count_include_pad only: windows that ceil_mode lets
                                             reach further are cut there when counted */
  int average, count_include_pad;
  int nhwc; /* layout of x and y */
} fb_pool;
/* Tensors hold fewer than 2^31 elements. A maximum ignores NaN. */
int fb_pool_f32(const fb_pool *d, const float *x, float *y, fb_stream s);
/* NHWC. Maximum and sum are exact; y = max (x - x_zero) * x_scale, or sum (x - x_zero) * x_scale / count; q = clamp(rne(y / y_scale) + y_zero).
 * Padding stands for 0 in an average. */
int fb_pool_s8(const fb_pool *d, const int8_t *x, float x_scale, int32_t x_zero, int8_t *y, float y_scale, int32_t y_zero, fb_stream s);
/* [n, c, hw] (or [n, hw, c]) f32 -> [n, c] */
int fb_global_average_f32(const float *x, int n, int c, int64_t hw, int nhwc, float *y, fb_stream s);
/* Masked mean over tokens: x [b, t, d], mask [b, t] f32 -> [b, d] = sum(x mask) / max(sum(mask), 1e-9) */
int fb_masked_mean(const float *x, const float *mask, int64_t b, int64_t t, int64_t d, float *y, fb_stream s);

/* ---- elementwise.cu: ONNX operators, one value out for one of each input. The output may be an input of the same type and
 * shape (in place). ------------------------------------------------------------------------------------------------- */
enum { FB_RANK = 6 };
typedef struct fb_view { int rank; int64_t dims[FB_RANK], strides[FB_RANK]; } fb_view; /* outermost first; strides in elements, 0 broadcasts, negative reads backwards */
enum { FB_ADD = 0, FB_SUB, FB_MUL, FB_DIV, FB_POW, FB_MIN, FB_MAX, FB_EQUAL, FB_LESS, FB_GREATER, FB_AND, FB_OR };
enum { FB_ABS = 32, FB_NEG, FB_EXP, FB_LOG, FB_SQRT, FB_RECIPROCAL, FB_ERF, FB_TANH, FB_SIGMOID, FB_NOT, FB_FLOOR, FB_CEIL, FB_SIN, FB_COS, FB_HARDSIGMOID, FB_HARDSWISH, FB_LEAKY_RELU };
/* y is dense over out->dims; a and b are read over out->dims with the strides of their views (whose dims are not looked at).
 * type of a and b: FB_F32, FB_S64, FB_S32, FB_U8 or FB_BOOL; comparisons, FB_AND and FB_OR write FB_BOOL, and the latter two
 * take bytes only. Integers wrap, division truncates (by zero: 0), a negative power is the real one truncated. FB_MIN and
 * FB_MAX of a NaN are NaN. */
int fb_binary(int op, int type, const fb_view *out, const void *a, const fb_view *av, const void *b, const fb_view *bv, void *y, fb_stream s);
/* FB_ABS.. or FB_ACT_*, of f32; FB_NOT reads and writes FB_BOOL. p0, p1: bounds of FB_ACT_CLIP, alpha and beta of
 * FB_HARDSIGMOID, alpha of FB_LEAKY_RELU. */
int fb_unary(int op, const void *x, int64_t n, float p0, float p1, void *y, fb_stream s);
int fb_where(int size /* bytes of an element: 1, 4, 8 */, const fb_view *out, const uint8_t *cond, const fb_view *cv, const void *a, const fb_view *av, const void *b, const fb_view *bv, void *y, fb_stream s);
/* As ONNX Runtime on x86-64: floats truncate to s32 (s64 for s64 and u32), whose lowest value stands for NaN and what lies
 * outside, and narrower integers take the low bits; FB_BOOL is x != 0. */
int fb_cast(int from, int to, const void *x, int64_t n, void *y, fb_stream s);

/* ---- layout.cu: moving elements ----------------------------------------------------------------------------------- */
/* y[dst strides] = x[src strides] over src->dims: transpose, slice, concat, expand. size 1, 2, 4 or 8. No element of y is
 * written twice, so a stride of 0 in dst needs a dimension of 1. x and y do not overlap. */
int fb_copy(int size, const fb_view *src, const void *x, const fb_view *dst, void *y, fb_stream s);
/* x [outer, axis, inner] with ids [n_ids] -> [outer, n_ids, inner]; size bytes an element: 1, 2, 4 or 8; ids s64, negative
 * ones count from the end; one outside the axis reads index 0 and sets *fault (may be NULL) to 1. */
int fb_gather(int size, const void *x, int64_t outer, int64_t axis, int64_t inner, const int64_t *ids, int64_t n_ids, void *y, int32_t *fault, fb_stream s);
/* Between the layouts of float and integer convolutions. q [n, h*w, ldc] s8 on the u8 grid (scale, zero_u8); channels c..ldc-1
 * hold the zero point, so that they stand for 0. */
int fb_nchw_to_nhwc_s8(const float *x, int64_t n, int64_t c, int64_t hw, float scale, int32_t zero_u8, int8_t *q, int64_t ldc, fb_stream s);
int fb_nhwc_s8_to_nchw(const int8_t *q, int64_t n, int64_t c, int64_t hw, int64_t ldc, float scale, int32_t zero_s8, float *x, fb_stream s);

/* ---- reduce.cu ---------------------------------------------------------------------------------------------------- */
enum { FB_REDUCE_SUM = 0, FB_REDUCE_MEAN, FB_REDUCE_MAX, FB_REDUCE_MIN, FB_REDUCE_L2 };
/* x [outer, axis, inner] f32 -> [outer, inner], always in the same order. Of an empty axis: 0, -inf or +inf. outer < 2^31 where
 * inner is 1. */
int fb_reduce(int op, const float *x, int64_t outer, int64_t axis, int64_t inner, float *y, fb_stream s);

/* The table of entries, for tests and for people: name and family. */
typedef struct fb_entry { const char *name, *family; } fb_entry;
const fb_entry *fb_entries(int *count);

#ifdef __cplusplus
}
#endif
#endif

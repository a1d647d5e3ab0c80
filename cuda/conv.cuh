// conv.cuh: convolution of NHWC s8 as a product of matrices that is never stored
// (implicit GEMM): C [m, oc] = im2col(x) [m, k] x w [oc, k]^T with m = n oh ow
// output pixels and k = kh kw c.
//
// A chunk of 16 bytes along k lies in one tap of the filter where the channels
// of a group are a multiple of 16, and is one cp.async; with a multiple of 8 or
// 4 it is two or four smaller ones, otherwise (images of 3 channels) single
// bytes that pass through registers. What a tap reads outside the image comes
// from a table that holds the zero point: padding stands for 0 and w_sum, the
// sum over all taps, stays the right correction everywhere.
//
// Tiles of 64 bytes along k; shared memory is swizzled as in gemm_s8.cuh.
#pragma once
#include "requantize.cuh"
#include "splitk.cuh"
#include "strided.cuh"

struct ConvEpilogue {
  const float *w_scale; // [oc]
  const int32_t *w_sum; // [oc], or NULL where x_zero is 0
  const float *bias;    // [oc] or NULL
  const int8_t *residual;
  void *y;
  float x_scale, residual_scale, act_min, act_max;
  int x_zero, residual_zero, oc, act;
  bool s8, vector; // output type; 4 neighbouring channels of a group are aligned everywhere
  FbRequantize grid;
};

// What the epilogue needs of 4 output channels.
struct ConvColumns {
  float scale[4], bias[4];
  uint32_t correction[4];
  int count;
};

__device__ __forceinline__ ConvColumns conv_columns(const ConvEpilogue &e, int oc, int count) {
  ConvColumns c;
  c.count = count < 4 ? count : 4;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const bool in = j < c.count;
    c.scale[j] = in ? fb_mul(e.x_scale, e.w_scale[oc + j]) : 0.f;
    c.bias[j] = in && e.bias ? e.bias[oc + j] : 0.f;
    c.correction[j] = in && e.w_sum ? (uint32_t)e.x_zero * (uint32_t)e.w_sum[oc + j] : 0u;
  }
  return c;
}

// y[m, oc..oc+3] = act((acc - x_zero w_sum) * scale + bias + residual). The difference is exact: what overflows on the
// way wraps back, since the host bounds k.
__device__ __forceinline__ void conv_store4(const ConvEpilogue &e, const ConvColumns &c, int64_t m, int oc, const int (&acc)[4]) {
  const int64_t at = m * e.oc + oc;
  float y[4];
#pragma unroll
  for (int j = 0; j < 4; j++) y[j] = fb_add(fb_mul((float)(int)((uint32_t)acc[j] - c.correction[j]), c.scale[j]), c.bias[j]);
  const bool vector = e.vector && c.count == 4;
  if (e.residual) {
    uint32_t r = 0;
    if (vector) {
      r = *reinterpret_cast<const uint32_t *>(e.residual + at);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < c.count) r |= (uint32_t)(uint8_t)e.residual[at + j] << 8 * j;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = fb_add(y[j], fb_mul((float)((int8_t)(r >> 8 * j) - e.residual_zero), e.residual_scale));
  }
  if (e.act != FB_ACT_NONE) {
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = fb_activate(e.act, y[j], e.act_min, e.act_max);
  }
  if (e.s8) {
    const uint32_t q = fb_requantize4(e.grid, y);
    int8_t *to = static_cast<int8_t *>(e.y) + at;
    if (vector) {
      *reinterpret_cast<uint32_t *>(to) = q;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < c.count) to[j] = (int8_t)(q >> 8 * j);
    }
  } else {
    float *to = static_cast<float *>(e.y) + at;
    if (vector) {
      *reinterpret_cast<float4 *>(to) = make_float4(y[0], y[1], y[2], y[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (j < c.count) to[j] = y[j];
    }
  }
}

struct ConvArgs {
  const int8_t *x, *filter;
  int h, w, c, ow, kh, kw;
  int stride_h, stride_w, pad_h, pad_w, dil_h, dil_w;
  int cg, og, k; // channels of a group in and out, kh kw cg
  int m; // < 2^31 - 2^15, so that the last tile's rows can be counted
  FbDivisor by_ow, by_ohw, by_cg, by_kw;
  int step_c, step_w, step_h; // 64 bytes of k: channels, taps across (times dil_w), taps down (times dil_h)
  int tiles_m, tiles_n;  // of pixels, of the channels of a group
  int split, k_tiles;    // parts along k, and tiles of k in each
    void *workspace;
  ConvEpilogue e;
};

// 16 bytes of each s8 value, for padding.
struct ConvPadding {
  alignas(16) int8_t of[256][16];
};
constexpr ConvPadding conv_make_padding() {
  ConvPadding p{};
  for (int v = 0; v < 256; v++)
    for (int j = 0; j < 16; j++) p.of[v][j] = (int8_t)(v - 128);
  return p;
}
static __device__ const ConvPadding conv_padding = conv_make_padding();

constexpr int kConvBK = 64, kConvChunks = kConvBK / 16;
__device__ __forceinline__ int conv_at(int row, int chunk) { return row * kConvBK + ((chunk ^ (row >> 1 & 3)) << 4); }

// ROWS output pixels by 64 bytes of k, walking along k. POINT: one tap, always inside.
template <int ROWS, int THREADS, int VEC, bool POINT>
struct ConvPixels {
  static constexpr int kStep = THREADS / kConvChunks, kLoads = ROWS / kStep;
  static_assert(ROWS % kStep == 0 && kStep % 8 == 0, "every thread loads as often, its rows alike in the swizzle");
  const ConvArgs &p;
  const int8_t *x, *pad;
  int base[kLoads]; // of tap 0 in x; POINT: < 0 for rows past the last
  int h[POINT ? 1 : kLoads], w[POINT ? 1 : kLoads];
  int ci, dw, dh; // of the thread's chunk: channel, tap across and down, both times the dilation
  int place;

  __device__ __forceinline__ ConvPixels(const ConvArgs &args, int group, int m0, int k0) : p(args) {
    x = p.x + group * p.cg;
    pad = conv_padding.of[p.e.x_zero + 128];
    const int row = (int)threadIdx.x / kConvChunks, chunk = (int)threadIdx.x % kConvChunks;
    place = conv_at(row, chunk);
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      const int m = m0 + row + i * kStep;
      const uint32_t at = m < p.m ? (uint32_t)m : 0u;
      const uint32_t image = p.by_ohw.quotient(at), pixel = at - image * p.by_ohw.divisor, oh = p.by_ow.quotient(pixel);
      const int ih = (int)oh * p.stride_h - p.pad_h, iw = (int)(pixel - oh * p.by_ow.divisor) * p.stride_w - p.pad_w;
      base[i] = (int)(((image * p.h + ih) * p.w + iw) * (uint32_t)p.c); // may begin outside: then no tap of that address is read
      if (POINT) {
        if (m >= p.m) base[i] = -1;
      } else {
        h[i] = m < p.m ? ih : -(1 << 30), w[i] = iw; // no tap brings such a row into the image
      }
    }
    const uint32_t k = (uint32_t)k0 + chunk * 16, tap = p.by_cg.quotient(k), r = p.by_kw.quotient(tap);
    ci = (int)(k - tap * p.by_cg.divisor);
    dw = (int)(tap - r * p.by_kw.divisor) * p.dil_w;
    dh = (int)r * p.dil_h;
    if (POINT) ci = (int)k; // one tap: no carry
  }
  // Calls f(q, i, address) for each piece of VEC bytes and each row, UNROLL pieces at a time.
  template <int UNROLL, class F>
  __device__ __forceinline__ void pieces(F f) const {
    int c = ci, s = dw, r = dh;
#pragma unroll UNROLL
    for (int q = 0; q < 16; q += VEC) {
      const bool tap = POINT ? c < p.cg : r < p.kh * p.dil_h; // past k the weights are zero
      const int offset = POINT ? c : (r * p.w + s) * p.c + c;
#pragma unroll
      for (int i = 0; i < kLoads; i++) {
        const bool in = tap && (POINT ? base[i] >= 0 : (unsigned)(h[POINT ? 0 : i] + r) < (unsigned)p.h && (unsigned)(w[POINT ? 0 : i] + s) < (unsigned)p.w);
        f(q, i, in ? x + (base[i] + offset) : pad);
      }
      c += VEC;
      if (!POINT && c >= p.cg) {
        c = 0;
        s += p.dil_w;
        if (s >= p.kw * p.dil_w) s = 0, r += p.dil_h;
      }
    }
  }
  __device__ __forceinline__ void copy(unsigned char *to) const {
    if constexpr (VEC >= 4) {
      pieces<(VEC > 4 ? 2 : 1)>([&](int q, int i, const int8_t *from) { fb_cp_async<VEC>(to + place + i * kStep * kConvBK + q, from, true); });
    } else {
      int4 v[kLoads];
      fetch(v);
#pragma unroll
      for (int i = 0; i < kLoads; i++) *reinterpret_cast<int4 *>(to + place + i * kStep * kConvBK) = v[i];
    }
  }
  __device__ __forceinline__ void fetch(int4 (&v)[kLoads]) const {
    uint32_t word[kLoads][4] = {};
    pieces<16>([&](int q, int i, const int8_t *from) {
      if constexpr (VEC == 16) {
        v[i] = *reinterpret_cast<const int4 *>(from);
      } else if constexpr (VEC >= 4) {
#pragma unroll
        for (int b = 0; b < VEC; b += 4) word[i][(q + b) / 4] = *reinterpret_cast<const uint32_t *>(from + b);
      } else {
        word[i][q / 4] |= (uint32_t)(uint8_t)*from << 8 * (q % 4);
      }
    });
    if constexpr (VEC < 16) {
#pragma unroll
      for (int i = 0; i < kLoads; i++) v[i] = make_int4((int)word[i][0], (int)word[i][1], (int)word[i][2], (int)word[i][3]);
    }
  }
  __device__ __forceinline__ void advance() {
    if (POINT) {
      ci += kConvBK;
      return;
    }
    ci += p.step_c, dw += p.step_w, dh += p.step_h;
    if (ci >= p.cg) ci -= p.cg, dw += p.dil_w;
    if (dw >= p.kw * p.dil_w) dw -= p.kw * p.dil_w, dh += p.dil_h;
  }
};

// ROWS output channels by 64 bytes of k. What lies outside is zero.
template <int ROWS, int THREADS, int VEC>
struct ConvWeights {
  static constexpr int kStep = THREADS / kConvChunks, kLoads = ROWS / kStep;
  static_assert(ROWS % kStep == 0 && kStep % 8 == 0, "every thread loads as often, its rows alike in the swizzle");
  const int8_t *from;
  int stride, rows, left, place;

  __device__ __forceinline__ ConvWeights(const ConvArgs &p, int group, int n0, int k0) {
    const int row = (int)threadIdx.x / kConvChunks, chunk = (int)threadIdx.x % kConvChunks;
    from = p.filter + ((int64_t)group * p.og + n0 + row) * p.k + k0 + chunk * 16;
    stride = kStep * p.k;
    rows = p.og - n0 - row;
    left = p.k - k0 - chunk * 16;
    place = conv_at(row, chunk);
  }
  __device__ __forceinline__ void copy(unsigned char *to) const {
    if constexpr (VEC >= 4) {
#pragma unroll
      for (int i = 0; i < kLoads; i++)
#pragma unroll
        for (int q = 0; q < 16; q += VEC) fb_cp_async<VEC>(to + place + i * kStep * kConvBK + q, from + i * stride + q, i * kStep < rows && q < left);
    } else {
      int4 v[kLoads];
      fetch(v);
#pragma unroll
      for (int i = 0; i < kLoads; i++) *reinterpret_cast<int4 *>(to + place + i * kStep * kConvBK) = v[i];
    }
  }
  __device__ __forceinline__ void fetch(int4 (&v)[kLoads]) const {
#pragma unroll
    for (int i = 0; i < kLoads; i++) {
      uint32_t word[4] = {};
      const int8_t *row = from + i * stride;
#pragma unroll
      for (int q = 0; q < 16; q += VEC) {
        if (i * kStep >= rows || q >= left) continue;
        if constexpr (VEC == 16) {
          memcpy(word, __builtin_assume_aligned(row, 16), 16);
        } else if constexpr (VEC >= 4) {
#pragma unroll
          for (int b = 0; b < VEC; b += 4) word[(q + b) / 4] = *reinterpret_cast<const uint32_t *>(row + q + b);
        } else {
          word[q / 4] |= (uint32_t)(uint8_t)row[q] << 8 * (q % 4);
        }
      }
      v[i] = make_int4((int)word[0], (int)word[1], (int)word[2], (int)word[3]);
    }
  }
  __device__ __forceinline__ void advance() {
    from += kConvBK;
    left -= kConvBK;
  }
};

// Which tile of which group a block has. Neighbouring blocks share pixels, which are more than the weights.
struct ConvTile {
  int part, group, m0, n0, k0, count; // count: tiles of k
  uint32_t index;
};
__device__ __forceinline__ ConvTile conv_tile(const ConvArgs &p, int bm, int bn) {
  ConvTile t;
  t.index = blockIdx.x / (uint32_t)p.split;
  t.part = (int)(blockIdx.x - t.index * (uint32_t)p.split);
  const uint32_t row = t.index / (uint32_t)p.tiles_n;
  t.group = (int)(row / (uint32_t)p.tiles_m);
  t.n0 = (int)(t.index - row * (uint32_t)p.tiles_n) * bn;
  t.m0 = (int)(row - (uint32_t)t.group * (uint32_t)p.tiles_m) * bm;
  t.k0 = t.part * p.k_tiles * kConvBK;
  const int total = (p.k + kConvBK - 1) / kConvBK - t.part * p.k_tiles;
  t.count = total < p.k_tiles ? total : p.k_tiles;
  return t;
}

// ---- tensor cores: WM x WN warps share a tile of BM x BN, kept in STAGES of shared memory
template <int BM, int BN, int WM, int WN, int STAGES>
struct ConvMma {
  static constexpr int kThreads = 32 * WM * WN, kWarpM = BM / WM, kWarpN = BN / WN, kMT = kWarpM / 16, kNT = kWarpN / 8;
  static constexpr int kStage = (BM + BN) * kConvBK;
  // Epilogue: a warp turns 16 rows x kCols columns at a time. 8 more columns, so that neither writes of two columns by
  // 16 lanes nor reads of four by 8 lanes meet a bank twice.
  static constexpr int kCols = kNT >= 4 ? 32 : kNT * 8, kPitch = kCols + 8;
  static constexpr int kShared = STAGES * kStage;
  static_assert(kMT * 16 * WM == BM && kNT % 2 == 0 && kNT * 8 * WN == BN && kNT * 8 % kCols == 0, "whole mma tiles");
  static_assert(WM * WN * 16 * kPitch * 4 <= kShared, "the epilogue's staging fits into the stages");
};

template <int BM, int BN, int WM, int WN, int STAGES, int VEC, bool POINT, int RESIDENT>
__global__ void __launch_bounds__(32 * WM *WN, RESIDENT) conv_s8_mma(const ConvArgs p) {
  using C = ConvMma<BM, BN, WM, WN, STAGES>;
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(int, last, 1);
  const int lane = fb_lane(), warp = (int)threadIdx.x >> 5, wm = warp / WN, wn = warp % WN;
  const ConvTile t = conv_tile(p, BM, BN);
  ConvPixels<BM, C::kThreads, VEC, POINT> pixels(p, t.group, t.m0, t.k0);
  ConvWeights<BN, C::kThreads, VEC> weights(p, t.group, t.n0, t.k0);

  auto copy = [&](int kt, int stage) {
    if (kt < t.count) {
      pixels.copy(shared + stage);
      weights.copy(shared + stage + BM * kConvBK);
      pixels.advance();
      weights.advance();
    }
    fb_cp_commit(); // an empty group too: the waits count groups
  };

  int acc[C::kMT][C::kNT][4] = {};
  uint32_t a[2][C::kMT][4], b[2][C::kNT / 2][4];
  // ldmatrix x4. A: rows 0-7 and 8-15 of 16 bytes, then the next 16 bytes. B: both 16 bytes of rows 0-7, then of 8-15.
  const int a_row = wm * C::kWarpM + (lane & 15), a_chunk = lane >> 4;
  const int b_row = wn * C::kWarpN + (lane & 7) + (lane >> 4 << 3), b_chunk = lane >> 3 & 1;
  auto fragments = [&](int stage, int step) {
    const unsigned char *at = shared + stage + conv_at(a_row, step * 2 + a_chunk);
#pragma unroll
    for (int i = 0; i < C::kMT; i++) fb_ldmatrix_x4(a[step][i], at + i * 16 * kConvBK);
    at = shared + stage + BM * kConvBK + conv_at(b_row, step * 2 + b_chunk);
#pragma unroll
    for (int j = 0; j < C::kNT / 2; j++) fb_ldmatrix_x4(b[step][j], at + j * 16 * kConvBK);
  };
  auto multiply = [&](int step) {
#pragma unroll
    for (int j = 0; j < C::kNT; j++)
#pragma unroll
      for (int i = 0; i < C::kMT; i++) fb_mma_s8(acc[i][j], a[step][i], b[step][j / 2][j % 2 * 2], b[step][j / 2][j % 2 * 2 + 1]);
  };

#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s, s * C::kStage);
  fb_cp_wait<STAGES - 2>();
  __syncthreads();
  fragments(0, 0);
  int reading = 0, writing = (STAGES - 1) * C::kStage; // stages, as offsets
#pragma unroll 1
  for (int kt = 0; kt < t.count; kt++) {
    fragments(reading, 1);
    copy(kt + STAGES - 1, writing); // into the stage that the last barrier freed
    multiply(0);
    // Nobody reads this stage after the barrier, and everybody's part of the next one has arrived.
    fb_cp_wait<STAGES - 2>();
    __syncthreads();
    writing = reading;
    reading = reading == (STAGES - 1) * C::kStage ? 0 : reading + C::kStage;
    fragments(reading, 0); // of no use, and none of harm, after the last tile
    multiply(1);
  }
  if (p.split > 1) {
    if (!fb_split_sum<C::kThreads, C::kMT * C::kNT>(reinterpret_cast<int(&)[C::kMT * C::kNT][4]>(acc), p.workspace, t.index, t.part, p.split, last)) return;
  }
  __syncthreads(); // the last fragments are read: the stages are free

  int *stage = reinterpret_cast<int *>(shared) + warp * 16 * C::kPitch;
  constexpr int kTiles = C::kCols / 8, kAcross = C::kNT / kTiles, kLanes = C::kCols / 4, kRows = 32 / kLanes;
  const int g = lane >> 2, pair = (lane & 3) * 2;
  ConvColumns columns;
  int col = 0;
  // One copy of the code, whatever the number of chunks: the registers of a chunk are chosen by a uniform branch, since
  // they cannot be indexed.
#pragma unroll 1
  for (int chunk = 0; chunk < C::kMT * kAcross; chunk++) {
    const int across = chunk / C::kMT, down = chunk % C::kMT;
    if (down == 0) {
      col = t.n0 + wn * C::kWarpN + across * C::kCols + lane % kLanes * 4;
      columns = conv_columns(p.e, t.group * p.og + col, p.og - col);
    }
#pragma unroll
    for (int i = 0; i < C::kMT * kAcross; i++)
      if (i == chunk) {
#pragma unroll
        for (int j = 0; j < kTiles; j++) {
          const int(&v)[4] = acc[i % C::kMT][i / C::kMT * kTiles + j];
          int *to = stage + g * C::kPitch + j * 8 + pair;
          to[0] = v[0], to[1] = v[1];
          to[8 * C::kPitch] = v[2], to[8 * C::kPitch + 1] = v[3];
        }
      }
    __syncwarp();
#pragma unroll 1
    for (int r = lane / kLanes; r < 16; r += kRows) {
      const int m = t.m0 + wm * C::kWarpM + down * 16 + r;
      int v[4];
      const int4 bits = *reinterpret_cast<const int4 *>(stage + r * C::kPitch + lane % kLanes * 4);
      memcpy(v, &bits, 16);
      if (m < p.m && columns.count > 0) conv_store4(p.e, columns, m, t.group * p.og + col, v);
    }
    __syncwarp();
  }
}

// ---- dp4a: 128 threads, each 4 pixels x 8 channels of 64 x 64, the next tile on its way through registers
constexpr int kConvDp4aTile = 64, kConvDp4aThreads = 128, kConvDp4aPitch = kConvDp4aTile + 8;
constexpr int kConvDp4aShared = kConvDp4aTile * kConvDp4aPitch * 4; // of the epilogue, more than two tiles of 64 x 64 bytes

template <int VEC>
__global__ void __launch_bounds__(kConvDp4aThreads) conv_s8_dp4a(const ConvArgs p) {
  constexpr int kTile = kConvDp4aTile, kThreads = kConvDp4aThreads;
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(int, last, 1);
  const int tx = (int)threadIdx.x & 7, ty = (int)threadIdx.x >> 3;
  const ConvTile t = conv_tile(p, kTile, kTile);
  using Pixels = ConvPixels<kTile, kThreads, VEC, false>;
  using Weights = ConvWeights<kTile, kThreads, VEC>;
  Pixels pixels(p, t.group, t.m0, t.k0);
  Weights weights(p, t.group, t.n0, t.k0);
  unsigned char *sa = shared, *sb = shared + kTile * kConvBK;
  int4 next_a[Pixels::kLoads], next_b[Weights::kLoads];
  auto fetch = [&] {
    pixels.fetch(next_a);
    weights.fetch(next_b);
    pixels.advance();
    weights.advance();
  };

  int acc[4][8] = {};
  fetch();
#pragma unroll 1
  for (int kt = 0; kt < t.count; kt++) {
#pragma unroll
    for (int i = 0; i < Pixels::kLoads; i++) *reinterpret_cast<int4 *>(sa + pixels.place + i * Pixels::kStep * kConvBK) = next_a[i];
#pragma unroll
    for (int i = 0; i < Weights::kLoads; i++) *reinterpret_cast<int4 *>(sb + weights.place + i * Weights::kStep * kConvBK) = next_b[i];
    __syncthreads();
    if (kt + 1 < t.count) fetch();
#pragma unroll
    for (int c = 0; c < kConvChunks; c++) {
      int4 va[4];
#pragma unroll
      for (int i = 0; i < 4; i++) va[i] = *reinterpret_cast<const int4 *>(sa + conv_at(ty + 16 * i, c));
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int4 vb = *reinterpret_cast<const int4 *>(sb + conv_at(tx + 8 * j, c));
#pragma unroll
        for (int i = 0; i < 4; i++) acc[i][j] = __dp4a(va[i].w, vb.w, __dp4a(va[i].z, vb.z, __dp4a(va[i].y, vb.y, __dp4a(va[i].x, vb.x, acc[i][j]))));
      }
    }
    __syncthreads();
  }
  if (p.split > 1 && !fb_split_sum<kThreads, 8>(reinterpret_cast<int(&)[8][4]>(acc), p.workspace, t.index, t.part, p.split, last)) return;

  int *stage = reinterpret_cast<int *>(shared);
#pragma unroll
  for (int i = 0; i < 4; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) stage[(ty + 16 * i) * kConvDp4aPitch + tx + 8 * j] = acc[i][j];
  __syncthreads();
  const int col = t.n0 + (int)threadIdx.x % (kTile / 4) * 4;
  const ConvColumns columns = conv_columns(p.e, t.group * p.og + col, p.og - col);
#pragma unroll 1
  for (int row = (int)threadIdx.x / (kTile / 4); row < kTile; row += kThreads / (kTile / 4)) {
    int v[4];
    memcpy(v, stage + row * kConvDp4aPitch + col - t.n0, 16);
    if (t.m0 + row < p.m && columns.count > 0) conv_store4(p.e, columns, t.m0 + row, t.group * p.og + col, v);
  }
}

// gemm_w4.cuh: C = A W^T with W in blocks of INT4, A in f16 or s8.
//
// With few rows the product is bound by reading W once, at half a byte a weight
// (A100: 1.5 TB/s are 10 bytes a clock and SM, 20 weights), so weights must come
// in order, many bytes ahead, and cost few instructions. As Marlin does
// (arXiv 2408.11743), they are shuffled offline so that a 16-byte load of a lane
// holds what its mma fragments take:
//
//   32 columns x 32 of k are 512 bytes; lane (g = l / 4, t = l % 4) has 16 of them,
//   word j: column 8 j + g, k = 8 t .. 8 t + 7, as nibbles 0 4 2 6 1 5 3 7 (low first)
//
// mma computes the transpose: W is its 16-row operand and 8 rows of A the other.
// So 8 rows cost half of 16, and a fragment of A is two registers that one load
// fills: a sum over k does not mind its order, lane t takes k = 8 t .. 8 t + 7 of A
// too, which is 16 bytes of f16 for two mma of k16, or 8 bytes of s8 for one of k32.
// The nibbles' order gives pairs for f16 (nibbles i and i + 4; 0x6400 | u is
// 1024 + u) and, with the bytes of A in the order 0 2 1 3, fours for s8 (nibble in
// the high half, where u - 8 is a flip of the sign bit; the factor 16 goes to the
// scale): 9 instructions for 8 weights of a lane in f16, 3 in s8.
//
// Scales stay f32 and apply to the sums of a block, not to weights: exact in the
// weights, and 4 fma for each 16 x 8 tile and block.
//
// A warp has 32 columns and all rows of the block, so a weight is unpacked once.
// Rows of A in shared memory are XORed so that the loads meet no bank twice:
// 256-byte rows (f16) move every other row by half the banks, 128-byte rows (s8)
// move each of four rows by a quarter.
#pragma once
#include <type_traits>

#include "epilogue.cuh"
#include "splitk.cuh"

constexpr int kW4K = 128; // of k in a stage
constexpr int kW4Blocks = 4; // at most, in a stage

struct FbW4Epilogue {
  FbEpilogue e;
  const float *w_sum; // [n32], read where e.a_zero is given
};

// Sums already have the scales of the weights.
__device__ __forceinline__ void fb_store4(const FbW4Epilogue &w, int64_t row, int64_t col, float (&y)[4]) {
  const FbEpilogue &e = w.e;
  if (row >= e.m || col >= e.n) return;
  if (e.a_scale) {
    const float zero = e.a_zero ? (float)e.a_zero[row] : 0.f, scale = e.a_scale[row];
    float sum[4] = {};
    if (e.a_zero) fb_load4(sum, w.w_sum + col, 4, true); // padded
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] = (y[j] - zero * sum[j]) * scale;
  }
  fb_finish4(e, row, col, y);
}

struct GemmW4Args {
  const void *a;
  const uint8_t *packed;
  const float *scale;       // [k / block + 1, n32]
  int64_t n32, k, row_bytes; // bytes of a row of A
  int blocks, block;        // blocks along k; block = 0: one for all of k
  int tiles_n, split, steps; // parts along k and steps of kW4K in each
  void *workspace;
  FbW4Epilogue e;
};

// Staging of a warp: 8 rows of 32 columns. With 36 words between rows, neither the writes of (2 t, g) nor the reads of
// four columns by 8 lanes meet a bank twice.
constexpr int kW4Stride = 36, kW4StageWords = 8 * kW4Stride;

template <bool F16, int BM, int WARPS, int STAGES>
struct W4 {
  static constexpr int kThreads = 32 * WARPS, kN = 32 * WARPS, kMT = BM / 8;
  static constexpr int kRow = F16 ? 2 * kW4K : kW4K; // bytes
  static constexpr int kA = BM * kRow, kB = kN * kW4K / 2, kS = kW4Blocks * kN * 4, kStage = kA + kB + kS;
  static constexpr int kEpilogue = WARPS * kW4StageWords * 4;
  static constexpr int kShared = STAGES * kStage > kEpilogue ? STAGES * kStage : kEpilogue;

  static __device__ __forceinline__ int at(int row, int chunk) { return row * kRow + ((F16 ? chunk ^ (row & 1) << 2 : chunk ^ (row & 3) << 1) << 4); }
};

// Eight weights of a lane in f16, exactly: pairs (0, 1), (2, 3), (4, 5), (6, 7).
__device__ __forceinline__ void w4_to_f16(uint32_t w, uint32_t (&b)[4]) {
  constexpr int kAndOr = 0xea; // (a & b) | c
  constexpr uint32_t kLow = 0x000f000f, kHigh = 0x00f000f0, k1024 = 0x64006400, k1032 = 0x64086408, kSixteenth = 0x2c002c00, kMinus72 = 0xd480d480;
  const uint32_t v = w >> 8;
  b[0] = fb_hsub2(fb_lop3<kAndOr>(w, kLow, k1024), k1032); // 1024 + u - 1032
  b[1] = fb_hsub2(fb_lop3<kAndOr>(v, kLow, k1024), k1032);
  b[2] = fb_hfma2(fb_lop3<kAndOr>(w, kHigh, k1024), kSixteenth, kMinus72); // (1024 + 16 u) / 16 - 72
  b[3] = fb_hfma2(fb_lop3<kAndOr>(v, kHigh, k1024), kSixteenth, kMinus72);
}

// Eight weights of a lane times 16 in s8: (0, 2, 1, 3), (4, 6, 5, 7).
__device__ __forceinline__ void w4_to_s8(uint32_t w, uint32_t (&b)[2]) {
  constexpr int kAndXor = 0x6a; // (a & b) ^ c
  b[0] = fb_lop3<kAndXor>(w << 4, 0xf0f0f0f0u, 0x80808080u);
  b[1] = fb_lop3<kAndXor>(w, 0xf0f0f0f0u, 0x80808080u);
}

// One load: a memcpy from memory would assume no alignment.
template <class V, class T, int N>
__device__ __forceinline__ void load_vector(T (&to)[N], const void *from) {
  static_assert(sizeof(V) == sizeof to, "a whole vector");
  const V v = *static_cast<const V *>(from);
  memcpy(to, &v, sizeof v);
}

// The place of value v of eight in a word.
__host__ __device__ constexpr int w4_nibble(int v) { return (v & 1) << 2 | (v & 2) | v >> 2; }

// Of 32 columns and 8 rows: sum[i] of columns 16 i + g and 16 i + g + 8, rows 2 t and 2 t + 1.
struct W4F16 {
  using Sum = float;
  uint32_t w[2][2][4]; // columns of 16, k of 16
  __device__ __forceinline__ explicit W4F16(const uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t top[4], bottom[4];
      w4_to_f16(words[2 * i], top);
      w4_to_f16(words[2 * i + 1], bottom);
#pragma unroll
      for (int h = 0; h < 2; h++) w[i][h][0] = top[2 * h], w[i][h][1] = bottom[2 * h], w[i][h][2] = top[2 * h + 1], w[i][h][3] = bottom[2 * h + 1];
    }
  }
  // chunk: 16 bytes of the lane's row of A; half: which 8 of them, for s8
  __device__ __forceinline__ void multiply(float (&sum)[2][4], const unsigned char *chunk, int) const {
    uint32_t a[4];
    load_vector<uint4>(a, chunk);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      fb_mma_f16(sum[i], w[i][0], a[0], a[1]);
      fb_mma_f16(sum[i], w[i][1], a[2], a[3]);
    }
  }
  static __device__ __forceinline__ float none() { return 0.f; }
  static __device__ __forceinline__ float value(float sum) { return sum; }
  static __device__ __forceinline__ float scale(float s) { return s; }
};
struct W4S8 {
  using Sum = int;
  uint32_t w[2][4];
  __device__ __forceinline__ explicit W4S8(const uint32_t (&words)[4]) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      uint32_t top[2], bottom[2];
      w4_to_s8(words[2 * i], top);
      w4_to_s8(words[2 * i + 1], bottom);
      w[i][0] = top[0], w[i][1] = bottom[0], w[i][2] = top[1], w[i][3] = bottom[1];
    }
  }
  __device__ __forceinline__ void multiply(int (&sum)[2][4], const unsigned char *chunk, int half) const {
    uint32_t a[2];
    load_vector<uint2>(a, chunk + half * 8);
    a[0] = __byte_perm(a[0], 0, 0x3120), a[1] = __byte_perm(a[1], 0, 0x3120);
#pragma unroll
    for (int i = 0; i < 2; i++) fb_mma_s8(sum[i], w[i], a[0], a[1]);
  }
  // Sums start at the bits of 1.5 * 2^23: as long as they stay below 2^22, which 128 products of 128 * 128 do, their own
  // bits are that number plus the sum. Conversions of integers run at a quarter of an addition's rate.
  static __device__ __forceinline__ int none() { return 0x4b400000; }
  static __device__ __forceinline__ float value(int sum) { return __int_as_float(sum) - 12582912.f; }
  static __device__ __forceinline__ float scale(float s) { return s * (1.f / 16); }
};
static_assert(kW4K <= 128, "sums of a stage stay below 2^22");

template <bool F16, int BM, int WARPS, int STAGES, int RESIDENT>
__global__ void __launch_bounds__(32 * WARPS, RESIDENT) gemm_w4_mma(const GemmW4Args p) {
  using C = W4<F16, BM, WARPS, STAGES>;
  using Weights = typename std::conditional<F16, W4F16, W4S8>::type;
  using Sum = typename Weights::Sum;
  FB_DYN_SHARED(unsigned char, shared);
  FB_SHARED(int, last, 1);
  const int tid = (int)threadIdx.x, lane = fb_lane(), warp = tid >> 5, g = lane >> 2, t = lane & 3;
  const int part = (int)(blockIdx.x % p.split);
  const int64_t tile = blockIdx.x / p.split;
  const int64_t row0 = tile / p.tiles_n * BM, col0 = tile % p.tiles_n * C::kN;
  const int first = part * p.steps, all = (int)fb_ceil_div(p.k, kW4K), count = (all < first + p.steps ? all : first + p.steps) - first;
  const int shift = p.block == 32 ? 2 : p.block == 64 ? 1 : 0; // blocks in a stage: 1 << shift

  // A: chunks of 16 bytes, a row's in consecutive lanes. W: what a lane copies, it reads.
  constexpr int kChunks = C::kRow / 16, kCopies = (BM * kChunks + C::kThreads - 1) / C::kThreads, kRows = C::kThreads / kChunks;
  const int a_row = tid / kChunks, a_chunk = tid % kChunks;
  const int64_t a_left = p.e.e.m - row0 - a_row, a_end = p.k * (F16 ? 2 : 1);
  const char *a_from = static_cast<const char *>(p.a) + (row0 + a_row) * p.row_bytes + a_chunk * 16;
  const int64_t k32 = p.k / 32;
  const bool w_inside = col0 + warp * 32 < p.n32;
  const uint8_t *w_from = p.packed + ((col0 / 32 + warp) * k32 * 32 + lane) * 16;
  const int s_row = tid / (C::kN / 4), s_col = tid % (C::kN / 4) * 4;

  auto copy = [&](int i, int stage) {
    if (i < count) {
      const int step = first + i;
      unsigned char *to = shared + stage * C::kStage;
      const int64_t a_at = (int64_t)step * C::kRow;
#pragma unroll
      for (int c = 0; c < kCopies; c++)
        if (BM % kRows == 0 || a_row + c * kRows < BM)
          fb_cp_async<16>(to + C::at(a_row + c * kRows, a_chunk), a_from + c * kRows * p.row_bytes + a_at, c * kRows < a_left && a_at + a_chunk * 16 < a_end);
      to += C::kA;
#pragma unroll
      for (int c = 0; c < 4; c++) fb_cp_async<16>(to + ((warp * 4 + c) * 32 + lane) * 16, w_from + (step * 4 + c) * 512, w_inside && step * 4 + c < k32);
      to += C::kB;
      const int block = (p.block ? step * kW4K / p.block : 0) + s_row;
      if (s_row < 1 << shift) fb_cp_async<16>(to + tid * 16, p.scale + block * p.n32 + col0 + s_col, block < p.blocks && col0 + s_col < p.n32);
    }
    fb_cp_commit();
  };

  float acc[C::kMT][2][4] = {};
  Sum sum[C::kMT][2][4];
#pragma unroll
  for (int r = 0; r < C::kMT * 8; r++) sum[r / 8][r / 4 % 2][r % 4] = Weights::none();
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) copy(s, s);
  int stage = 0;
#pragma unroll 1
  for (int i = 0; i < count; i++) {
    fb_cp_wait<STAGES - 2>();
    __syncthreads(); // everybody's part of this stage is here, and nobody reads the one before
    copy(i + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
    const unsigned char *a = shared + stage * C::kStage, *w = a + C::kA, *s = w + C::kB;
    stage = stage == STAGES - 1 ? 0 : stage + 1;
#pragma unroll
    for (int step = 0; step < 4; step++) {
      uint32_t words[4];
      load_vector<uint4>(words, w + ((warp * 4 + step) * 32 + lane) * 16);
      const Weights weights(words);
#pragma unroll
      for (int r = 0; r < C::kMT; r++) weights.multiply(sum[r], a + C::at(r * 8 + g, F16 ? step * 4 + t : step * 2 + t / 2), t % 2);
      if (((step + 1) & ((4 >> shift) - 1)) == 0) { // the end of a block, or of the stage: its scale
        const float *scale = reinterpret_cast<const float *>(s) + (step >> (2 - shift)) * C::kN + warp * 32 + g;
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const float f[2] = {Weights::scale(scale[j * 16]), Weights::scale(scale[j * 16 + 8])};
#pragma unroll
          for (int r = 0; r < C::kMT; r++)
#pragma unroll
            for (int v = 0; v < 4; v++) acc[r][j][v] += Weights::value(sum[r][j][v]) * f[v / 2], sum[r][j][v] = Weights::none();
        }
      }
    }
  }
  __syncthreads(); // of the warps that still read the last stage
  if (p.split > 1 && !fb_split_sum<C::kThreads, C::kMT * 2>(reinterpret_cast<float(&)[C::kMT * 2][4]>(acc), p.workspace, tile, part, p.split, last)) return;

  // As in fb_store_mma, with the rows in the lanes' columns.
  float *staged = reinterpret_cast<float *>(shared) + warp * kW4StageWords;
#pragma unroll 1
  for (int chunk = 0; chunk < C::kMT; chunk++) {
#pragma unroll
    for (int r = 0; r < C::kMT; r++)
      if (r == chunk) {
#pragma unroll
        for (int j = 0; j < 2; j++)
#pragma unroll
          for (int v = 0; v < 4; v++) staged[(t * 2 + v % 2) * kW4Stride + j * 16 + v / 2 * 8 + g] = acc[r][j][v];
      }
    __syncwarp();
#pragma unroll 1
    for (int r = lane / 8; r < 8; r += 4) {
      float y[4];
      load_vector<float4>(y, staged + r * kW4Stride + lane % 8 * 4);
      fb_store4(p.e, row0 + chunk * 8 + r, col0 + warp * 32 + lane % 8 * 4, y);
    }
    __syncwarp();
  }
}

// ---- for devices without these mma (sm_75): 16 x 32 outputs a block of 128 threads, fma in f32
constexpr int kW4PlainM = 16, kW4PlainN = 32;

template <bool F16>
__global__ void __launch_bounds__(128) gemm_w4_plain(const GemmW4Args p) {
  FB_SHARED(float, a, kW4PlainM * 33);
  FB_SHARED(float, w, kW4PlainN * 33);
  const int tid = (int)threadIdx.x, row = tid >> 3, col = (tid & 7) * 4;
  const int64_t row0 = blockIdx.x / p.tiles_n * kW4PlainM, col0 = blockIdx.x % p.tiles_n * kW4PlainN, k32 = p.k / 32;
  float acc[4] = {};
  for (int64_t i = 0; i < k32; i++) {
    const uint32_t word = *reinterpret_cast<const uint32_t *>(p.packed + ((col0 / 32 * k32 + i) * 128 + tid) * 4);
    const int lane = tid >> 2;
#pragma unroll
    for (int v = 0; v < 8; v++) w[((tid & 3) * 8 + (lane >> 2)) * 33 + (lane & 3) * 8 + v] = (float)((int)(word >> w4_nibble(v) * 4 & 15) - 8);
#pragma unroll
    for (int v = 0; v < 4; v++) {
      float x = 0.f;
      if (row0 + row < p.e.e.m) {
        const char *from = static_cast<const char *>(p.a) + (row0 + row) * p.row_bytes;
        x = F16 ? fb_f16_to_f32(reinterpret_cast<const fb_f16 *>(from)[i * 32 + col + v]) : (float)reinterpret_cast<const int8_t *>(from)[i * 32 + col + v];
      }
      a[row * 33 + col + v] = x;
    }
    __syncthreads();
    float sum[4] = {};
#pragma unroll 8
    for (int x = 0; x < 32; x++)
#pragma unroll
      for (int v = 0; v < 4; v++) sum[v] += a[row * 33 + x] * w[(col + v) * 33 + x];
    const float *scale = p.scale + (p.block ? i * 32 / p.block : 0) * p.n32 + col0 + col;
#pragma unroll
    for (int v = 0; v < 4; v++) acc[v] += sum[v] * scale[v];
    __syncthreads();
  }
  fb_store4(p.e, row0 + row, col0 + col, acc);
}

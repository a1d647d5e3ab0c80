// emulate.h: a CUDA device on the CPU, for tests.
//
// Every thread of a block is a fiber; the scheduler in emulate.cpp runs blocks
// one after another and, within a block, warps and lanes in an order that a
// seed shuffles. What it finds, it reports as a failed launch (fb_emu_message):
//
//   - a barrier that not every live thread reaches, or reaches at two places
//   - warp operations on partial or diverged warps, misaligned operands
//   - reads and writes outside device allocations (guard pages)
//   - reads before asynchronous copies are waited for: they land at the wait or
//     at once, as the seed says; shared memory starts poisoned with 0xFF (NaN)
//
// It does not know bank conflicts, memory-model races between two barriers
// other than by the shuffled order, nor time.
#pragma once
#include <functional>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __constant__ static const

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(4) char4 { signed char x, y, z, w; };
inline int2 make_int2(int a, int b) { return {a, b}; }
inline int4 make_int4(int a, int b, int c, int d) { return {a, b, c, d}; }
inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
inline float2 make_float2(float a, float b) { return {a, b}; }
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline char4 make_char4(signed char a, signed char b, signed char c, signed char d) { return {a, b, c, d}; }

typedef void *cudaStream_t;
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorIllegalAddress = 700, cudaErrorLaunchFailure = 719 };

namespace fbemu {

enum State : uint8_t { Ready, AtWarp, AtBlock, AtCondition, Done };
enum Op : uint8_t { NoOp, SyncWarp, Shuffle, Ballot, MmaS8, MmaF16, MmaBF16, MmaTF32, LdMatrix, LdMatrixTrans, Same };

struct Copy {
  void *dst;
  const void *src;
  int bytes;
  bool pred;
};

// A product of a warpgroup (hopper.h), and accumulators that some are under way to.
struct Wgmma {
  int32_t *d;
  int n;
  const void *a, *b;
  bool accumulate;
  std::vector<int32_t> product; // of this thread, once the tiles are read
};
struct Accumulators {
  int32_t *d;
  std::vector<int32_t> value;
  int pending;
};

// A tile that TMA will bring, once this of the tensor is known: rows x cols bytes.
struct TensorMap {
  const char *base;
  int64_t cols, rows, stride;
  int box_rows;
};
struct Bulk {
  void *tile;
  TensorMap map;
  int col, row;
  void *bar;
};

// One thread. in/out are the operands of the warp operation it waits in.
struct Fiber {
  void *sp = nullptr;
  char *stack = nullptr;
  State state = Done;
  Op op = NoOp;
  int site = 0; // line of the barrier it waits at
  dim3 tid;
  unsigned lane = 0;
  uint32_t in[10], out[4];
  const void *ptr = nullptr;
  std::vector<Copy> open;                 // cp.async not yet committed
  std::vector<std::vector<Copy>> groups;  // committed, oldest first
  bool (*ready)(const void *, uint32_t) = nullptr; // AtCondition: of what it waits for
  const void *condition = nullptr;
  uint32_t argument = 0;
  std::vector<Wgmma> wgmma_open;
  std::vector<std::vector<Wgmma>> wgmma_groups;
  std::vector<Accumulators> accumulators;
  unsigned wgmmas = 0;
};

struct Static {
  int id;
  size_t offset;
};

// The block that runs now.
struct Block {
  dim3 grid, block, index;
  unsigned char *dynamic = nullptr; // shared memory of the launch
  size_t dynamic_bytes = 0;
  std::vector<Static> statics;      // offsets into pool
  unsigned char *pool = nullptr;
  size_t pool_used = 0;
  Fiber *fiber = nullptr;
  void *scheduler = nullptr;
  const std::function<void()> *body = nullptr;
  const char *kernel = "";
  bool eager = false; // asynchronous copies land when issued, not when waited for
  bool eager_products = false; // and wgmma reads its tiles then
  std::vector<Bulk> bulks;
};

extern thread_local Block *block_now;
inline Block *now() { return block_now; }

void submit(const char *kernel, dim3 grid, dim3 block, size_t smem, void *stream, std::function<void()> body);
void wait_warp(Op op);
void sync_block(int line);
bool left_out(const char *file, int line);
int64_t grid_limit(int64_t limit);
void wait_until(bool (*ready)(const void *, uint32_t), const void *condition, uint32_t argument);
void land_bulk(size_t at);
void *static_shared(int id, size_t bytes);
void check_aligned(const void *p, size_t to, const char *what);
void land(const Copy &c);
[[noreturn]] void fail(const char *format, ...);
int last_error();

template <class T>
inline T shuffle(T v, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
  Fiber *f = now()->fiber;
  memcpy(&f->in[0], &v, sizeof(T));
  f->in[2] = (uint32_t)source;
  wait_warp(Shuffle);
  T r;
  memcpy(&r, now()->fiber->out, sizeof(T));
  return r;
}

inline void mma(Op op, void *d, const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Fiber *f = now()->fiber;
  memcpy(f->in, a, 16);
  f->in[4] = b0;
  f->in[5] = b1;
  memcpy(f->in + 6, d, 16);
  wait_warp(op);
  memcpy(d, f->out, 16);
}

inline void ldmatrix(Op op, uint32_t *r, const void *row, int matrices) {
  check_aligned(row, 16, "ldmatrix row");
  Fiber *f = now()->fiber;
  f->ptr = row;
  f->in[0] = (uint32_t)matrices;
  wait_warp(op);
  memcpy(r, f->out, 4 * matrices);
}

} // namespace fbemu

#define threadIdx (fbemu::now()->fiber->tid)
#define blockIdx (fbemu::now()->index)
#define blockDim (fbemu::now()->block)
#define gridDim (fbemu::now()->grid)
#define FB_DYN_SHARED(T, name) T *name = reinterpret_cast<T *>(fbemu::now()->dynamic)
#define FB_SHARED(T, name, count) T *name = reinterpret_cast<T *>(fbemu::static_shared(__COUNTER__, sizeof(T) * (count)))
#define FB_LAUNCH(kernel, grid, block, smem, stream, ...) \
  fbemu::submit(#kernel, (grid), (block), (smem), (stream), [=] { kernel(__VA_ARGS__); })
inline cudaError_t cudaGetLastError() { return fbemu::last_error(); }

inline void __syncthreads(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!fbemu::left_out(file, line)) fbemu::sync_block(line);
}
inline void __syncwarp(unsigned = ~0u, const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (!fbemu::left_out(file, line)) fbemu::wait_warp(fbemu::SyncWarp);
}
inline int fb_lane() { return (int)fbemu::now()->fiber->lane; }
template <class T> inline T __shfl_sync(unsigned, T v, int s) { return fbemu::shuffle(v, s & 31); }
template <class T> inline T __shfl_xor_sync(unsigned, T v, int m) { return fbemu::shuffle(v, fb_lane() ^ m); }
template <class T> inline T __shfl_down_sync(unsigned, T v, int d) { return fbemu::shuffle(v, fb_lane() + d > 31 ? fb_lane() : fb_lane() + d); }
template <class T> inline T __shfl_up_sync(unsigned, T v, int d) { return fbemu::shuffle(v, fb_lane() < d ? fb_lane() : fb_lane() - d); }
inline unsigned __ballot_sync(unsigned, int p) {
  fbemu::now()->fiber->in[0] = p != 0;
  fbemu::wait_warp(fbemu::Ballot);
  return fbemu::now()->fiber->out[0];
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == ~0u; }
inline void __threadfence() {}
inline void __threadfence_block() {}

// Blocks of one launch run one after another, so plain operations are atomic.
template <class T> inline T atomicAdd(T *p, T v) { T o = *p; *p = o + v; return o; }
template <class T> inline T atomicMax(T *p, T v) { T o = *p; if (v > o) *p = v; return o; }
template <class T> inline T atomicMin(T *p, T v) { T o = *p; if (v < o) *p = v; return o; }
template <class T> inline T atomicExch(T *p, T v) { T o = *p; *p = v; return o; }
template <class T> inline T atomicOr(T *p, T v) { T o = *p; *p = o | v; return o; }
template <class T> inline T atomicCAS(T *p, T compare, T v) { T o = *p; if (o == compare) *p = v; return o; }

inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { int u; memcpy(&u, &f, 4); return u; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline float __int_as_float(int u) { float f; memcpy(&f, &u, 4); return f; }
inline int __float2int_rn(float f) { // saturating, NaN gives 0, as cvt.rni.s32.f32
  if (!(f == f)) return 0;
  if (f >= 2147483648.f) return 2147483647;
  if (f <= -2147483648.f) return -2147483647 - 1;
  return (int)nearbyintf(f);
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; i++) c += (int8_t)(a >> 8 * i) * (int8_t)(b >> 8 * i);
  return c;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
  uint64_t v = (uint64_t)b << 32 | a;
  unsigned r = 0;
  for (int i = 0; i < 4; i++) r |= (unsigned)(v >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
  return r;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(unsigned v) { return v ? __builtin_clz(v) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
template <class T> inline T __ldg(const T *p) { return *p; }
template <class T> inline T __ldcg(const T *p) { return *p; }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T> inline T min(T a, T b) { return a < b ? a : b; }
template <class T> inline T max(T a, T b) { return a > b ? a : b; }

// ---- the same names as fb_ptx.cuh
inline int64_t fb_grid_limit(int64_t limit) { return fbemu::grid_limit(limit); }
template <int BYTES>
inline void fb_cp_async(void *dst, const void *src, bool pred) {
  static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
  fbemu::check_aligned(dst, BYTES, "cp.async destination");
  fbemu::check_aligned(src, BYTES, "cp.async source");
  fbemu::Copy c{dst, src, BYTES, pred};
  if (fbemu::now()->eager) fbemu::land(c);
  else fbemu::now()->fiber->open.push_back(c);
}
inline void fb_cp_commit() {
  fbemu::Fiber *f = fbemu::now()->fiber;
  f->groups.emplace_back();
  f->groups.back().swap(f->open);
}
template <int N>
inline void fb_cp_wait(const char *file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (fbemu::left_out(file, line)) return;
  fbemu::Fiber *f = fbemu::now()->fiber;
  while (f->groups.size() > N) {
    for (const fbemu::Copy &c : f->groups.front()) fbemu::land(c);
    f->groups.erase(f->groups.begin());
  }
}
inline void fb_ldmatrix_x4(uint32_t (&r)[4], const void *row) { fbemu::ldmatrix(fbemu::LdMatrix, r, row, 4); }
inline void fb_ldmatrix_x2(uint32_t (&r)[2], const void *row) { fbemu::ldmatrix(fbemu::LdMatrix, r, row, 2); }
inline void fb_ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) { fbemu::ldmatrix(fbemu::LdMatrixTrans, r, row, 4); }
inline void fb_ldmatrix_x2_trans(uint32_t (&r)[2], const void *row) { fbemu::ldmatrix(fbemu::LdMatrixTrans, r, row, 2); }
inline void fb_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { fbemu::mma(fbemu::MmaS8, d, a, b0, b1); }
inline void fb_mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { fbemu::mma(fbemu::MmaF16, d, a, b0, b1); }
inline void fb_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { fbemu::mma(fbemu::MmaBF16, d, a, b0, b1); }
inline void fb_mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { fbemu::mma(fbemu::MmaTF32, d, a, b0, b1); }
inline uint32_t fb_to_tf32(float x) {
  uint32_t u = __float_as_uint(x);
  return (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & ~0x1fffu;
}

inline fb_f16 fb_f32_to_f16(float x) {
  _Float16 h = (_Float16)x;
  fb_f16 r;
  memcpy(&r, &h, 2);
  return r;
}
inline float fb_f16_to_f32(fb_f16 x) {
  _Float16 h;
  memcpy(&h, &x, 2);
  return (float)h;
}
namespace fbemu {
// f of each half, in double, where sums and products of two halves are exact: one rounding, as the hardware's.
template <class F>
inline uint32_t halves(uint32_t a, uint32_t b, uint32_t c, F f) {
  uint32_t r = 0;
  for (int i = 0; i < 32; i += 16) {
    auto at = [i](uint32_t v) { return (double)fb_f16_to_f32(fb_f16{(uint16_t)(v >> i)}); };
    _Float16 h = (_Float16)f(at(a), at(b), at(c));
    uint16_t bits;
    memcpy(&bits, &h, 2);
    r |= (uint32_t)bits << i;
  }
  return r;
}
} // namespace fbemu
inline uint32_t fb_hadd2(uint32_t a, uint32_t b) { return fbemu::halves(a, b, 0, [](double x, double y, double) { return x + y; }); }
inline uint32_t fb_hsub2(uint32_t a, uint32_t b) { return fbemu::halves(a, b, 0, [](double x, double y, double) { return x - y; }); }
inline uint32_t fb_hmul2(uint32_t a, uint32_t b) { return fbemu::halves(a, b, 0, [](double x, double y, double) { return x * y; }); }
inline uint32_t fb_hfma2(uint32_t a, uint32_t b, uint32_t c) { return fbemu::halves(a, b, c, [](double x, double y, double z) { return x * y + z; }); }
template <int LUT>
inline uint32_t fb_lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t r = 0;
  for (int i = 0; i < 8; i++)
    if (LUT >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return r;
}
inline float fb_exp2(float x) { return exp2f(x); }
inline float fb_mul(float a, float b) { return a * b; }
inline float fb_add(float a, float b) { return a + b; }
inline float fb_div(float a, float b) { return a / b; }
inline double fb_dmul(double a, double b) { return a * b; }
inline double fb_dadd(double a, double b) { return a + b; }

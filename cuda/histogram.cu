// histogram.cu: the statistics of calibration, equal to internal/calib bit for
// bit. All counts are integers, so the order of the threads does not matter.
//
// A value is counted in one pass over the tensor at the bin width that its
// histogram has then. Only values past its range are left over; the histogram
// is widened for them (a union of cells, calib/histogram.go) and they alone are
// counted in a second pass, which otherwise ends at once. After the first few
// samples a tensor is therefore read once.
#include "common.cuh"

namespace {

// The layout of calib/histogram.go and of the table of calib/kernels.go.
constexpr int kBinBits = 12, kCellBits = 7, kCellShift = 23 - kCellBits;
constexpr int kCells = 1 << kCellBits;         // log cells an octave, and the first linear bin
constexpr uint32_t kAbs = 0x7fffffffu, kInf = 0x7f800000u;
constexpr int kHalf = 8192;                    // slots of one sign in shared memory:
constexpr int kWindow = 4096;                  //   1..4095    log cells of the 32 octaves below the linear bins
constexpr int kLinear = kWindow - kCells;      //   bin + 3968 linear bins 128..4095
constexpr int kUsed = kLinear + FB_LINEAR_BINS; //  from here on unused; what the block saw, below
constexpr int kSlots = 2 * kHalf;
constexpr size_t kShared = kSlots * sizeof(uint32_t); // 64 KiB, what a block of sm_75 can have
constexpr int kThreads = 1024;
constexpr int kPerBlock = 32768;               // values that pay for clearing and adding up a block's slots
constexpr uint32_t kNothing = ~0u;             // fb_histogram.recount: no value is left over

static_assert(FB_LINEAR_BINS == 1 << kBinBits && FB_LOG_CELLS == 255 * kCells, "the layout of calib");

__device__ __forceinline__ void add64(uint64_t *p, uint64_t v) { atomicAdd(reinterpret_cast<unsigned long long *>(p), (unsigned long long)v); }

// Unsigned keys in the order of the floats; -0 and 0 are one.
__device__ __forceinline__ uint32_t key_of(uint32_t bits) {
  if ((bits & kAbs) == 0) bits = 0;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float of_key(uint32_t key) { return __uint_as_float(key >> 31 ? key & kAbs : ~key); }

// k of the bin width 2^k for the largest finite |x|.
__device__ __forceinline__ int exponent_for(uint32_t top) {
  const int k = (int)(top >> 23) - 127 + 1 - kBinBits;
  return k < FB_MIN_EXPONENT ? FB_MIN_EXPONENT : k;
}
// Bits of the end of the linear bins: larger values need a larger k.
__device__ __forceinline__ uint32_t limit_of(int k) {
  const int e = k + kBinBits + 127;
  return e < 255 ? (uint32_t)e << 23 : kInf;
}
__device__ __forceinline__ float power_of_two(int e) { return __uint_as_float((uint32_t)(e + 127) << 23); }

// What a thread saw, and then its block.
struct Facts {
  uint32_t lo = ~0u, hi = 0, top = 0; // lo and hi are keys
  uint32_t finite = 0, zeros = 0, nan = 0, pos_inf = 0, neg_inf = 0;

  // Notes a value; false where it is not finite.
  __device__ __forceinline__ bool note(uint32_t bits) {
    const uint32_t a = bits & kAbs;
    if (a >= kInf) {
      if (a > kInf) nan++;
      else if (bits >> 31) neg_inf++;
      else pos_inf++;
      return false;
    }
    const uint32_t key = key_of(bits);
    lo = key < lo ? key : lo;
    hi = key > hi ? key : hi;
    top = a > top ? a : top;
    finite++;
    zeros += a == 0;
    return true;
  }

  // Adds the block's facts to out. s are 8 words that nobody else uses.
  __device__ void flush(uint32_t *s, fb_range_stats *out) {
    if (threadIdx.x < 8) s[threadIdx.x] = threadIdx.x == 0 ? ~0u : 0u;
    __syncthreads();
#pragma unroll
    for (int o = 16; o; o >>= 1) {
      lo = min(lo, __shfl_xor_sync(kFullWarp, lo, o));
      hi = max(hi, __shfl_xor_sync(kFullWarp, hi, o));
      top = max(top, __shfl_xor_sync(kFullWarp, top, o));
      finite += __shfl_xor_sync(kFullWarp, finite, o);
      zeros += __shfl_xor_sync(kFullWarp, zeros, o);
      nan += __shfl_xor_sync(kFullWarp, nan, o);
      pos_inf += __shfl_xor_sync(kFullWarp, pos_inf, o);
      neg_inf += __shfl_xor_sync(kFullWarp, neg_inf, o);
    }
    if (fb_lane() == 0) {
      atomicMin(&s[0], lo);
      atomicMax(&s[1], hi);
      atomicMax(&s[2], top);
      const uint32_t counts[5] = {finite, zeros, nan, pos_inf, neg_inf};
#pragma unroll
      for (int i = 0; i < 5; i++)
        if (counts[i]) atomicAdd(&s[3 + i], counts[i]);
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    if (s[3]) {
      atomicMin(&out->lo, s[0]);
      atomicMax(&out->hi, s[1]);
      atomicMax(&out->top, s[2]);
      add64(&out->finite, s[3]);
    }
    if (s[4]) add64(&out->zeros, s[4]);
    if (s[5]) add64(&out->nan, s[5]);
    if (s[6]) add64(&out->pos_inf, s[6]);
    if (s[7]) add64(&out->neg_inf, s[7]);
  }
};

// Calls f with the bits of this block's share of x: block `at` of `blocks`. The
// body goes by float4; what lies before and after it is the first block's.
template <int UNROLL, class F>
__device__ __forceinline__ void each_value(const float *__restrict__ x, int64_t n, int64_t at, int64_t blocks, F f) {
  const int64_t ahead = (int64_t)((16 - reinterpret_cast<uintptr_t>(x) % 16) % 16 / 4);
  const int64_t head = ahead < n ? ahead : n, body = (n - head) / 4;
  const float4 *v = reinterpret_cast<const float4 *>(x + head);
#pragma unroll UNROLL
  for (int64_t i = at * blockDim.x + threadIdx.x; i < body; i += blocks * blockDim.x) {
    const float4 q = v[i];
    f(__float_as_uint(q.x));
    f(__float_as_uint(q.y));
    f(__float_as_uint(q.z));
    f(__float_as_uint(q.w));
  }
  if (at == 0 && (int64_t)threadIdx.x < n - 4 * body) {
    const int64_t i = threadIdx.x < head ? threadIdx.x : threadIdx.x + 4 * body;
    f(__float_as_uint(x[i]));
  }
}

__global__ void __launch_bounds__(128) range_init(fb_range_stats *out, int count) {
  const int i = (int)(blockIdx.x * 128 + threadIdx.x);
  if (i < count) out[i] = fb_range_stats{0, 0, 0, 0, 0, ~0u, 0, 0, 0};
}

__global__ void __launch_bounds__(256) range(const float *__restrict__ x, int64_t n, fb_range_stats *out) {
  FB_SHARED(uint32_t, s, 8);
  Facts facts;
  each_value<2>(x, n, blockIdx.x, gridDim.x, [&](uint32_t bits) { facts.note(bits); });
  facts.flush(s, out);
}

__global__ void __launch_bounds__(256) histogram_init(fb_histogram *all) {
  fb_histogram *h = all + blockIdx.x;
  uint64_t *counts = &h->linear[0][0];
  for (int i = (int)threadIdx.x; i < 2 * (FB_LINEAR_BINS + FB_LOG_CELLS); i += 256) counts[i] = 0;
  if (threadIdx.x != 0) return;
  h->range = fb_range_stats{0, 0, 0, 0, 0, ~0u, 0, 0, 0};
  h->exponent = FB_MIN_EXPONENT;
  h->recount = kNothing;
}

// The tensors of one launch and the first block of each.
constexpr int kTaps = 64;
struct Taps {
  int count;
  unsigned first[kTaps + 1];
  fb_tap tap[kTaps];
};

// Counts the values of a tap in shared memory and adds that to its histogram.
// LEFT false: the finite values below the histogram's limit, and the facts of
// all. LEFT true: those that were left over, once it has been widened.
template <bool LEFT>
__global__ void __launch_bounds__(kThreads) observe(Taps taps) {
  FB_DYN_SHARED(uint32_t, bins);
  int t = 0;
  while (blockIdx.x >= taps.first[t + 1]) t++;
  fb_histogram *h = taps.tap[t].histogram;
  const uint32_t from = LEFT ? h->recount : 1;
  if (LEFT && from == kNothing) return;
  const int k = h->exponent;
  const uint32_t to = limit_of(k);
  const float scale = power_of_two(-k);
  const int base = max((k + kCellBits + 127) * kCells - kWindow, 0);
  for (int i = (int)threadIdx.x; i < kSlots; i += kThreads) bins[i] = 0;
  __syncthreads();

  Facts facts;
  each_value<LEFT ? 1 : 2>(taps.tap[t].x, taps.tap[t].n, blockIdx.x - taps.first[t], taps.first[t + 1] - taps.first[t], [&](uint32_t bits) {
    const uint32_t a = bits & kAbs;
    if (!LEFT && !facts.note(bits)) return;
    if (a < from || a >= to) return; // zeros are counted apart
    const int bin = (int)fb_mul(__uint_as_float(a), scale), cell = (int)(a >> kCellShift);
    int slot = bin + kLinear;
    if (bin < kCells) {
      slot = cell - base;
      if (slot <= 0) { // tiny: left of the window
        add64(&h->cells[bits >> 31][cell], 1);
        return;
      }
    }
    atomicAdd(&bins[(bits >> 31) * kHalf + slot], 1u);
  });
  __syncthreads();

  for (int i = (int)threadIdx.x; i < kSlots; i += kThreads) {
    const uint32_t n = bins[i];
    if (n == 0) continue;
    const int sign = i / kHalf, slot = i % kHalf;
    add64(slot < kWindow ? &h->cells[sign][base + slot] : &h->linear[sign][slot - kLinear], n);
  }
  __syncthreads();
  if (!LEFT) facts.flush(bins + kUsed, &h->range);
}

// Widens one histogram to what it has seen: each linear bin moves, whole, into
// the linear bin or log cell that holds its lower edge.
__global__ void __launch_bounds__(kThreads) widen(Taps taps) {
  fb_histogram *h = taps.tap[blockIdx.x].histogram;
  const int old = h->exponent, k = max(exponent_for(h->range.top), old), tid = (int)threadIdx.x;
  if (k == old) {
    if (tid == 0) h->recount = kNothing;
    return;
  }
  constexpr int kEach = 2 * FB_LINEAR_BINS / kThreads;
  uint64_t *linear = &h->linear[0][0], n[kEach];
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    n[i] = linear[i * kThreads + tid];
    linear[i * kThreads + tid] = 0;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    if (n[i] == 0) continue;
    const int at = i * kThreads + tid, sign = at / FB_LINEAR_BINS, bin = at % FB_LINEAR_BINS;
    const int to = k - old < 32 ? bin >> (k - old) : 0;
    if (to >= kCells) add64(&h->linear[sign][to], n[i]);
    else add64(&h->cells[sign][__float_as_uint(fb_mul((float)bin, power_of_two(old))) >> kCellShift], n[i]);
  }
  if (tid == 0) {
    h->recount = limit_of(old);
    h->exponent = k;
  }
}

// max|x| by channel, one channel a thread: the last axis.
__global__ void __launch_bounds__(256) channel_max_last(const float *__restrict__ x, int64_t rows, int64_t channels, uint32_t *__restrict__ m) {
  const int64_t c = blockIdx.x * (int64_t)128 + threadIdx.x % 128;
  if (c >= channels) return;
  uint32_t top = 0;
  const int64_t step = (int64_t)gridDim.y * 2;
#pragma unroll 4
  for (int64_t i = blockIdx.y * (int64_t)2 + threadIdx.x / 128; i < rows; i += step) {
    const uint32_t a = __float_as_uint(x[i * channels + c]) & kAbs;
    if (a < kInf && a > top) top = a;
  }
  if (top) atomicMax(&m[c], top);
}

// The same for an axis with values after it: a run of inner values is a warp's.
__global__ void __launch_bounds__(256) channel_max(const float *__restrict__ x, int64_t runs, int64_t channels, int64_t inner, uint32_t *__restrict__ m) {
  for (int64_t r = blockIdx.x * (int64_t)8 + (threadIdx.x >> 5); r < runs; r += (int64_t)gridDim.x * 8) {
    uint32_t top = 0;
    for (int64_t i = fb_lane(); i < inner; i += 32) {
      const uint32_t a = __float_as_uint(x[r * inner + i]) & kAbs;
      if (a < kInf && a > top) top = a;
    }
#pragma unroll
    for (int o = 16; o; o >>= 1) top = max(top, __shfl_xor_sync(kFullWarp, top, o));
    if (fb_lane() == 0 && top) atomicMax(&m[r % channels], top);
  }
}

// ---- the entropy search (calib/entropy.go), on counts that are there already

constexpr int kFirstCandidate = 128;           // fewest bins that a threshold keeps
constexpr float kOneSided = 1e-3f;             // an end shorter than this part of the other does not count
constexpr int kSums = FB_LINEAR_BINS + 8;      // prefix sums, one more than bins
constexpr int kSearch = 128;                   // candidates a block
constexpr int kParts = FB_LINEAR_BINS / kSearch;
constexpr int kLogSteps = 512;

// The counts of |x| in linear bins (Histogram.Linear), and what the search has to know.
__global__ void __launch_bounds__(256) linear_bins(const fb_histogram *all, int bits, int symmetric, uint64_t *counts, fb_kl_tensor *tensors) {
  FB_SHARED(uint64_t, bins, FB_LINEAR_BINS);
  const fb_histogram *h = all + blockIdx.x;
  const int k = h->exponent, tid = (int)threadIdx.x;
  const double inverse = (double)power_of_two(-k);
  for (int i = tid; i < FB_LINEAR_BINS; i += 256) bins[i] = i == 0 ? h->range.zeros : i < kCells ? 0 : h->linear[0][i] + h->linear[1][i];
  __syncthreads();
  const int cells = (k + kCellBits + 127) * kCells; // those below the linear bins
  for (int i = tid; i < cells; i += 256) {
    const uint64_t n = h->cells[0][i] + h->cells[1][i];
    if (n) add64(&bins[(int)((double)__uint_as_float((uint32_t)i << kCellShift) * inverse)], n);
  }
  __syncthreads();
  for (int i = tid; i < FB_LINEAR_BINS; i += 256) counts[blockIdx.x * (int64_t)FB_LINEAR_BINS + i] = bins[i];
  if (tid != 0) return;
  const float lo = of_key(h->range.lo), hi = of_key(h->range.hi);
  const bool one = -lo <= fb_mul(kOneSided, hi) || hi <= fb_mul(kOneSided, -lo);
  fb_kl_tensor t;
  t.bins = h->range.finite ? (int)((double)__uint_as_float(h->range.top) * inverse) + 1 : 0;
  t.levels = 1 << (bits - 1 + (one && !symmetric));
  t.exponent = k;
  t.finite = h->range.finite != 0;
  t.others = h->range.nan + h->range.pos_inf + h->range.neg_inf != 0;
  t.lo = h->range.lo;
  t.hi = h->range.hi;
  tensors[blockIdx.x] = t;
}

// The natural logarithm of a normal x > 0, as calib computes it: table and
// series, every operation rounded on its own, so that the bits are the same.
__device__ __forceinline__ double table_log(const double *table, double x) {
  uint64_t b;
  memcpy(&b, &x, 8);
  const double *s = table + 2 * (b >> 43 & (kLogSteps - 1));
  const uint64_t fraction = (b & ((1ull << 52) - 1)) | 1023ull << 52;
  double m;
  memcpy(&m, &fraction, 8);
  const double r = fb_dadd(fb_dmul(m, s[0]), -1.);
  const double series = fb_dmul(r, fb_dadd(1., -fb_dmul(r, fb_dadd(.5, -fb_dmul(r, fb_dadd(1. / 3, -fb_dmul(r, .25)))))));
  return fb_dadd(fb_dadd(fb_dmul((double)((int)(b >> 52) - 1023), 0.693147180559945309417232121458176568), s[1]), series);
}
__device__ __forceinline__ double xlogx(const double *table, double x) { return x > 0 ? fb_dmul(x, table_log(table, x)) : 0.; }

// A tensor's part of the workspace.
struct Search {
  double sum[kSums], plogp[kSums]; // of the first i bins: c, and c log c
  double logs[kSums];              // of whole numbers
  double divergence[kParts];       // the best of each block of candidates
  int32_t keep[kParts];            // 0: none
  int32_t filled[kSums];           // bins that are not empty
};

// The counts as the search takes them: the spike at zero is left out.
__device__ __forceinline__ double count_at(const uint64_t *counts, int i) { return (double)counts[i == 0 ? 1 : i]; }

__device__ __forceinline__ bool searched(const fb_kl_tensor &t) { return t.bins > max(kFirstCandidate, t.levels) && t.bins <= FB_LINEAR_BINS && t.levels > 0; }

// Sums from the left, in order: three threads, one for each.
__global__ void __launch_bounds__(kThreads) kl_sums(const uint64_t *counts, const fb_kl_tensor *tensors, const double *table, Search *all) {
  FB_DYN_SHARED(double, c);
  double *cl = c + FB_LINEAR_BINS;
  const fb_kl_tensor t = tensors[blockIdx.x];
  if (!searched(t)) return;
  const uint64_t *n = counts + blockIdx.x * (int64_t)FB_LINEAR_BINS;
  Search *w = all + blockIdx.x;
  const int tid = (int)threadIdx.x;
  for (int i = tid; i < t.bins; i += kThreads) {
    c[i] = count_at(n, i);
    cl[i] = xlogx(table, c[i]);
  }
  for (int i = tid; i < kSums; i += kThreads) w->logs[i] = i ? table_log(table, (double)i) : 0.;
  __syncthreads();
  if (tid == 0) {
    double v = w->sum[0] = 0;
#pragma unroll 8
    for (int i = 0; i < t.bins; i++) w->sum[i + 1] = v = fb_dadd(v, c[i]);
  } else if (tid == 32) {
    double v = w->plogp[0] = 0;
#pragma unroll 8
    for (int i = 0; i < t.bins; i++) w->plogp[i + 1] = v = fb_dadd(v, cl[i]);
  } else if (tid == 64) {
    int v = w->filled[0] = 0;
#pragma unroll 8
    for (int i = 0; i < t.bins; i++) w->filled[i + 1] = v += c[i] > 0;
  }
}

// The smaller divergence; of equal ones, the larger number of bins.
__device__ __forceinline__ void better(double &d, int &keep, double d2, int keep2) {
  if (keep2 != 0 && (keep == 0 || d2 < d || (d2 == d && keep2 > keep))) d = d2, keep = keep2;
}
__device__ __forceinline__ void best_of_warp(double &d, int &keep) {
#pragma unroll
  for (int o = 16; o; o >>= 1) {
    const double d2 = __shfl_xor_sync(kFullWarp, d, o);
    const int keep2 = __shfl_xor_sync(kFullWarp, keep, o);
    better(d, keep, d2, keep2);
  }
}

// One candidate a thread. Neighbours read neighbouring sums, so these come from
// the first-level cache; the table's entries are anywhere, so it is in shared memory.
__global__ void __launch_bounds__(kSearch) kl_search(const uint64_t *counts, const fb_kl_tensor *tensors, const double *table, Search *all) {
  FB_SHARED(double, steps, 2 * kLogSteps);
  FB_SHARED(double, d_of, kSearch / 32);
  FB_SHARED(int, keep_of, kSearch / 32);
  const fb_kl_tensor t = tensors[blockIdx.y];
  if (!searched(t)) return;
  const int tid = (int)threadIdx.x, levels = t.levels;
  for (int i = tid; i < 2 * kLogSteps; i += kSearch) steps[i] = table[i];
  __syncthreads();
  Search *w = all + blockIdx.y;
  const double *sum = w->sum;
  const int i = max(kFirstCandidate, levels) + (int)blockIdx.x * kSearch + tid;
  double d = 0;
  int keep = 0;
  if (i <= t.bins) {
    const double total = sum[t.bins], here = sum[i], tail = fb_dadd(total, -here);
    const double last = count_at(counts + blockIdx.y * (int64_t)FB_LINEAR_BINS, i - 1);
    if (here != 0 && (last != 0 || tail <= 0)) { // else Q has nothing where P has: infinite
      double cross = 0, q = 0, before = 0;
      int start = 0, acc = levels - 1;
      for (int j = 0; j < levels; j++) {
        acc += i;
        const int end = acc / levels; // ceil((j+1)*i/levels)
        const double until = sum[end], part = fb_dadd(until, -before);
        if (part > 0) {
          q = fb_dadd(table_log(steps, part), -w->logs[w->filled[end] - w->filled[start]]);
          cross = fb_dadd(cross, fb_dmul(part, q));
        }
        start = end;
        before = until;
      }
      cross = fb_dadd(cross, fb_dmul(tail, q)); // q is that of the last part, which holds bin i-1
      const double p = fb_dadd(fb_dadd(w->plogp[i], -xlogx(steps, last)), xlogx(steps, fb_dadd(last, tail)));
      d = fb_dadd(fb_dadd(fb_dadd(p, -cross) / total, -table_log(steps, total)), table_log(steps, here));
      keep = d == d ? i : 0;
    }
  }
  best_of_warp(d, keep);
  if (fb_lane() == 0) d_of[tid >> 5] = d, keep_of[tid >> 5] = keep;
  __syncthreads();
  if (tid != 0) return;
  for (int j = 1; j < kSearch / 32; j++) better(d, keep, d_of[j], keep_of[j]);
  w->divergence[blockIdx.x] = d;
  w->keep[blockIdx.x] = keep;
}

__global__ void __launch_bounds__(32) kl_best(const fb_kl_tensor *tensors, const Search *all, int32_t *out, double *divergence) {
  static_assert(kParts == 32, "one lane a part");
  const fb_kl_tensor t = tensors[blockIdx.x];
  double d = 0;
  int keep = 0;
  if (searched(t)) {
    d = all[blockIdx.x].divergence[threadIdx.x];
    keep = all[blockIdx.x].keep[threadIdx.x];
  }
  best_of_warp(d, keep);
  if (threadIdx.x != 0) return;
  out[blockIdx.x] = keep ? keep : t.bins;
  if (divergence) divergence[blockIdx.x] = keep ? d : 0.;
}

} // namespace

extern "C" {

int fb_range_init(fb_range_stats *out, int count, fb_stream s) {
  if (!out || count < 1) return FB_BAD_ARGUMENT;
  FB_LAUNCH(range_init, dim3(fb_grid(count, 128, 1 << 24)), dim3(128), 0, s, out, count);
  return fb_launch_status();
}

int fb_range(const float *x, int64_t n, fb_range_stats *out, fb_stream s) {
  if (!x || !out || n < 0 || !fb_aligned(x, 4)) return FB_BAD_ARGUMENT;
  if (n == 0) return FB_OK;
  FB_LAUNCH(range, dim3(fb_grid(n, 8192)), dim3(256), 0, s, x, n, out);
  return fb_launch_status();
}

int fb_histogram_init(fb_histogram *h, int count, fb_stream s) {
  if (!h || count < 1) return FB_BAD_ARGUMENT;
  FB_LAUNCH(histogram_init, dim3((unsigned)count), dim3(256), 0, s, h);
  return fb_launch_status();
}

int fb_histogram_observe(const fb_tap *taps, int count, fb_stream s) {
  if (!taps || count < 0) return FB_BAD_ARGUMENT;
  for (int i = 0; i < count; i++) {
    if (!taps[i].x || !taps[i].histogram || taps[i].n < 0 || !fb_aligned(taps[i].x, 4)) return FB_BAD_ARGUMENT;
    for (int j = i - i % kTaps; j < i; j++) // one launch widens a histogram once
      if (taps[i].histogram == taps[j].histogram) return FB_BAD_ARGUMENT;
  }
  fb_device_info device;
  const int status = fb_device(&device);
  if (status != FB_OK) return status;
  for (int at = 0; at < count; at += kTaps) {
    Taps t = {};
    for (int i = at; i < count && i < at + kTaps; i++) {
      // Two blocks fill a multiprocessor; a count of a block stays far below 2^32.
      const int64_t most = 2 * device.sms > taps[i].n >> 30 ? 2 * device.sms : (taps[i].n >> 30) + 1;
      t.tap[t.count] = taps[i];
      t.first[t.count + 1] = t.first[t.count] + fb_grid(taps[i].n, kPerBlock, most);
      t.count++;
    }
    const dim3 grid(t.first[t.count]), block(kThreads);
    FB_LAUNCH(observe<false>, grid, block, kShared, s, t);
    FB_LAUNCH(widen, dim3((unsigned)t.count), block, 0, s, t);
    FB_LAUNCH(observe<true>, grid, block, kShared, s, t);
  }
  return fb_launch_status();
}

int fb_channel_max(const float *x, int64_t outer, int64_t channels, int64_t inner, float *m, fb_stream s) {
  if (!x || !m || outer < 0 || channels < 1 || inner < 1) return FB_BAD_ARGUMENT;
  if (outer == 0) return FB_OK;
  uint32_t *bits = reinterpret_cast<uint32_t *>(m);
  if (inner == 1)
    FB_LAUNCH(channel_max_last, dim3(fb_grid(channels, 128, 1 << 24), fb_grid(outer, 32, 256)), dim3(256), 0, s, x, outer, channels, bits);
  else
    FB_LAUNCH(channel_max, dim3(fb_grid(outer * channels, 8)), dim3(256), 0, s, x, outer * channels, channels, inner, bits);
  return fb_launch_status();
}

int fb_histogram_linear(const fb_histogram *h, int count, int bits, int symmetric, uint64_t *counts, fb_kl_tensor *tensors, fb_stream s) {
  if (!h || !counts || !tensors || count < 1 || bits < 2 || bits > 16) return FB_BAD_ARGUMENT;
  FB_LAUNCH(linear_bins, dim3((unsigned)count), dim3(256), 0, s, h, bits, symmetric, counts, tensors);
  return fb_launch_status();
}

size_t fb_kl_workspace(int count) { return count > 0 ? (size_t)count * sizeof(Search) : 0; }

int fb_kl_threshold(const uint64_t *counts, const fb_kl_tensor *tensors, int count, const double *logs, int32_t *keep, double *divergence, void *workspace, size_t workspace_bytes,
                    fb_stream s) {
  if (!counts || !tensors || !logs || !keep || !workspace || count < 1 || count > 65535 || !fb_aligned(workspace, 8)) return FB_BAD_ARGUMENT;
  if (workspace_bytes < fb_kl_workspace(count)) return FB_WORKSPACE;
  Search *w = static_cast<Search *>(workspace);
  FB_LAUNCH(kl_sums, dim3((unsigned)count), dim3(kThreads), 2 * FB_LINEAR_BINS * sizeof(double), s, counts, tensors, logs, w);
  FB_LAUNCH(kl_search, dim3(kParts, (unsigned)count), dim3(kSearch), 0, s, counts, tensors, logs, w);
  FB_LAUNCH(kl_best, dim3((unsigned)count), dim3(32), 0, s, tensors, w, keep, divergence);
  return fb_launch_status();
}

} // extern "C"

// strided.cuh: several tensors read over one set of dimensions.
//
// The host merges dimensions as far as all operands allow (a dense tensor is
// one dimension then) and picks the width of the index arithmetic; kernels turn
// the number of an element into an offset for each operand.
#pragma once
#include <type_traits>

#include "common.cuh"

constexpr int64_t kMaxElements = int64_t(1) << 48; // of a tensor: products below stay far from overflow

// Division of n < 2^31 by multiplication (Granlund and Montgomery 1994, figure 4.1).
struct FbDivisor {
  uint32_t divisor, magic, shift;
  static FbDivisor of(uint32_t d) { // 1 <= d < 2^31
    uint32_t shift = 0;
    while ((1ull << shift) < d) shift++;
    return {d, (uint32_t)((((1ull << shift) - d) << 32) / d + 1), shift};
  }
  __device__ __forceinline__ uint32_t quotient(uint32_t n) const { return ((uint32_t)((uint64_t)n * magic >> 32) + n) >> shift; }
};

// The same for 0 <= n <= kMaxElements. In double, whose product is at most one off: the compiler's 64-bit division is a
// call that costs registers.
struct FbDivisor64 {
  int64_t divisor;
  double inverse;
  static FbDivisor64 of(int64_t d) { return {d, 1.0 / (double)d}; }
  __device__ __forceinline__ int64_t quotient(int64_t n) const {
    const int64_t q = (int64_t)((double)n * inverse), r = n - q * divisor;
    return r < 0 ? q - 1 : r >= divisor ? q + 1 : q;
  }
};
template <class I>
struct FbDivisorOf;
template <>
struct FbDivisorOf<uint32_t> { using type = FbDivisor; };
template <>
struct FbDivisorOf<int64_t> { using type = FbDivisor64; };
template <class I>
using FbDivide = typename FbDivisorOf<I>::type;

// N operands over dims, outermost first.
template <int N>
struct FbStrided {
  int rank = 0;
  int64_t n = 1; // elements
  int64_t dims[FB_RANK] = {}, strides[N][FB_RANK] = {};

  // False where a view is malformed. The dims of the views are not looked at: each is read over `over`.
  bool set(const fb_view &over, const fb_view *const (&views)[N]) {
    if (over.rank < 0 || over.rank > FB_RANK) return false;
    for (int i = 0; i < N; i++)
      if (views[i]->rank != over.rank) return false;
    rank = 0, n = 1;
    for (int d = 0; d < over.rank; d++) {
      if (over.dims[d] < 0 || (over.dims[d] > 0 && n > kMaxElements / over.dims[d])) return false;
      n *= over.dims[d];
      for (int i = 0; i < N; i++)
        if (views[i]->strides[d] > kMaxElements || views[i]->strides[d] < -kMaxElements) return false;
      if (over.dims[d] == 1) continue;
      dims[rank] = over.dims[d];
      for (int i = 0; i < N; i++) strides[i][rank] = views[i]->strides[d];
      rank++;
    }
    return true;
  }

  // Merges neighbours that every operand walks through evenly. At least one dimension is left.
  void merge() {
    int to = 0;
    for (int d = 1; d < rank; d++) {
      bool even = true;
      for (int i = 0; i < N; i++) even = even && strides[i][to] == strides[i][d] * dims[d];
      if (even) {
        dims[to] *= dims[d];
      } else {
        to++;
        dims[to] = dims[d];
      }
      for (int i = 0; i < N; i++) strides[i][to] = strides[i][d];
    }
    if (rank == 0) dims[0] = 1;
    rank = to + 1;
  }

  // Whether 4 neighbours along the last dimension are one aligned vector of operand i, or one value.
  bool vector(int i, const void *p, size_t size) const {
    const int64_t last = strides[i][rank - 1];
    if (last == 0) return true;
    if (last != 1 || !fb_aligned(p, size * 4 < 16 ? size * 4 : 16)) return false;
    for (int d = 0; d < rank - 1; d++)
      if (strides[i][d] % 4) return false;
    return true;
  }

  // Counts in groups of 4 along the last dimension; offsets stay in elements.
  void group4() {
    dims[rank - 1] /= 4;
    n /= 4;
    for (int i = 0; i < N; i++) strides[i][rank - 1] *= 4;
  }

  bool fits32() const {
    if (n >= int64_t(1) << 31) return false;
    for (int i = 0; i < N; i++) {
      int64_t reach = 0;
      for (int d = 0; d < rank; d++) {
        const int64_t s = strides[i][d] < 0 ? -strides[i][d] : strides[i][d];
        if (s && dims[d] > (int64_t(1) << 31) / s) return false;
        reach += s * dims[d];
      }
      if (reach >= int64_t(1) << 31) return false;
    }
    return true;
  }
};

// What a kernel gets of it: I is uint32_t or int64_t, for numbers and offsets alike.
template <int N, class I>
struct FbIndex {
  using Offset = typename std::make_signed<I>::type;
  int rank;
  FbDivide<I> dims[FB_RANK];
  Offset strides[N][FB_RANK];
  explicit FbIndex(const FbStrided<N> &s) : rank(s.rank) {
    for (int d = 0; d < FB_RANK; d++) {
      dims[d] = FbDivide<I>::of(d < rank ? (I)s.dims[d] : 1);
      for (int i = 0; i < N; i++) strides[i][d] = d < rank ? (Offset)s.strides[i][d] : 0;
    }
  }
  __device__ __forceinline__ void offsets(I at, int64_t (&to)[N]) const {
    Offset sum[N] = {};
#pragma unroll
    for (int d = FB_RANK - 1; d > 0; d--) {
      if (d >= rank) continue;
      const I q = dims[d].quotient(at);
      const Offset r = (Offset)(at - q * (I)dims[d].divisor);
#pragma unroll
      for (int i = 0; i < N; i++) sum[i] += r * strides[i][d];
      at = q;
    }
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = sum[i] + (Offset)at * strides[i][0];
  }
};

// V neighbours as one access, of at most 16 bytes each.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) FbVector {
  T v[V];
};

// V values from p: a vector, or one value V times.
template <class T, int V>
__device__ __forceinline__ FbVector<T, V> fb_load_vector(const T *p, bool one) {
  if (!one) return *reinterpret_cast<const FbVector<T, V> *>(p);
  FbVector<T, V> r;
#pragma unroll
  for (int j = 0; j < V; j++) r.v[j] = *p;
  return r;
}

// layout.cu: moving elements: transpose, slice, concat, expand, gather, and the
// change of layout between float (NCHW) and integer (NHWC) convolutions.
#include "strided.cuh"

namespace {

constexpr int kThreads = 256;

// ---- copy
//
// Dimensions are walked in the order of the result, so that writes are dense.
// Where both sides are dense along the innermost one, neighbours are joined to
// elements of up to 16 bytes; where only some other dimension is dense in the
// source, 32 x 32 tiles are turned in shared memory.

template <class T, class I>
__global__ void __launch_bounds__(kThreads) copy(FbIndex<2, I> index, I n, const T *__restrict__ x, T *__restrict__ y) {
  const I step = (I)gridDim.x * kThreads;
  for (I i = (I)blockIdx.x * kThreads + (I)threadIdx.x; i < n; i += step) {
    int64_t at[2];
    index.offsets(i, at);
    y[at[1]] = x[at[0]];
  }
}

constexpr int kTile = 32;

// y[r * dst_row + c] = x[r + c * src_col] for every r < rows, c < cols of every batch item.
template <class T, class I>
__global__ void __launch_bounds__(kThreads) transpose(FbIndex<2, I> batch, int64_t rows, int64_t cols, int64_t src_col, int64_t dst_row, const T *__restrict__ x, T *__restrict__ y,
                                                      FbDivide<I> tiles_r, FbDivide<I> tiles_c, I tiles) {
  FB_SHARED(T, tile, kTile * (kTile + 1));
  const int lane = (int)threadIdx.x % kTile, first = (int)threadIdx.x / kTile;
  for (I t = (I)blockIdx.x; t < tiles; t += (I)gridDim.x) {
    const I across = tiles_c.quotient(t), item = tiles_r.quotient(across);
    int64_t base[2];
    batch.offsets(item, base);
    const int64_t r0 = (int64_t)(across - item * (I)tiles_r.divisor) * kTile, c0 = (int64_t)(t - across * (I)tiles_c.divisor) * kTile;
    for (int c = first; c < kTile; c += kThreads / kTile)
      if (r0 + lane < rows && c0 + c < cols) tile[c * (kTile + 1) + lane] = x[base[0] + r0 + lane + (c0 + c) * src_col];
    __syncthreads();
    for (int r = first; r < kTile; r += kThreads / kTile)
      if (r0 + r < rows && c0 + lane < cols) y[base[1] + (r0 + r) * dst_row + c0 + lane] = tile[lane * (kTile + 1) + r];
    __syncthreads();
  }
}

template <class T, class I>
int run_transpose(const FbStrided<2> &s, int d, const T *x, T *y, fb_stream stream) {
  const int last = s.rank - 1;
  FbStrided<2> batch;
  batch.rank = 1, batch.dims[0] = 1; // without dimensions of its own, one item
  int to = 0;
  for (int i = 0; i < last; i++) {
    if (i == d) continue;
    batch.dims[to] = s.dims[i];
    for (int k = 0; k < 2; k++) batch.strides[k][to] = s.strides[k][i];
    batch.rank = ++to;
  }
  const int64_t tiles_r = fb_ceil_div(s.dims[d], kTile), tiles_c = fb_ceil_div(s.dims[last], kTile), tiles = s.n / s.dims[d] / s.dims[last] * tiles_r * tiles_c;
  FB_LAUNCH((transpose<T, I>), dim3(fb_grid(tiles, 1, 1 << 16)), dim3(kThreads), 0, stream, (FbIndex<2, I>(batch)), s.dims[d], s.dims[last], s.strides[0][last], s.strides[1][d], x, y,
            FbDivide<I>::of((I)tiles_r), FbDivide<I>::of((I)tiles_c), (I)tiles);
  return fb_launch_status();
}

// The dimension that is dense in the source while the last one is so in the result, < 0 for none worth turning.
int turned(const FbStrided<2> &s) {
  const int last = s.rank - 1;
  if (s.strides[0][last] == 1 || s.strides[1][last] != 1 || s.dims[last] < kTile / 4) return -1;
  for (int d = 0; d < last; d++)
    if (s.strides[0][d] == 1 && s.dims[d] >= kTile / 4) return d;
  return -1;
}

template <class T>
int run_copy(const FbStrided<2> &s, const void *x, void *y, fb_stream stream) {
  const T *px = static_cast<const T *>(x);
  T *py = static_cast<T *>(y);
  if constexpr (sizeof(T) <= 8) {
    const int d = turned(s);
    if (d >= 0) return s.fits32() ? run_transpose<T, uint32_t>(s, d, px, py, stream) : run_transpose<T, int64_t>(s, d, px, py, stream);
  }
  if (s.fits32()) FB_LAUNCH((copy<T, uint32_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, (FbIndex<2, uint32_t>(s)), (uint32_t)s.n, px, py);
  else FB_LAUNCH((copy<T, int64_t>), dim3(fb_grid(s.n, kThreads)), dim3(kThreads), 0, stream, (FbIndex<2, int64_t>(s)), s.n, px, py);
  return fb_launch_status();
}

int64_t magnitude(int64_t v) { return v < 0 ? -v : v; }

// Sorts the dimensions by the stride of the result, largest first. False where two elements share a place in it.
bool order(FbStrided<2> &s) {
  for (int i = 1; i < s.rank; i++)
    for (int j = i; j > 0 && magnitude(s.strides[1][j]) > magnitude(s.strides[1][j - 1]); j--) {
      auto swap = [](int64_t &a, int64_t &b) { const int64_t t = a; a = b, b = t; };
      swap(s.dims[j], s.dims[j - 1]);
      for (int k = 0; k < 2; k++) swap(s.strides[k][j], s.strides[k][j - 1]);
    }
  int64_t reach = 0;
  for (int d = s.rank - 1; d >= 0; d--) {
    const int64_t stride = magnitude(s.strides[1][d]);
    if (stride <= reach) return false;
    if (stride > kMaxElements / s.dims[d]) return false;
    reach += stride * (s.dims[d] - 1);
  }
  return true;
}

// Joins pairs of neighbours as long as everything is even. Returns the bytes of an element.
int join(FbStrided<2> &s, int size, const void *x, const void *y) {
  const int last = s.rank - 1;
  if (s.strides[0][last] != 1 || s.strides[1][last] != 1) return size;
  while (size < 16) {
    if (s.dims[last] % 2 || !fb_aligned(x, 2 * size) || !fb_aligned(y, 2 * size)) return size;
    for (int d = 0; d < last; d++)
      if (s.strides[0][d] % 2 || s.strides[1][d] % 2) return size;
    s.dims[last] /= 2, s.n /= 2, size *= 2;
    for (int d = 0; d < last; d++) s.strides[0][d] /= 2, s.strides[1][d] /= 2;
  }
  return size;
}

// ---- gather
template <class T, class I>
__global__ void __launch_bounds__(kThreads) gather(const T *__restrict__ x, I n, int64_t axis, FbDivide<I> inner, const int64_t *__restrict__ ids, FbDivide<I> n_ids, T *__restrict__ y,
                                                   int32_t *fault) {
  for (I i = (I)blockIdx.x * kThreads + (I)threadIdx.x; i < n; i += (I)gridDim.x * kThreads) {
    const I row = inner.quotient(i), outer = n_ids.quotient(row);
    int64_t id = ids[row - outer * (I)n_ids.divisor];
    if (id < 0) id += axis;
    if (id < 0 || id >= axis) {
      if (fault) *fault = 1;
      id = 0;
    }
    y[i] = x[((int64_t)outer * axis + id) * (int64_t)inner.divisor + (int64_t)(i - row * (I)inner.divisor)];
  }
}

template <class T>
int run_gather(const void *x, int64_t outer, int64_t axis, int64_t inner, const int64_t *ids, int64_t n_ids, void *y, int32_t *fault, fb_stream s) {
  const int64_t n = outer * n_ids * inner;
  const T *px = static_cast<const T *>(x);
  T *py = static_cast<T *>(y);
  const dim3 grid(fb_grid(n, kThreads));
  if (n < INT32_MAX) FB_LAUNCH((gather<T, uint32_t>), grid, dim3(kThreads), 0, s, px, (uint32_t)n, axis, FbDivisor::of((uint32_t)inner), ids, FbDivisor::of((uint32_t)n_ids), py, fault);
  else FB_LAUNCH((gather<T, int64_t>), grid, dim3(kThreads), 0, s, px, n, axis, FbDivisor64::of(inner), ids, FbDivisor64::of(n_ids), py, fault);
  return fb_launch_status();
}

// ---- NCHW f32 <-> NHWC s8: tiles of 32 pixels x 64 channels, turned in shared memory
constexpr int kPixels = 32, kChannels = 64;
constexpr int kPitch = kChannels + 4; // bytes: 17 words, so that 32 pixels lie in 32 banks

__global__ void __launch_bounds__(kThreads) nchw_to_nhwc_s8(const float *__restrict__ x, int64_t c, int64_t hw, float scale, int zero_u8, int8_t *__restrict__ q, int64_t ldc, int64_t tiles_p,
                                                            int64_t tiles_c, int64_t tiles, bool words) {
  FB_SHARED(uint32_t, tile, kPixels * kPitch / 4);
  int8_t *bytes = reinterpret_cast<int8_t *>(tile);
  const int lane = fb_lane(), warp = (int)threadIdx.x / 32;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t image = t / (tiles_p * tiles_c), p0 = t / tiles_c % tiles_p * kPixels, c0 = t % tiles_c * kChannels;
    for (int ch = warp; ch < kChannels && c0 + ch < ldc; ch += kThreads / 32)
      if (p0 + lane < hw) bytes[lane * kPitch + ch] = c0 + ch < c ? fb_quantize_u8(x[(image * c + c0 + ch) * hw + p0 + lane], scale, zero_u8) : (int8_t)(zero_u8 - 128);
    __syncthreads();
    const int64_t width = ldc - c0 < kChannels ? ldc - c0 : kChannels;
    if (words) {
      for (int i = (int)threadIdx.x; i < kPixels * kChannels / 4; i += kThreads) {
        const int p = i / (kChannels / 4), w = i % (kChannels / 4);
        if (p0 + p < hw && w * 4 < width) *reinterpret_cast<uint32_t *>(q + (image * hw + p0 + p) * ldc + c0 + w * 4) = tile[p * (kPitch / 4) + w];
      }
    } else {
      for (int i = (int)threadIdx.x; i < kPixels * kChannels; i += kThreads) {
        const int p = i / kChannels, ch = i % kChannels;
        if (p0 + p < hw && ch < width) q[(image * hw + p0 + p) * ldc + c0 + ch] = bytes[p * kPitch + ch];
      }
    }
    __syncthreads();
  }
}

// Images, up to four channels in a word: nothing has to be turned.
__global__ void __launch_bounds__(kThreads) nchw_to_nhwc4_s8(const float *__restrict__ x, int64_t pixels, int c, int64_t hw, float scale, int zero_u8, uint32_t *__restrict__ q) {
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < pixels; i += (int64_t)gridDim.x * kThreads) {
    const int64_t image = i / hw, p = i - image * hw;
    uint32_t word = 0;
#pragma unroll
    for (int ch = 0; ch < 4; ch++) {
      const int8_t v = ch < c ? fb_quantize_u8(x[(image * c + ch) * hw + p], scale, zero_u8) : (int8_t)(zero_u8 - 128);
      word |= (uint32_t)(uint8_t)v << 8 * ch;
    }
    q[i] = word;
  }
}

__global__ void __launch_bounds__(kThreads) nhwc_s8_to_nchw(const int8_t *__restrict__ q, int64_t c, int64_t hw, int64_t ldc, float scale, int zero_s8, float *__restrict__ x, int64_t tiles_p,
                                                            int64_t tiles_c, int64_t tiles, bool words) {
  FB_SHARED(uint32_t, tile, kPixels * kPitch / 4);
  int8_t *bytes = reinterpret_cast<int8_t *>(tile);
  const int lane = fb_lane(), warp = (int)threadIdx.x / 32;
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t image = t / (tiles_p * tiles_c), p0 = t / tiles_c % tiles_p * kPixels, c0 = t % tiles_c * kChannels;
    if (words) { // ldc is a multiple of 4: a word that begins before c ends before ldc
      for (int i = (int)threadIdx.x; i < kPixels * kChannels / 4; i += kThreads) {
        const int p = i / (kChannels / 4), w = i % (kChannels / 4);
        if (p0 + p < hw && c0 + w * 4 < c) tile[p * (kPitch / 4) + w] = *reinterpret_cast<const uint32_t *>(q + (image * hw + p0 + p) * ldc + c0 + w * 4);
      }
    } else {
      for (int i = (int)threadIdx.x; i < kPixels * kChannels; i += kThreads) {
        const int p = i / kChannels, ch = i % kChannels;
        if (p0 + p < hw && c0 + ch < c) bytes[p * kPitch + ch] = q[(image * hw + p0 + p) * ldc + c0 + ch];
      }
    }
    __syncthreads();
    for (int ch = warp; ch < kChannels && c0 + ch < c; ch += kThreads / 32)
      if (p0 + lane < hw) x[(image * c + c0 + ch) * hw + p0 + lane] = (float)(bytes[lane * kPitch + ch] - zero_s8) * scale;
    __syncthreads();
  }
}

// Whether [n, hw, ldc] with c of ldc channels is well-formed.
bool bad_image(int64_t n, int64_t c, int64_t hw, int64_t ldc) {
  constexpr int64_t k = INT32_MAX;
  return n < 0 || c < 1 || hw < 0 || ldc < c || n > k || hw > k || ldc > k || (n && hw && ldc > kMaxElements / (n * hw));
}

} // namespace

extern "C" {

int fb_copy(int size, const fb_view *src, const void *x, const fb_view *dst, void *y, fb_stream s) {
  if (!src || !x || !dst || !y || (size != 1 && size != 2 && size != 4 && size != 8)) return FB_BAD_ARGUMENT;
  FbStrided<2> v;
  if (!v.set(*src, {src, dst})) return FB_BAD_ARGUMENT;
  if (v.n == 0) return FB_OK;
  if (!order(v)) return FB_BAD_ARGUMENT;
  v.merge();
  switch (join(v, size, x, y)) {
  case 1: return run_copy<uint8_t>(v, x, y, s);
  case 2: return run_copy<uint16_t>(v, x, y, s);
  case 4: return run_copy<uint32_t>(v, x, y, s);
  case 8: return run_copy<uint64_t>(v, x, y, s);
  default: return run_copy<uint4>(v, x, y, s);
  }
}

int fb_gather(int size, const void *x, int64_t outer, int64_t axis, int64_t inner, const int64_t *ids, int64_t n_ids, void *y, int32_t *fault, fb_stream s) {
  if (!x || !ids || !y || (size != 1 && size != 2 && size != 4 && size != 8) || outer < 0 || axis < 1 || inner < 0 || n_ids < 0) return FB_BAD_ARGUMENT;
  if (outer == 0 || inner == 0 || n_ids == 0) return FB_OK;
  if (axis > kMaxElements / inner || outer > kMaxElements / (axis * inner) || n_ids > kMaxElements / inner || outer > kMaxElements / (n_ids * inner)) return FB_BAD_ARGUMENT;
  while (size < 16 && inner % 2 == 0 && fb_aligned(x, 2 * size) && fb_aligned(y, 2 * size)) size *= 2, inner /= 2;
  switch (size) {
  case 1: return run_gather<uint8_t>(x, outer, axis, inner, ids, n_ids, y, fault, s);
  case 2: return run_gather<uint16_t>(x, outer, axis, inner, ids, n_ids, y, fault, s);
  case 4: return run_gather<uint32_t>(x, outer, axis, inner, ids, n_ids, y, fault, s);
  case 8: return run_gather<uint64_t>(x, outer, axis, inner, ids, n_ids, y, fault, s);
  default: return run_gather<uint4>(x, outer, axis, inner, ids, n_ids, y, fault, s);
  }
}

int fb_nchw_to_nhwc_s8(const float *x, int64_t n, int64_t c, int64_t hw, float scale, int32_t zero_u8, int8_t *q, int64_t ldc, fb_stream s) {
  if (!x || !q || bad_image(n, c, hw, ldc) || !(scale > 0.f) || zero_u8 < 0 || zero_u8 > 255) return FB_BAD_ARGUMENT;
  if (n == 0 || hw == 0) return FB_OK;
  const bool words = ldc % 4 == 0 && fb_aligned(q, 4);
  if (words && ldc == 4) {
    FB_LAUNCH(nchw_to_nhwc4_s8, dim3(fb_grid(n * hw, kThreads)), dim3(kThreads), 0, s, x, n * hw, (int)c, hw, scale, zero_u8, reinterpret_cast<uint32_t *>(q));
  } else {
    const int64_t tiles_p = fb_ceil_div(hw, kPixels), tiles_c = fb_ceil_div(ldc, kChannels), tiles = n * tiles_p * tiles_c;
    FB_LAUNCH(nchw_to_nhwc_s8, dim3(fb_grid(tiles, 1)), dim3(kThreads), 0, s, x, c, hw, scale, zero_u8, q, ldc, tiles_p, tiles_c, tiles, words);
  }
  return fb_launch_status();
}

int fb_nhwc_s8_to_nchw(const int8_t *q, int64_t n, int64_t c, int64_t hw, int64_t ldc, float scale, int32_t zero_s8, float *x, fb_stream s) {
  if (!x || !q || bad_image(n, c, hw, ldc)) return FB_BAD_ARGUMENT;
  if (n == 0 || hw == 0) return FB_OK;
  const int64_t tiles_p = fb_ceil_div(hw, kPixels), tiles_c = fb_ceil_div(c, kChannels), tiles = n * tiles_p * tiles_c;
  FB_LAUNCH(nhwc_s8_to_nchw, dim3(fb_grid(tiles, 1)), dim3(kThreads), 0, s, q, c, hw, ldc, scale, zero_s8, x, tiles_p, tiles_c, tiles, ldc % 4 == 0 && fb_aligned(q, 4));
  return fb_launch_status();
}

} // extern "C"

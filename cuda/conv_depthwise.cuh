// conv_depthwise.cuh: convolutions without much of a matrix product: one filter
// a channel, and groups too small for tiles. Bound by memory and by unpacking
// bytes, so both work on words of 4.
#pragma once
#include "conv.cuh"

struct DepthwiseArgs {
  ConvArgs p;           // cg and og are 1
  FbDivisor by_tiles;   // strips across a row of the output
  FbDivisor by_oh;
  int64_t strips;       // n oh strips across
  int quads_shift;      // log2 of the groups of 4 channels that a block has side by side
};

constexpr int kDepthwiseThreads = 128, kDepthwiseStrip = 4; // pixels a thread computes, along a row

// Four pixels of 4 channels each, turned into four channels of 4 pixels each.
__device__ __forceinline__ void depthwise_turn(const uint32_t (&pixel)[4], uint32_t (&channel)[4]) {
  const uint32_t a = __byte_perm(pixel[0], pixel[1], 0x5140), b = __byte_perm(pixel[2], pixel[3], 0x5140); // bytes 0 0 1 1
  const uint32_t c = __byte_perm(pixel[0], pixel[1], 0x7362), d = __byte_perm(pixel[2], pixel[3], 0x7362); // bytes 2 2 3 3
  channel[0] = __byte_perm(a, b, 0x5410), channel[1] = __byte_perm(a, b, 0x7632);
  channel[2] = __byte_perm(c, d, 0x5410), channel[3] = __byte_perm(c, d, 0x7632);
}

// One filter of K x K a channel, stride S. A thread has 4 channels of 4 neighbouring outputs. The pixels of a row of taps
// are turned so that a word holds 4 neighbours of one channel; a window of 4 taps is then such a word, or the end of one
// and the start of the next, and one dp4a with a word of weights.
template <int K, int S>
__global__ void __launch_bounds__(kDepthwiseThreads) conv_s8_depthwise(const DepthwiseArgs d) {
  constexpr int kStrip = kDepthwiseStrip, kNeed = (kStrip - 1) * S + K, kGroups = (kNeed + 3) / 4, kWords = (K + 3) / 4;
  const ConvArgs &p = d.p;
  FB_DYN_SHARED(uint32_t, weights); // [K][kWords][channels of the block]
  const int quads = 1 << d.quads_shift, channels = quads * 4, c0 = (int)blockIdx.y * channels;
  for (int i = (int)threadIdx.x; i < K * kWords * channels; i += kDepthwiseThreads) {
    const int c = c0 + i % channels, word = i / channels % kWords, r = i / channels / kWords;
    uint32_t v = 0;
#pragma unroll
    for (int b = 0; b < 4; b++)
      if (c < p.c && word * 4 + b < K) v |= (uint32_t)(uint8_t)p.filter[(c * K + r) * K + word * 4 + b] << 8 * b;
    weights[i] = v;
  }
  __syncthreads();
  const int quad = (int)threadIdx.x & (quads - 1), c = c0 + quad * 4;
  if (c >= p.c) return;
  const ConvColumns columns = conv_columns(p.e, c, 4);
  const uint32_t outside = (uint32_t)(uint8_t)p.e.x_zero * 0x01010101u;
  const int across = kDepthwiseThreads >> d.quads_shift;
#pragma unroll 1
  for (int64_t strip = (int64_t)blockIdx.x * across + (threadIdx.x >> d.quads_shift); strip < d.strips; strip += (int64_t)gridDim.x * across) {
    const uint32_t row = d.by_tiles.quotient((uint32_t)strip), image = d.by_oh.quotient(row);
    const int oh = (int)(row - image * d.by_oh.divisor), ow = (int)((uint32_t)strip - row * d.by_tiles.divisor) * kStrip;
    const int ih = oh * S - p.pad_h, iw = ow * S - p.pad_w;
    int acc[kStrip][4] = {};
#pragma unroll
    for (int r = 0; r < K; r++) {
      const bool in_row = (unsigned)(ih + r) < (unsigned)p.h;
      const int8_t *from = p.x + ((int64_t)((int)image * p.h + ih + r) * p.w + iw) * p.c + c;
      uint32_t turned[kGroups][4];
#pragma unroll
      for (int g = 0; g < kGroups; g++) {
        uint32_t pixel[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int at = g * 4 + j;
          pixel[j] = outside;
          if (at < kNeed && in_row && (unsigned)(iw + at) < (unsigned)p.w) pixel[j] = *reinterpret_cast<const uint32_t *>(from + (int64_t)at * p.c);
        }
        depthwise_turn(pixel, turned[g]);
      }
#pragma unroll
      for (int word = 0; word < kWords; word++) {
        const int4 w = *reinterpret_cast<const int4 *>(weights + (r * kWords + word) * channels + quad * 4);
        const int taps[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int o = 0; o < kStrip; o++) {
          const int first = o * S + word * 4, g = first / 4, shift = first % 4, next = g + 1 < kGroups ? g + 1 : g; // what is not there meets no tap
#pragma unroll
          for (int j = 0; j < 4; j++) {
            const uint32_t window = shift ? __byte_perm(turned[g][j], turned[next][j], 0x3210 + 0x1111 * shift) : turned[g][j];
            acc[o][j] = __dp4a((int)window, taps[j], acc[o][j]);
          }
        }
      }
    }
#pragma unroll
    for (int o = 0; o < kStrip; o++)
      if (ow + o < p.ow) conv_store4(p.e, columns, (int64_t)row * p.ow + ow + o, c, acc[o]);
  }
}

// Anything: a thread has one output, taps and channels in order.
template <bool WORDS>
__global__ void __launch_bounds__(256) conv_s8_direct(const ConvArgs p, FbDivisor by_oc, FbDivisor by_og, uint32_t n) {
  for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) {
    const uint32_t m = by_oc.quotient(i), oc = i - m * by_oc.divisor, group = by_og.quotient(oc);
    const uint32_t image = p.by_ohw.quotient(m), pixel = m - image * p.by_ohw.divisor, oh = p.by_ow.quotient(pixel);
    const int ih = (int)oh * p.stride_h - p.pad_h, iw = (int)(pixel - oh * p.by_ow.divisor) * p.stride_w - p.pad_w;
    const int8_t *w = p.filter + (int64_t)oc * p.k;
    int acc = 0;
#pragma unroll 1
    for (int r = 0; r < p.kh; r++)
#pragma unroll 1
      for (int s = 0; s < p.kw; s++, w += p.cg) {
        const int h = ih + r * p.dil_h, v = iw + s * p.dil_w;
        const bool in = (unsigned)h < (unsigned)p.h && (unsigned)v < (unsigned)p.w;
        const int8_t *x = in ? p.x + ((int64_t)((int)image * p.h + h) * p.w + v) * p.c + group * p.cg : nullptr;
        if (WORDS) {
          const int outside = (int)((uint32_t)(uint8_t)p.e.x_zero * 0x01010101u);
          for (int c = 0; c < p.cg; c += 4) acc = __dp4a(x ? *reinterpret_cast<const int *>(x + c) : outside, *reinterpret_cast<const int *>(w + c), acc);
        } else {
          for (int c = 0; c < p.cg; c++) acc += (x ? x[c] : p.e.x_zero) * w[c];
        }
      }
    const ConvColumns columns = conv_columns(p.e, (int)oc, 1);
    const int v[4] = {acc, 0, 0, 0};
    conv_store4(p.e, columns, m, (int)oc, v);
  }
}

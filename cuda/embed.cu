// embed.cu: the sum of up to three embeddings (word, position, type), from
// tables in float, INT8 or INT4. One write of the result; the tables' rows come
// mostly from the second-level cache.
#include "common.cuh"

namespace {

constexpr int kTables = 3;
constexpr int64_t kMaxTokens = 0x7fffffff; // gridDim.x

struct Tables {
  fb_embed_table table[kTables];
  bool vector[kTables]; // rows can be read four values at once
  int count;
};

// Four neighbours of a row, or what there is of them.
__device__ __forceinline__ void read4(const fb_embed_table &t, bool vector, int64_t row, int64_t dim, int64_t col, float (&v)[4]) {
  const int64_t at = row * dim + col;
  if (t.bits == 32) {
    const float *p = static_cast<const float *>(t.rows) + at;
    if (vector) {
      const float4 f = *reinterpret_cast<const float4 *>(p);
      v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
      return;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) v[j] = col + j < dim ? p[j] : 0.f;
    return;
  }
  int q[4] = {};
  float scale;
  int zero = 0;
  if (t.bits == 8) {
    const int8_t *p = static_cast<const int8_t *>(t.rows) + at;
    if (vector) {
      const char4 c = *reinterpret_cast<const char4 *>(p);
      q[0] = c.x, q[1] = c.y, q[2] = c.z, q[3] = c.w;
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++) q[j] = col + j < dim ? p[j] : 0;
    }
    scale = t.scale[row];
    if (t.zero) zero = t.zero[row];
  } else { // INT4: dim is a multiple of the block, so that four values share a scale
    const uint8_t *p = static_cast<const uint8_t *>(t.rows) + at / 2;
    const int packed = vector ? *reinterpret_cast<const uint16_t *>(p) : p[0] | p[1] << 8;
#pragma unroll
    for (int j = 0; j < 4; j++) q[j] = packed >> 4 * j & 15;
    scale = t.scale[at / t.block];
    zero = 8;
  }
#pragma unroll
  for (int j = 0; j < 4; j++) v[j] = fb_mul((float)(q[j] - zero), scale);
}

// One token a block.
__global__ void __launch_bounds__(256) embed(Tables t, int64_t dim, float *__restrict__ out, int32_t *__restrict__ fault, bool vector_out) {
  const int64_t token = blockIdx.x;
  int64_t rows[kTables];
  bool outside = false;
#pragma unroll
  for (int i = 0; i < kTables; i++) {
    rows[i] = 0;
    if (i >= t.count) continue;
    const fb_embed_table &e = t.table[i];
    int64_t id = e.ids[e.ids_period ? token % e.ids_period : token];
    if (id < 0) id += e.count;
    if (id < 0 || id >= e.count) outside = true;
    else rows[i] = id;
  }
  if (outside && threadIdx.x == 0) *fault = 1; // whoever writes it, writes the same
  for (int64_t col = threadIdx.x * (int64_t)4; col < dim; col += blockDim.x * (int64_t)4) {
    float sum[4];
    read4(t.table[0], t.vector[0], rows[0], dim, col, sum);
#pragma unroll
    for (int i = 1; i < kTables; i++) {
      if (i >= t.count) break;
      float v[4];
      read4(t.table[i], t.vector[i], rows[i], dim, col, v);
#pragma unroll
      for (int j = 0; j < 4; j++) sum[j] = fb_add(sum[j], v[j]);
    }
    float *to = out + token * dim + col;
    if (vector_out) {
      *reinterpret_cast<float4 *>(to) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; j++)
        if (col + j < dim) to[j] = sum[j];
    }
  }
}

bool bad_table(const fb_embed_table &t, int64_t dim) {
  if (!t.rows || !t.ids || t.count < 1 || t.ids_period < 0) return true;
  switch (t.bits) {
  case 32: return false;
  case 8: return !t.scale;
  case 4: return !t.scale || t.block < 16 || t.block > 256 || (t.block & (t.block - 1)) || dim % t.block;
  default: return true;
  }
}

} // namespace

extern "C" int fb_embed(const fb_embed_table *tables, int n_tables, int64_t tokens, int64_t dim, float *out, int32_t *fault, fb_stream s) {
  if (!tables || n_tables < 1 || n_tables > kTables || tokens < 0 || tokens > kMaxTokens || dim < 1 || !out || !fault) return FB_BAD_ARGUMENT;
  Tables t = {};
  t.count = n_tables;
  for (int i = 0; i < n_tables; i++) {
    const fb_embed_table &e = t.table[i] = tables[i];
    if (bad_table(e, dim)) return FB_BAD_ARGUMENT;
    t.vector[i] = dim % 4 == 0 && fb_aligned(e.rows, (size_t)e.bits / 2);
  }
  if (tokens == 0) return FB_OK;
  const int64_t threads = fb_ceil_div(fb_ceil_div(dim, 4), 32) * 32;
  FB_LAUNCH(embed, dim3((unsigned)tokens), dim3((unsigned)(threads > 256 ? 256 : threads)), 0, s, t, dim, out, fault, dim % 4 == 0 && fb_aligned(out, 16));
  return fb_launch_status();
}

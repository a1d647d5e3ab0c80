// splitk.cuh: several blocks sum parts of k for one output tile.
//
// Every block writes its accumulators to the workspace, as they lie in its
// threads, and counts itself; the last to arrive adds them up. Nobody waits for
// anybody, so no order of blocks can hang, and the sum is taken in the order of
// the parts, so the same bits come out whoever is last.
#pragma once
#include "common.cuh"

enum { FB_SPLIT_TILES = FB_COUNTER_BYTES / 4 }; // counters at the start of the workspace, one a tile

static inline size_t fb_split_bytes(int64_t tiles, int split, int64_t tile_words) {
  return split > 1 ? FB_COUNTER_BYTES + (size_t)(tiles * split * tile_words) * 4 : 0;
}

// For a workspace whose counters are not zero yet: 1 block.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) fb_split_zero(unsigned *counters) {
  for (int i = (int)threadIdx.x; i < FB_SPLIT_TILES; i += THREADS) counters[i] = 0;
}

// True in the block that has the sum in acc now and stores it. last is one int in shared memory.
template <int THREADS, int N, class T>
__device__ __forceinline__ bool fb_split_sum(T (&acc)[N][4], void *workspace, int64_t tile, int part, int split, int *last) {
  static_assert(sizeof(T) == 4, "four words");
  unsigned *counter = static_cast<unsigned *>(workspace) + tile;
  int4 *parts = reinterpret_cast<int4 *>(static_cast<char *>(workspace) + FB_COUNTER_BYTES) + tile * split * N * THREADS;
  const int tid = (int)threadIdx.x;
#pragma unroll
  for (int i = 0; i < N; i++) {
    int4 v;
    memcpy(&v, acc[i], 16);
    parts[((int64_t)part * N + i) * THREADS + tid] = v;
  }
  __threadfence();
  __syncthreads(); // everybody's part is written before it is counted
  if (tid == 0) *last = atomicAdd(counter, 1u) == (unsigned)split - 1;
  __syncthreads();
  if (!*last) return false;
  __threadfence();
  if (tid == 0) *counter = 0; // as it was found
#pragma unroll
  for (int i = 0; i < N; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) acc[i][j] = T(0);
#pragma unroll 1
  for (int p = 0; p < split; p++) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      const int4 v = __ldcg(&parts[((int64_t)p * N + i) * THREADS + tid]);
      T f[4];
      memcpy(f, &v, 16);
#pragma unroll
      for (int j = 0; j < 4; j++) acc[i][j] += f[j];
    }
  }
  return true;
}

// hopper.cpp: barriers in shared memory, TMA and wgmma of hopper.h.
#include "../fb_sm90.cuh"

namespace fbemu {

namespace {

// What an mbarrier is here. Poisoned memory is none.
struct Barrier {
  uint64_t magic : 8, phase : 1, count : 11, pending : 11;
  int64_t bytes : 33; // expected and not yet here
};
static_assert(sizeof(Barrier) == 8, "an mbarrier has 64 bits");
constexpr int kMagic = 0x5A, kMaxCount = (1 << 11) - 1;
constexpr int kPoison = -0x5A5A5A5A; // accumulators under way
constexpr int kRow = 128;            // bytes of a row of a tile

Barrier *barrier(uint64_t *bar) {
  check_aligned(bar, 8, "mbarrier");
  Barrier *b = reinterpret_cast<Barrier *>(bar);
  if (b->magic != kMagic) fail("an mbarrier is not initialised");
  return b;
}

void turn(Barrier *b) {
  if (b->pending || b->bytes) return;
  b->phase ^= 1;
  b->pending = b->count;
}

bool over(const void *bar, uint32_t parity) { return static_cast<const Barrier *>(bar)->phase != parity; }

// A condition that holds when it is asked again.
bool second_time(const void *asked, uint32_t) { return (*static_cast<int *>(const_cast<void *>(asked)))++ > 0; }

// The place of a byte of a tile: 128-byte swizzle.
const char *swizzled(const char *p) {
  const uintptr_t a = reinterpret_cast<uintptr_t>(p);
  return reinterpret_cast<const char *>(a ^ ((a >> 7 & 7) << 4));
}

// 32 bytes of a row.
void row32(int8_t (&to)[32], const void *tile, int row) {
  for (int i = 0; i < 32; i += 16) memcpy(to + i, swizzled(static_cast<const char *>(tile) + row * kRow + i), 16);
}

// This thread's part of a product.
void product(const Wgmma &w, std::vector<int32_t> &to) {
  const Block *b = now();
  const dim3 &t = b->fiber->tid;
  const int lane = (int)b->fiber->lane, warp = (int)((t.x + b->block.x * (t.y + b->block.y * t.z)) / 32 % 4);
  int8_t a[2][32], c[32];
  for (int i = 0; i < 2; i++) row32(a[i], w.a, warp * 16 + lane / 4 + 8 * i);
  for (int j = 0; j < w.n / 8; j++)
    for (int v = 0; v < 2; v++) {
      row32(c, w.b, j * 8 + lane % 4 * 2 + v);
      for (int i = 0; i < 2; i++) {
        int sum = 0;
        for (int k = 0; k < 32; k++) sum += (int16_t)a[i][k] * (int16_t)c[k];
        to[(size_t)(j * 4 + i * 2 + v)] = sum;
      }
    }
}

Accumulators &accumulators(Fiber *f, int32_t *d, int n) {
  for (Accumulators &s : f->accumulators)
    if (s.d == d) {
      for (int i = 0; i < n; i++)
        if (d[i] != kPoison) fail("accumulators of a wgmma under way are written");
      return s;
    }
  f->accumulators.push_back({d, std::vector<int32_t>(d, d + n), 0});
  return f->accumulators.back();
}

} // namespace

void barrier_init(uint64_t *bar, int count) {
  check_aligned(bar, 8, "mbarrier");
  if (count < 1 || count > kMaxCount) fail("an mbarrier for %d threads", count);
  Barrier b = {};
  b.magic = kMagic;
  b.count = b.pending = (unsigned)count;
  memcpy(bar, &b, 8);
}

void barrier_arrive(uint64_t *bar, int bytes) {
  Barrier *b = barrier(bar);
  if (b->pending == 0) fail("an mbarrier for %d threads is arrived at once more", (int)b->count);
  b->bytes += bytes;
  b->pending--;
  turn(b);
}

void barrier_wait(uint64_t *bar, int parity) {
  barrier(bar);
  wait_until(over, bar, (uint32_t)parity);
}

void tma_load(void *tile, const FbTensorMap *map, int col, int row, uint64_t *bar) {
  check_aligned(tile, 1024, "TMA tile");
  barrier(bar);
  now()->bulks.push_back({tile, *map, col, row, bar});
  if (now()->eager) land_bulk(now()->bulks.size() - 1);
}

void land_bulk(size_t at) {
  std::vector<Bulk> &bulks = now()->bulks;
  const Bulk b = bulks[at];
  bulks.erase(bulks.begin() + (ptrdiff_t)at);
  const TensorMap &m = b.map;
  for (int r = 0; r < m.box_rows; r++)
    for (int c = 0; c < kRow; c += 16) {
      char *to = const_cast<char *>(swizzled(static_cast<char *>(b.tile) + r * kRow + c));
      memset(to, 0, 16);
      const int64_t row = b.row + r, col = b.col + c, left = m.cols - col;
      if (row >= 0 && row < m.rows && col >= 0 && left > 0) memcpy(to, m.base + row * m.stride + col, (size_t)(left < 16 ? left : 16));
    }
  Barrier *bar = static_cast<Barrier *>(b.bar);
  bar->bytes -= m.box_rows * kRow;
  turn(bar);
}

void wgmma(int32_t *d, int n, const void *a, const void *b, bool accumulate) {
  for (const void *p : {a, b})
    if (reinterpret_cast<uintptr_t>(p) % 1024 >= 128 || reinterpret_cast<uintptr_t>(p) % 32) fail("a wgmma operand is not aligned to 1024 bytes, or 32 along k");
  Fiber *f = now()->fiber;
  const void *same[2] = {a, b};
  memcpy(f->in, same, sizeof same);
  f->in[4] = accumulate;
  f->in[5] = (uint32_t)n;
  wait_warp(Same);
  Accumulators &s = accumulators(f, d, n / 2);
  s.pending++;
  for (int i = 0; i < n / 2; i++) d[i] = kPoison;
  Wgmma w{d, n, a, b, accumulate, {}};
  if (now()->eager_products) {
    w.product.resize((size_t)n / 2);
    product(w, w.product);
  }
  f->wgmma_open.push_back(std::move(w));
  f->wgmmas++;
}

void wgmma_commit() {
  Fiber *f = now()->fiber;
  f->wgmma_groups.emplace_back();
  f->wgmma_groups.back().swap(f->wgmma_open);
}

void wgmma_wait(int32_t *, size_t pending) {
  Fiber *f = now()->fiber;
  if (!now()->eager_products) { // others run between a commit and its wait
    int asked = 0;
    wait_until(second_time, &asked, 0);
  }
  while (f->wgmma_groups.size() > pending) {
    for (Wgmma &w : f->wgmma_groups.front()) {
      if (w.product.empty()) {
        w.product.resize((size_t)w.n / 2);
        product(w, w.product);
      }
      Accumulators &s = accumulators(f, w.d, w.n / 2);
      for (size_t i = 0; i < w.product.size(); i++) s.value[i] = w.product[i] + (w.accumulate ? s.value[i] : 0);
      if (--s.pending == 0) {
        memcpy(w.d, s.value.data(), s.value.size() * 4);
        s = f->accumulators.back();
        f->accumulators.pop_back();
      }
    }
    f->wgmma_groups.erase(f->wgmma_groups.begin());
  }
  memset(f->in, 0, 24);
  wait_warp(Same); // of one warp, all lanes have read
}

} // namespace fbemu

// emulate.cpp: fibers, their scheduler, warp operations and guarded memory.
#include <sys/mman.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>

#include "../fb_cuda.h"
#include "emulate_api.h"

// Saves the callee-saved registers (System V ABI) and swaps stacks.
extern "C" void fb_emu_switch(void **save, void *to);
#if defined(__x86_64__)
asm(R"(.text
.globl fb_emu_switch
.type fb_emu_switch,@function
fb_emu_switch:
 push %rbp
 push %rbx
 push %r12
 push %r13
 push %r14
 push %r15
 mov %rsp,(%rdi)
 mov %rsi,%rsp
 pop %r15
 pop %r14
 pop %r13
 pop %r12
 pop %rbx
 pop %rbp
 ret
.size fb_emu_switch,.-fb_emu_switch
)");
#else
#error "the emulation switches stacks on x86-64 only"
#endif

namespace fbemu {

thread_local Block *block_now;

namespace {

constexpr size_t kStack = 64 << 10;      // a thread's stack
constexpr size_t kStaticShared = 48 << 10;
constexpr size_t kSharedLimit = 227 << 10; // what a block can have on sm_90
constexpr int kPoison = 0xFF;            // NaN as float and half, -1 as integer
constexpr size_t kPage = 4096;
constexpr unsigned kSmallGrids = 3;      // from this seed on, loops over a grid have this many blocks
constexpr int64_t kSmallGrid = 2;

thread_local int g_error;                // of the last launch, as CUDA numbers it
std::mutex g_message_lock;
char g_message[512];
std::atomic<unsigned> g_seed{0};
char g_left_out_file[64]; // set before there are launches
int g_left_out_line = 0;
std::atomic<int> g_sm{90};
std::atomic<fb_emu_hook> g_hook{nullptr};
std::atomic<void *> g_hook_user{nullptr};
thread_local bool g_aborted;             // the running launch failed

void report(int error, const char *format, va_list args) {
  char text[384];
  vsnprintf(text, sizeof text, format, args);
  std::lock_guard<std::mutex> hold(g_message_lock);
  const Block *b = block_now;
  if (b) snprintf(g_message, sizeof g_message, "%s, block (%u,%u,%u): %s", b->kernel, b->index.x, b->index.y, b->index.z, text);
  else snprintf(g_message, sizeof g_message, "%s", text);
  g_error = error;
  g_aborted = true;
}

} // namespace

// Ends the launch. From a fiber it never returns: its stack is abandoned.
void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  report(cudaErrorLaunchFailure, format, args);
  va_end(args);
  Fiber *f = block_now->fiber;
  f->state = Done;
  fb_emu_switch(&f->sp, block_now->scheduler);
  __builtin_unreachable();
}

namespace {

// The same from the scheduler, which then unwinds by itself.
void stop(const char *format, ...) {
  va_list args;
  va_start(args, format);
  report(cudaErrorLaunchFailure, format, args);
  va_end(args);
}

void yield(State s) {
  Fiber *f = block_now->fiber;
  f->state = s;
  fb_emu_switch(&f->sp, block_now->scheduler);
}

void entry() {
  Block *b = block_now;
  (*b->body)();
  Fiber *f = b->fiber;
  f->state = Done;
  fb_emu_switch(&f->sp, b->scheduler);
  __builtin_trap();
}

void prepare(Fiber &f) {
  void **sp = reinterpret_cast<void **>(f.stack + kStack) - 1;
  *sp = nullptr; // where entry would return to, 8 past a multiple of 16 as the ABI wants
  *--sp = reinterpret_cast<void *>(entry);
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  f.sp = sp;
  f.state = Ready;
  f.op = NoOp;
  f.open.clear();
  f.groups.clear();
  f.wgmma_open.clear();
  f.wgmma_groups.clear();
  f.accumulators.clear();
  f.wgmmas = 0;
}

template <class T, class D, class A>
void multiply(Fiber *w, D accumulate, A) {
  constexpr int K = 32 / (int)sizeof(T);
  alignas(64) T a[16][K], b[8][K];
  for (int l = 0; l < 32; l++) {
    const int g = l >> 2, at = (l & 3) * 4 / (int)sizeof(T), half = 16 / (int)sizeof(T);
    memcpy(&a[g][at], &w[l].in[0], 4);
    memcpy(&a[g + 8][at], &w[l].in[1], 4);
    memcpy(&a[g][at + half], &w[l].in[2], 4);
    memcpy(&a[g + 8][at + half], &w[l].in[3], 4);
    memcpy(&b[g][at], &w[l].in[4], 4);
    memcpy(&b[g][at + half], &w[l].in[5], 4);
  }
  A d[16][8];
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 8; j++) d[i][j] = accumulate(a[i], b[j], K);
  for (int l = 0; l < 32; l++) {
    const int g = l >> 2, c = (l & 3) * 2;
    A r[4];
    memcpy(r, w[l].in + 6, 16);
    r[0] += d[g][c];
    r[1] += d[g][c + 1];
    r[2] += d[g + 8][c];
    r[3] += d[g + 8][c + 1];
    memcpy(w[l].out, r, 16);
  }
}

// Every lane of the warp has arrived with the same operation.
void run_warp_op(Fiber *w) {
  switch (w[0].op) {
  case Shuffle:
    for (int i = 0; i < 32; i++) memcpy(w[i].out, w[w[i].in[2] & 31].in, 8);
    break;
  case Ballot: {
    uint32_t r = 0;
    for (int i = 0; i < 32; i++) r |= (w[i].in[0] ? 1u : 0u) << i;
    for (int i = 0; i < 32; i++) w[i].out[0] = r;
    break;
  }
  case LdMatrix:
    for (uint32_t m = 0; m < w[0].in[0]; m++)
      for (int l = 0; l < 32; l++) memcpy(&w[l].out[m], static_cast<const char *>(w[m * 8 + l / 4].ptr) + l % 4 * 4, 4);
    break;
  case LdMatrixTrans:
    for (uint32_t m = 0; m < w[0].in[0]; m++)
      for (int l = 0; l < 32; l++)
        for (int h = 0; h < 2; h++) memcpy(reinterpret_cast<char *>(&w[l].out[m]) + 2 * h, static_cast<const char *>(w[m * 8 + l % 4 * 2 + h].ptr) + l / 4 * 2, 2);
    break;
  case MmaS8:
    multiply<int8_t>(w, [](const int8_t *a, const int8_t *b, int n) { int s = 0; for (int k = 0; k < n; k++) s += (int16_t)a[k] * (int16_t)b[k]; return s; }, int32_t(0));
    break;
  case MmaF16:
    multiply<_Float16>(w, [](const _Float16 *a, const _Float16 *b, int n) { float s = 0; for (int k = 0; k < n; k++) s += (float)a[k] * (float)b[k]; return s; }, 0.f);
    break;
  case MmaBF16:
    multiply<fb_bf16>(w, [](const fb_bf16 *a, const fb_bf16 *b, int n) { float s = 0; for (int k = 0; k < n; k++) s += fb_bf16_to_f32(a[k]) * fb_bf16_to_f32(b[k]); return s; }, 0.f);
    break;
  case MmaTF32:
    multiply<float>(w, [](const float *a, const float *b, int n) {
      float s = 0;
      for (int k = 0; k < n; k++) s += __uint_as_float(__float_as_uint(a[k]) & ~0x1fffu) * __uint_as_float(__float_as_uint(b[k]) & ~0x1fffu);
      return s;
    }, 0.f);
    break;
  case Same: // operands that have to be one for the warp
    for (int i = 1; i < 32; i++)
      if (memcmp(w[i].in, w[0].in, 24)) return stop("lanes 0 and %d of a warp name different operands", i);
    break;
  default: break; // SyncWarp
  }
}

// A small generator: schedules need variety, not quality.
struct Random {
  uint32_t state;
  uint32_t next() {
    state = state * 1664525u + 1013904223u;
    return state >> 12;
  }
};

// Runs one warp until it waits for the block, ends, or (some seeds) is preempted
// after a warp operation. False where the launch failed.
bool run_warp(Block &b, Fiber *w, Random &random, unsigned seed, bool *progress) {
  const bool preempts = seed == 1 || seed == 2; // otherwise a warp may be far ahead of those that it need not wait for
  for (;;) {
    const unsigned first = seed ? random.next() : 0;
    for (int i = 0; i < 32; i++) {
      Fiber &f = w[(i + first) & 31];
      if (f.state == AtCondition && f.ready(f.condition, f.argument)) f.state = Ready;
      if (f.state != Ready) continue;
      b.fiber = &f;
      *progress = true;
      fb_emu_switch(&b.scheduler, f.sp);
      if (g_aborted) return false;
    }
    int waiting = 0, blocked = 0, later = 0;
    for (int i = 0; i < 32; i++) {
      waiting += w[i].state == AtWarp;
      blocked += w[i].state == AtBlock;
      later += w[i].state == AtCondition;
    }
    if (waiting == 0 || (later && waiting + later == 32)) return true;
    if (waiting != 32) {
      stop(blocked ? "%d lanes wait in a warp operation while %d wait at __syncthreads" : "a warp operation by %d lanes, %d at a barrier, the rest ended", waiting, blocked);
      return false;
    }
    for (int i = 1; i < 32; i++)
      if (w[i].op != w[0].op) {
        stop("lanes 0 and %d of a warp meet in different operations", i);
        return false;
      }
    run_warp_op(w);
    if (g_aborted) return false;
    for (int i = 0; i < 32; i++) w[i].state = Ready;
    *progress = true;
    if (preempts && (random.next() & 3) == 0) return true; // another warp's turn
  }
}

bool run_block(Block &b, std::vector<Fiber> &fibers, unsigned n, Random &random, unsigned seed) {
  b.statics.clear();
  b.bulks.clear();
  b.pool_used = 0;
  memset(b.dynamic, kPoison, b.dynamic_bytes);
  const unsigned warps = n / 32;
  for (unsigned t = 0; t < n; t++) {
    fibers[t].tid = dim3(t % b.block.x, t / b.block.x % b.block.y, t / (b.block.x * b.block.y));
    fibers[t].lane = t & 31;
    prepare(fibers[t]);
  }
  for (;;) {
    bool progress = false;
    const unsigned first = seed ? random.next() : 0;
    for (unsigned i = 0; i < warps; i++)
      if (!run_warp(b, &fibers[(i + first) % warps * 32], random, seed, &progress)) return false;
    if (progress && !(seed && (random.next() & 7) == 0)) continue;
    if (!b.bulks.empty() && std::all_of(fibers.begin(), fibers.begin() + n, [](const Fiber &f) { return f.state == Done; })) {
      stop("a block ends while TMA brings it tiles");
      return false;
    }
    if (!b.bulks.empty()) {
      land_bulk(random.next() % b.bulks.size());
      continue;
    }
    if (progress) continue;
    // Nobody can run: all ended, or all that live wait at one barrier.
    unsigned blocked = 0, done = 0, later = 0;
    int site = 0;
    for (unsigned t = 0; t < n; t++) {
      done += fibers[t].state == Done;
      later += fibers[t].state == AtCondition;
      if (fibers[t].state != AtBlock) continue;
      blocked++;
      if (site != 0 && fibers[t].site != site) {
        stop("threads meet at different __syncthreads (lines %d and %d)", site, fibers[t].site);
        return false;
      }
      site = fibers[t].site;
    }
    for (unsigned t = 32; t < n; t++)
      if (done == n && t % 128 && fibers[t].wgmmas != fibers[t - 1].wgmmas) {
        stop("the warps of a warpgroup ran different numbers of wgmma");
        return false;
      }
    if (done == n) return true;
    if (later) {
      stop("%u threads wait for a phase of an mbarrier that nothing ends", later);
      return false;
    }
    if (done != 0) {
      stop("__syncthreads in line %d is not reached by all threads: %u wait, %u have ended", site, blocked, done);
      return false;
    }
    for (unsigned t = 0; t < n; t++) fibers[t].state = Ready;
  }
}

void install_guard();

} // namespace

struct Launch {
  const char *kernel;
  dim3 grid, block;
  size_t smem;
  std::function<void()> body;
};

static void run(const Launch &l) {
  install_guard();
  const unsigned n = l.block.x * l.block.y * l.block.z;
  g_aborted = false;
  const uint64_t blocks = (uint64_t)l.grid.x * l.grid.y * l.grid.z;
  // Limits of the hardware (CUDA programming guide, compute capabilities).
  if (n == 0 || n > 1024 || n % 32 || blocks == 0 || l.grid.y > 65535 || l.grid.z > 65535 || l.grid.x > 0x7fffffffu || l.smem > kSharedLimit) {
    Block where;
    where.kernel = l.kernel;
    block_now = &where;
    stop("a launch of %u threads a block (whole warps, at most 1024), %u x %u x %u blocks, %zu bytes of shared memory", n, l.grid.x, l.grid.y, l.grid.z, l.smem);
    block_now = nullptr;
    return;
  }
  static thread_local std::vector<Fiber> fibers;
  if (fibers.size() < n) {
    const size_t old = fibers.size();
    fibers.resize(n);
    for (size_t i = old; i < n; i++) {
      void *p = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) { stop("no memory for the emulated threads"); fibers.resize(i); return; }
      mprotect(p, kPage, PROT_NONE); // an overflow is a fault, not damage
      fibers[i].stack = static_cast<char *>(p);
    }
  }
  const unsigned seed = g_seed.load();
  Random random{seed * 2654435761u + 1};
  Block b;
  std::vector<unsigned char> shared(l.smem + kStaticShared + 2048);
  b.grid = l.grid;
  b.block = l.block;
  b.kernel = l.kernel;
  b.body = &l.body;
  b.dynamic = reinterpret_cast<unsigned char *>((reinterpret_cast<uintptr_t>(shared.data()) + 1023) & ~uintptr_t(1023));
  b.dynamic_bytes = l.smem;
  b.pool = b.dynamic + ((l.smem + 127) & ~size_t(127));
  b.eager = seed & 1;
  b.eager_products = (seed & 3) == 1;
  block_now = &b;
  const uint64_t first = seed ? random.next() % blocks : 0;
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t at = (i + first) % blocks;
    b.index = dim3((unsigned)(at % l.grid.x), (unsigned)(at / l.grid.x % l.grid.y), (unsigned)(at / l.grid.x / l.grid.y));
    if (!run_block(b, fibers, n, random, seed)) break;
  }
  block_now = nullptr;
}

void submit(const char *kernel, dim3 grid, dim3 block, size_t smem, void *stream, std::function<void()> body) {
  Launch l{kernel, grid, block, smem, std::move(body)};
  if (fb_emu_hook hook = g_hook.load()) {
    Launch *kept = new Launch(std::move(l));
    const int r = hook(g_hook_user.load(), stream, kept);
    if (r == FB_EMU_TAKEN) return;
    if (r == FB_EMU_RUN) run(*kept);
    else g_error = r;
    delete kept;
    return;
  }
  run(l);
}

void wait_warp(Op op) {
  block_now->fiber->op = op;
  yield(AtWarp);
}

void wait_until(bool (*ready)(const void *, uint32_t), const void *condition, uint32_t argument) {
  Fiber *f = block_now->fiber;
  if (ready(condition, argument)) return;
  f->ready = ready;
  f->condition = condition;
  f->argument = argument;
  yield(AtCondition);
}

void sync_block(int line) {
  block_now->fiber->site = line;
  yield(AtBlock);
}

int64_t grid_limit(int64_t limit) { return g_seed >= kSmallGrids && limit > kSmallGrid ? kSmallGrid : limit; }

bool left_out(const char *file, int line) {
  if (line != g_left_out_line) return false;
  const size_t n = strlen(file), m = strlen(g_left_out_file);
  return n >= m && !strcmp(file + n - m, g_left_out_file) && (n == m || file[n - m - 1] == '/');
}

void *static_shared(int id, size_t bytes) {
  Block *b = block_now;
  for (const Static &s : b->statics)
    if (s.id == id) return b->pool + s.offset;
  const size_t at = (b->pool_used + 127) & ~size_t(127);
  if (at + bytes > kStaticShared) fail("more than %zu bytes of static shared memory", kStaticShared);
  b->pool_used = at + bytes;
  b->statics.push_back({id, at});
  memset(b->pool + at, kPoison, bytes);
  return b->pool + at;
}

void check_aligned(const void *p, size_t to, const char *what) {
  if (reinterpret_cast<uintptr_t>(p) % to) fail("%s is not aligned to %zu bytes", what, to);
}

void land(const Copy &c) {
  if (c.pred) memcpy(c.dst, c.src, (size_t)c.bytes);
  else memset(c.dst, 0, (size_t)c.bytes);
}

int last_error() {
  const int e = g_error;
  g_error = cudaSuccess;
  return e;
}

// ---- device memory: each allocation ends at an unreadable page, and begins after one

namespace {

struct Allocation {
  char *map;
  size_t mapped, bytes;
};
std::mutex g_memory_lock;
std::map<uintptr_t, Allocation> g_memory; // by address
thread_local uintptr_t g_fault_address;
struct sigaction g_previous;

constexpr unsigned char kRedZone = 0xA5; // between an allocation's end and its last page's

// Runs on the fiber's stack in the place of the instruction that faulted.
[[noreturn]] void landed() {
  const uintptr_t a = g_fault_address;
  char near[128] = "no allocation is near";
  {
    std::lock_guard<std::mutex> hold(g_memory_lock);
    auto it = g_memory.upper_bound(a);
    if (it != g_memory.begin()) {
      auto before = std::prev(it);
      if (a < reinterpret_cast<uintptr_t>(before->second.map) + before->second.mapped)
        snprintf(near, sizeof near, "%zu bytes past the start of an allocation of %zu", (size_t)(a - before->first), before->second.bytes);
    }
    if (it != g_memory.end() && a >= reinterpret_cast<uintptr_t>(it->second.map))
      snprintf(near, sizeof near, "%zu bytes before an allocation of %zu", (size_t)(it->first - a), it->second.bytes);
  }
  fail("access outside device memory: %s", near);
}

void on_fault(int sig, siginfo_t *info, void *context) {
  const Block *b = block_now;
  if (b && b->fiber && b->fiber->state == Ready) {
    g_fault_address = reinterpret_cast<uintptr_t>(info->si_addr);
    auto *uc = static_cast<ucontext_t *>(context);
    greg_t &sp = uc->uc_mcontext.gregs[REG_RSP];
    sp = ((sp - 128) & ~greg_t(15)) - 8; // past the red zone, aligned as after a call
    uc->uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(&landed);
    return;
  }
  if (g_previous.sa_flags & SA_SIGINFO) {
    if (g_previous.sa_sigaction) return g_previous.sa_sigaction(sig, info, context);
  } else if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) {
    return g_previous.sa_handler(sig);
  }
  signal(sig, SIG_DFL);
}

void install_guard() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction a = {};
    a.sa_sigaction = on_fault;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigfillset(&a.sa_mask);
    sigaction(SIGSEGV, &a, &g_previous);
  });
}

bool damaged(const Allocation &a, uintptr_t at) {
  const auto *p = reinterpret_cast<const unsigned char *>(at);
  for (const auto *q = reinterpret_cast<const unsigned char *>(a.map) + kPage; q < p; q++)
    if (*q != kRedZone) return true;
  for (const auto *q = p + a.bytes; q < reinterpret_cast<const unsigned char *>(a.map) + a.mapped - kPage; q++)
    if (*q != kRedZone) return true;
  return false;
}

} // namespace
} // namespace fbemu

using namespace fbemu;

extern "C" {

void fb_emu_configure(unsigned seed, int sm) {
  g_seed = seed;
  g_sm = sm;
}

void fb_emu_leave_out(const char *file, int line) {
  snprintf(g_left_out_file, sizeof g_left_out_file, "%s", file);
  g_left_out_line = line;
}

int fb_emu_sm(void) { return g_sm; }

void fb_emu_message(char *text, size_t bytes) {
  std::lock_guard<std::mutex> hold(g_message_lock);
  snprintf(text, bytes, "%s", g_message);
}

void fb_emu_set_hook(fb_emu_hook hook, void *user) {
  g_hook_user = user;
  g_hook = hook;
}

void fb_emu_run(void *launch) { run(*static_cast<Launch *>(launch)); }
int fb_emu_last_error(void) { return last_error(); }
void fb_emu_drop(void *launch) { delete static_cast<Launch *>(launch); }

void *fb_emu_alloc(size_t bytes) {
  const size_t body = ((bytes ? bytes : 1) + kPage - 1) / kPage * kPage;
  char *map = static_cast<char *>(mmap(nullptr, body + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (map == MAP_FAILED) return nullptr;
  mprotect(map, kPage, PROT_NONE);
  mprotect(map + kPage + body, kPage, PROT_NONE);
  // As near to the end as the alignment of vector accesses allows.
  char *p = map + kPage + ((body - bytes) & ~size_t(15));
  memset(map + kPage, kRedZone, body);
  memset(p, kPoison, bytes);
  std::lock_guard<std::mutex> hold(g_memory_lock);
  g_memory[reinterpret_cast<uintptr_t>(p)] = {map, body + 2 * kPage, bytes};
  return p;
}

int fb_emu_free(void *p) {
  if (!p) return 0;
  Allocation a;
  bool bad;
  {
    std::lock_guard<std::mutex> hold(g_memory_lock);
    auto it = g_memory.find(reinterpret_cast<uintptr_t>(p));
    if (it == g_memory.end()) return cudaErrorInvalidValue;
    a = it->second;
    bad = damaged(a, it->first);
    g_memory.erase(it);
  }
  munmap(a.map, a.mapped);
  if (!bad) return 0;
  std::lock_guard<std::mutex> hold(g_message_lock);
  snprintf(g_message, sizeof g_message, "an allocation of %zu bytes was written around", a.bytes);
  return cudaErrorIllegalAddress;
}

} // extern "C"

//go:build cuda && cudaemu

// fake.cpp: a CUDA driver made of host memory, for tests.
//
// One device, whose kernels are those of the emulation (cuda/emulate). It is
// strict where a GPU is only sometimes: work that is queued on a stream runs when
// something waits for it and not before, so a result that is read without waiting
// is wrong every time; calls need the context on their own thread; graphs refuse
// what CUDA refuses to capture; memory that is written around is reported when it
// is freed. Numbers are those of cuda.h, which the tests' build need not have.
#include <stdlib.h>
#include <string.h>

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "../../../../cuda/emulate/emulate_api.h"
#include "fake.h"
#include "slots.h"

namespace {

enum Result {
  kOK = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kUnavailable = 46, kInvalidDevice = 101, kInvalidContext = 201,
  kInvalidHandle = 400, kNotReady = 600, kIllegalAddress = 700, kAlreadyRegistered = 712, kNotRegistered = 713,
  kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureUnmatched = 903, kCaptureUnjoined = 904, kCaptureWrongThread = 908, kCapturedEvent = 907,
};

// What cuMemAlloc promises; allocations are cut into tensors at multiples of it.
constexpr size_t kAlignment = 256;
constexpr unsigned char kRedZone = 0xA5;

struct Stream;
struct Capture;

struct Event {
  uint64_t recorded = 0, done = 0; // how often
  Stream *where = nullptr;         // of the last record
  Capture *captured = nullptr;     // that record was captured
  bool timing = false;
  std::chrono::steady_clock::time_point at;
};

using Work = std::function<int()>;

struct Capture {
  Stream *origin;
  const void *thread;
  bool invalid = false;
  std::vector<Work> nodes;
  std::set<Stream *> members;  // besides the origin
  std::set<Stream *> unjoined; // of these, with work that the origin does not wait for
};

struct Stream {
  std::deque<Work> queue;
  Capture *capture = nullptr;
};

struct Graph {
  std::vector<Work> nodes;
};

struct Allocation {
  size_t bytes, rounded;
};

struct Machine {
  std::mutex lock;
  fewbit_faults faults{0, 0, 1, int64_t(1) << 30, int64_t(1) << 30, -1, 0, 0, 0};
  int references = 0; // of the primary context
  uint64_t context = 0;
  int sticky = 0;
  int64_t used = 0, pinned_bytes = 0, launches = 0;
  std::map<uintptr_t, Allocation> memory;
  std::map<uintptr_t, size_t> pinned;
  std::set<Stream *> streams;
  std::set<Event *> events;
  std::set<Graph *> graphs, execs;
  std::set<Capture *> captures;
};

Machine &m() {
  static Machine machine;
  return machine;
}
using Hold = std::lock_guard<std::mutex>;

thread_local uint64_t current; // the context of this thread
thread_local char this_thread; // its address names the thread

// Every call begins here: is there a device, a context, and is it whole?
int ready() {
  if (m().faults.lost) return m().sticky = m().sticky ? m().sticky : kUnavailable;
  if (m().references == 0 || current != m().context) return kInvalidContext;
  return m().sticky;
}

// What may not happen while this thread captures (thread-local mode).
int not_capturing() {
  if (int r = ready()) return r;
  for (Capture *c : m().captures)
    if (c->thread == &this_thread) {
      c->invalid = true;
      return kCaptureUnsupported;
    }
  return kOK;
}

void step(Stream *s) {
  Work w = std::move(s->queue.front());
  s->queue.pop_front();
  const int r = w();
  if (r && !m().sticky) m().sticky = r;
}
void drain(Stream *s) {
  while (!s->queue.empty()) step(s);
}
void drain_all() {
  for (Stream *s : m().streams) drain(s);
}
// Until the record of that number, which is on s: the event may have been recorded elsewhere since.
void wait_for(Event *e, Stream *s, uint64_t until) {
  while (e->done < until && s && !s->queue.empty()) step(s);
}

// Queues work, or records it where the stream is captured.
int put(Stream *s, Work w) {
  if (Capture *c = s->capture) {
    if (c->invalid) return kCaptureInvalidated;
    if (s != c->origin) c->unjoined.insert(s);
    c->nodes.push_back(std::move(w));
    return kOK;
  }
  s->queue.push_back([w = std::move(w)] { return m().sticky ? 0 : w(); });
  return kOK;
}

bool inside(const std::map<uintptr_t, size_t> &blocks, uintptr_t p, size_t n) {
  auto it = blocks.upper_bound(p);
  if (it == blocks.begin()) return false;
  --it;
  return p - it->first <= it->second && n <= it->second - (p - it->first);
}
bool on_device(uintptr_t p, size_t n) {
  auto it = m().memory.upper_bound(p);
  if (it == m().memory.begin()) return false;
  --it;
  return p - it->first <= it->second.bytes && n <= it->second.bytes - (p - it->first);
}

// ---- kernels: the emulation asks here before each launch

// A launch finds out at once that memory lacks (for the threads' stacks), but a fault when it runs.
bool launch_lacks_memory() {
  if (m().faults.launches != 0 || m().faults.launch_error != kOutOfMemory) return false;
  m().faults.launches = -1;
  return true;
}

int run_kernel(void *launch) {
  m().launches++;
  if (m().faults.launches == 0 && m().faults.launch_error != kOutOfMemory) {
    m().faults.launches = -1;
    return m().faults.launch_error;
  }
  if (m().faults.launches > 0) m().faults.launches--;
  fb_emu_run(launch);
  return fb_emu_last_error();
}

int hook(void *, void *stream, void *launch) {
  Hold hold(m().lock);
  if (!stream) return FB_EMU_RUN; // outside this driver: the kernels' own tests
  if (int r = ready()) return r;
  Stream *s = static_cast<Stream *>(stream);
  if (!m().streams.count(s)) return kInvalidHandle;
  if (!s->capture && launch_lacks_memory()) return kOutOfMemory;
  if (s->capture && s->capture->invalid) return kCaptureInvalidated;
  std::shared_ptr<void> kept(launch, fb_emu_drop);
  put(s, [kept] { return run_kernel(kept.get()); });
  return FB_EMU_TAKEN;
}

// ---- devices and the primary context

int cuDriverGetVersion(int *v) { return *v = 13000, kOK; }
int cuDeviceGetCount(int *n) {
  Hold hold(m().lock);
  return *n = m().faults.devices, kOK;
}
int cuDeviceGet(int *d, int ordinal) {
  Hold hold(m().lock);
  if (ordinal < 0 || ordinal >= m().faults.devices) return kInvalidDevice;
  return *d = ordinal, kOK;
}
int cuDeviceGetName(char *name, int n, int) {
  if (n > 0) strncpy(name, "emulated GPU", (size_t)n - 1);
  return kOK;
}
int cuDeviceGetUuid(void *uuid, int d) {
  memset(uuid, 0xE0 + d, 16);
  return kOK;
}
int cuDeviceTotalMem(size_t *bytes, int) {
  Hold hold(m().lock);
  return *bytes = (size_t)m().faults.memory, kOK;
}
int cuDeviceGetAttribute(int *v, int attribute, int) {
  switch (attribute) {
  case 16: *v = 4; break;                      // multiprocessors
  case 13: case 36: *v = 1000000; break;       // clocks, kHz
  case 37: *v = 64; break;                     // memory bus, bits
  case 38: *v = 4 << 20; break;                // L2
  case 75: *v = fb_emu_sm() / 10; break;       // compute capability
  case 76: *v = fb_emu_sm() % 10; break;
  case 97: *v = 227 << 10; break;              // shared memory of a block
  default: return kInvalidValue;
  }
  return kOK;
}
int cuDevicePrimaryCtxRetain(void **context, int) {
  Hold hold(m().lock);
  if (m().faults.lost) return kUnavailable;
  if (m().sticky) return m().sticky;
  if (m().references++ == 0) m().context++;
  *context = reinterpret_cast<void *>(m().context);
  return kOK;
}
void end_context() {
  drain_all();
  for (auto &a : m().memory) fb_emu_free(reinterpret_cast<void *>(a.first));
  for (Stream *s : m().streams) delete s;
  for (Event *e : m().events) delete e;
  for (Graph *g : m().graphs) delete g;
  for (Graph *g : m().execs) delete g;
  for (Capture *c : m().captures) delete c;
  m().memory.clear();
  m().pinned.clear();
  m().streams.clear();
  m().events.clear();
  m().graphs.clear();
  m().execs.clear();
  m().captures.clear();
  m().used = m().pinned_bytes = 0;
  m().references = 0;
  m().sticky = 0;
}
int cuDevicePrimaryCtxRelease(int) {
  Hold hold(m().lock);
  if (m().references == 0) return kInvalidContext;
  const int r = m().sticky;
  if (--m().references == 0 && !r) end_context();
  return r;
}
int cuDevicePrimaryCtxReset(int) {
  Hold hold(m().lock);
  end_context();
  return m().faults.lost ? kUnavailable : kOK;
}
int cuCtxSetCurrent(void *context) {
  Hold hold(m().lock);
  const uint64_t id = reinterpret_cast<uint64_t>(context);
  if (id && (id != m().context || m().references == 0)) return kInvalidContext;
  current = id;
  return ready();
}
int cuCtxSynchronize(void) {
  Hold hold(m().lock);
  if (int r = not_capturing()) return r;
  drain_all();
  return m().sticky;
}

// ---- memory

int cuMemGetInfo(size_t *available, size_t *total) {
  Hold hold(m().lock);
  if (int r = ready()) return r;
  *total = (size_t)m().faults.memory;
  *available = (size_t)std::max<int64_t>(0, m().faults.memory - m().used);
  return kOK;
}
int cuMemAlloc(uintptr_t *p, size_t bytes) {
  Hold hold(m().lock);
  if (int r = not_capturing()) return r;
  if (bytes == 0) return kInvalidValue;
  if (bytes > (size_t)std::max<int64_t>(0, m().faults.memory - m().used)) return kOutOfMemory;
  const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  auto *q = static_cast<unsigned char *>(fb_emu_alloc(rounded));
  if (!q) return kOutOfMemory;
  memset(q + bytes, kRedZone, rounded - bytes);
  *p = reinterpret_cast<uintptr_t>(q);
  m().memory[*p] = {bytes, rounded};
  m().used += (int64_t)rounded;
  return kOK;
}
int cuMemFree(uintptr_t p) {
  Hold hold(m().lock);
  if (int r = not_capturing()) return r;
  auto it = m().memory.find(p);
  if (it == m().memory.end()) return kInvalidValue;
  drain_all();
  const Allocation a = it->second;
  bool damaged = false;
  for (size_t i = a.bytes; i < a.rounded; i++) damaged |= reinterpret_cast<unsigned char *>(p)[i] != kRedZone;
  m().memory.erase(it);
  m().used -= (int64_t)a.rounded;
  const int r = fb_emu_free(reinterpret_cast<void *>(p));
  if (r || damaged) m().sticky = kIllegalAddress; // a GPU may well not notice
  return m().sticky;
}
int cuMemHostRegister(void *p, size_t bytes, unsigned) {
  Hold hold(m().lock);
  if (int r = not_capturing()) return r;
  if (m().pinned.count(reinterpret_cast<uintptr_t>(p))) return kAlreadyRegistered;
  if ((int64_t)bytes > m().faults.host_memory - m().pinned_bytes) return kOutOfMemory;
  m().pinned[reinterpret_cast<uintptr_t>(p)] = bytes;
  m().pinned_bytes += (int64_t)bytes;
  return kOK;
}
int cuMemHostUnregister(void *p) {
  Hold hold(m().lock);
  if (int r = not_capturing()) return r;
  auto it = m().pinned.find(reinterpret_cast<uintptr_t>(p));
  if (it == m().pinned.end()) return kNotRegistered;
  drain_all();
  m().pinned_bytes -= (int64_t)it->second;
  m().pinned.erase(it);
  return m().sticky;
}

// ---- streams

int stream_of(void *handle, Stream **s) {
  if (int r = ready()) return r;
  *s = static_cast<Stream *>(handle);
  return m().streams.count(*s) ? kOK : kInvalidHandle;
}
int cuStreamCreate(void **s, unsigned) {
  Hold hold(m().lock);
  if (int r = ready()) return r;
  *s = *m().streams.insert(new Stream).first;
  return kOK;
}
int cuStreamDestroy(void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  drain(s);
  for (Event *e : m().events)
    if (e->where == s) e->where = nullptr;
  m().streams.erase(s);
  delete s;
  return m().sticky;
}
int cuStreamSynchronize(void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (s->capture) {
    s->capture->invalid = true;
    return kCaptureUnsupported;
  }
  drain(s);
  return m().sticky;
}
int cuStreamQuery(void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (s->capture) {
    s->capture->invalid = true;
    return kCaptureUnsupported;
  }
  if (s->queue.empty()) return kOK;
  step(s); // so that asking often enough ends
  return m().sticky ? m().sticky : kNotReady;
}
int cuStreamWaitEvent(void *handle, void *event, unsigned) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  Event *e = static_cast<Event *>(event);
  if (!m().events.count(e)) return kInvalidHandle;
  if (Capture *c = e->captured) {
    if (s->capture && s->capture != c) return kCaptureUnsupported;
    s->capture = c;
    if (s == c->origin) c->unjoined.erase(e->where);
    else c->members.insert(s);
    return kOK; // the order of recording is an order of the graph
  }
  if (s->capture) return kCaptureUnsupported;
  s->queue.push_back([e, where = e->where, until = e->recorded] { return wait_for(e, where, until), 0; });
  return kOK;
}

// ---- copies

int cuMemcpyHtoDAsync(uintptr_t dst, const void *src, size_t n, void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (!on_device(dst, n)) return kInvalidValue;
  void *to = reinterpret_cast<void *>(dst);
  if (inside(m().pinned, reinterpret_cast<uintptr_t>(src), n)) return put(s, [=] { return memcpy(to, src, n), 0; });
  if (s->capture) return kCaptureUnsupported;
  auto from = static_cast<const unsigned char *>(src);
  return put(s, [to, staged = std::vector<unsigned char>(from, from + n)] { return memcpy(to, staged.data(), staged.size()), 0; });
}
int cuMemcpyDtoHAsync(void *dst, uintptr_t src, size_t n, void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (!on_device(src, n)) return kInvalidValue;
  const void *from = reinterpret_cast<const void *>(src);
  if (inside(m().pinned, reinterpret_cast<uintptr_t>(dst), n)) return put(s, [=] { return memcpy(dst, from, n), 0; });
  if (s->capture) return kCaptureUnsupported;
  drain(s);
  if (!m().sticky) memcpy(dst, from, n);
  return m().sticky;
}
int cuMemcpyDtoDAsync(uintptr_t dst, uintptr_t src, size_t n, void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (!on_device(src, n) || !on_device(dst, n)) return kInvalidValue;
  return put(s, [=] { return memmove(reinterpret_cast<void *>(dst), reinterpret_cast<const void *>(src), n), 0; });
}
int cuMemsetD8Async(uintptr_t dst, unsigned char v, size_t n, void *handle) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (!on_device(dst, n)) return kInvalidValue;
  return put(s, [=] { return memset(reinterpret_cast<void *>(dst), v, n), 0; });
}

// ---- events

int event_of(void *handle, Event **e) {
  if (int r = ready()) return r;
  *e = static_cast<Event *>(handle);
  return m().events.count(*e) ? kOK : kInvalidHandle;
}
int cuEventCreate(void **e, unsigned flags) {
  Hold hold(m().lock);
  if (int r = ready()) return r;
  Event *made = *m().events.insert(new Event).first;
  made->timing = !(flags & 2);
  *e = made;
  return kOK;
}
int cuEventDestroy(void *handle) {
  Hold hold(m().lock);
  Event *e;
  if (int r = event_of(handle, &e)) return r;
  drain_all(); // queued records and waits point to it
  m().events.erase(e);
  delete e;
  return m().sticky;
}
int cuEventRecord(void *handle, void *stream) {
  Hold hold(m().lock);
  Event *e;
  Stream *s;
  if (int r = event_of(handle, &e)) return r;
  if (int r = stream_of(stream, &s)) return r;
  e->where = s;
  if (s->capture) return e->captured = s->capture, kOK;
  e->captured = nullptr;
  const uint64_t n = ++e->recorded;
  s->queue.push_back([e, n] {
    e->done = n;
    e->at = std::chrono::steady_clock::now();
    return 0;
  });
  return kOK;
}
int cuEventSynchronize(void *handle) {
  Hold hold(m().lock);
  Event *e;
  if (int r = event_of(handle, &e)) return r;
  if (e->captured) return kCapturedEvent;
  wait_for(e, e->where, e->recorded);
  return m().sticky;
}
int cuEventQuery(void *handle) {
  Hold hold(m().lock);
  Event *e;
  if (int r = event_of(handle, &e)) return r;
  if (e->captured) return kCapturedEvent;
  if (e->done == e->recorded || !e->where || e->where->queue.empty()) return kOK;
  step(e->where);
  return m().sticky ? m().sticky : kNotReady;
}
int cuEventElapsedTime(float *ms, void *start, void *end) {
  Hold hold(m().lock);
  Event *a, *b;
  if (int r = event_of(start, &a)) return r;
  if (int r = event_of(end, &b)) return r;
  if (!a->timing || !b->timing || a->recorded == 0 || b->recorded == 0) return kInvalidHandle;
  if (a->done != a->recorded || b->done != b->recorded) return kNotReady;
  *ms = std::chrono::duration<float, std::milli>(b->at - a->at).count();
  return kOK;
}

// ---- graphs

int cuStreamBeginCapture(void *handle, int) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  if (s->capture) return kCaptureUnmatched;
  s->capture = new Capture{s, &this_thread, false, {}, {}, {}};
  m().captures.insert(s->capture);
  return kOK;
}
int cuStreamEndCapture(void *handle, void **graph) {
  Hold hold(m().lock);
  *graph = nullptr;
  Stream *s;
  if (int r = stream_of(handle, &s)) return r;
  Capture *c = s->capture;
  if (!c || c->origin != s) return kCaptureUnmatched;
  if (c->thread != &this_thread) return kCaptureWrongThread;
  s->capture = nullptr;
  for (Stream *o : c->members) o->capture = nullptr;
  for (Event *e : m().events)
    if (e->captured == c) e->captured = nullptr;
  const int r = c->invalid ? kCaptureInvalidated : c->unjoined.empty() ? kOK : kCaptureUnjoined;
  if (!r) *graph = *m().graphs.insert(new Graph{std::move(c->nodes)}).first;
  m().captures.erase(c);
  delete c;
  return r;
}
int cuGraphGetNodes(void *graph, void **, size_t *n) {
  Hold hold(m().lock);
  Graph *g = static_cast<Graph *>(graph);
  if (!m().graphs.count(g)) return kInvalidValue;
  return *n = g->nodes.size(), kOK;
}
int cuGraphDestroy(void *graph) {
  Hold hold(m().lock);
  Graph *g = static_cast<Graph *>(graph);
  if (!m().graphs.erase(g)) return kInvalidValue;
  delete g;
  return kOK;
}
int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
  Hold hold(m().lock);
  if (int r = ready()) return r;
  Graph *g = static_cast<Graph *>(graph);
  if (!m().graphs.count(g)) return kInvalidValue;
  if (m().faults.capture_error) return m().faults.capture_error;
  *exec = *m().execs.insert(new Graph(*g)).first;
  return kOK;
}
int cuGraphLaunch(void *exec, void *stream) {
  Hold hold(m().lock);
  Stream *s;
  if (int r = stream_of(stream, &s)) return r;
  Graph *g = static_cast<Graph *>(exec);
  if (!m().execs.count(g)) return kInvalidValue;
  if (launch_lacks_memory()) return kOutOfMemory;
  for (const Work &w : g->nodes)
    if (int r = put(s, w)) return r;
  return kOK;
}
int cuGraphExecDestroy(void *exec) {
  Hold hold(m().lock);
  Graph *g = static_cast<Graph *>(exec);
  if (!m().execs.erase(g)) return kInvalidValue;
  delete g;
  return kOK;
}

struct Entry {
  const char *name;
  void *function;
};
#define ENTRY(name, function) {name, reinterpret_cast<void *>(function)}
const Entry entries[] = {
  ENTRY("cuDriverGetVersion", cuDriverGetVersion), ENTRY("cuDeviceGetCount", cuDeviceGetCount), ENTRY("cuDeviceGet", cuDeviceGet),
  ENTRY("cuDeviceGetName", cuDeviceGetName), ENTRY("cuDeviceGetUuid", cuDeviceGetUuid), ENTRY("cuDeviceGetUuid_v2", cuDeviceGetUuid),
  ENTRY("cuDeviceTotalMem_v2", cuDeviceTotalMem), ENTRY("cuDeviceGetAttribute", cuDeviceGetAttribute),
  ENTRY("cuDevicePrimaryCtxRetain", cuDevicePrimaryCtxRetain), ENTRY("cuDevicePrimaryCtxRelease_v2", cuDevicePrimaryCtxRelease),
  ENTRY("cuDevicePrimaryCtxReset_v2", cuDevicePrimaryCtxReset), ENTRY("cuCtxSetCurrent", cuCtxSetCurrent), ENTRY("cuCtxSynchronize", cuCtxSynchronize),
  ENTRY("cuMemGetInfo_v2", cuMemGetInfo), ENTRY("cuMemAlloc_v2", cuMemAlloc), ENTRY("cuMemFree_v2", cuMemFree),
  ENTRY("cuMemHostRegister_v2", cuMemHostRegister), ENTRY("cuMemHostUnregister", cuMemHostUnregister),
  ENTRY("cuStreamCreate", cuStreamCreate), ENTRY("cuStreamDestroy_v2", cuStreamDestroy), ENTRY("cuStreamSynchronize", cuStreamSynchronize),
  ENTRY("cuStreamQuery", cuStreamQuery), ENTRY("cuStreamWaitEvent", cuStreamWaitEvent),
  ENTRY("cuMemcpyHtoDAsync_v2", cuMemcpyHtoDAsync), ENTRY("cuMemcpyDtoHAsync_v2", cuMemcpyDtoHAsync), ENTRY("cuMemcpyDtoDAsync_v2", cuMemcpyDtoDAsync),
  ENTRY("cuMemsetD8Async", cuMemsetD8Async), ENTRY("cuEventCreate", cuEventCreate), ENTRY("cuEventDestroy_v2", cuEventDestroy),
  ENTRY("cuEventRecord", cuEventRecord), ENTRY("cuEventSynchronize", cuEventSynchronize), ENTRY("cuEventQuery", cuEventQuery),
  ENTRY("cuEventElapsedTime", cuEventElapsedTime), ENTRY("cuEventElapsedTime_v2", cuEventElapsedTime),
  ENTRY("cuStreamBeginCapture_v2", cuStreamBeginCapture), ENTRY("cuStreamEndCapture", cuStreamEndCapture), ENTRY("cuGraphGetNodes", cuGraphGetNodes),
  ENTRY("cuGraphDestroy", cuGraphDestroy), ENTRY("cuGraphInstantiateWithFlags", cuGraphInstantiateWithFlags), ENTRY("cuGraphLaunch", cuGraphLaunch),
  ENTRY("cuGraphExecDestroy", cuGraphExecDestroy),
};

void *find(void *, const char *name) {
  for (const Entry &e : entries)
    if (!strcmp(e.name, name)) return e.function;
  return nullptr;
}

} // namespace

extern "C" {

int fewbit_load_driver(char *text, unsigned long bytes) {
  Hold hold(m().lock);
  if (m().faults.absent) {
    strncpy(text, "libcuda.so.1: cannot open shared object file: No such file or directory", bytes - 1);
    return FEWBIT_NO_LIBRARY;
  }
  if (m().faults.init_error) return m().faults.init_error;
  fewbit_fill_slots(find, nullptr, 500 /* CUDA_ERROR_NOT_FOUND */);
  fb_emu_set_hook(hook, nullptr);
  return 0;
}

void fewbit_fake_inject(const fewbit_faults *f) {
  Hold hold(m().lock);
  m().faults = *f;
}

void fewbit_fake_use(fewbit_use *u) {
  Hold hold(m().lock);
  int64_t queued = 0;
  for (Stream *s : m().streams) queued += (int64_t)s->queue.size();
  *u = fewbit_use{m().references, (int64_t)m().memory.size(), m().used, m().pinned_bytes, (int64_t)m().streams.size(), (int64_t)m().events.size(),
                  (int64_t)(m().graphs.size() + m().execs.size()), queued, m().launches};
}

} // extern "C"

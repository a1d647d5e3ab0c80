// cublaslt.cu: float products by cuBLASLt, where the machine has it. No kernel is
// here. The library is looked for once, by name; FEWBIT_CUBLASLT=off leaves it, a
// path takes that one. Its matrices are column-major: a row-major C [m, n] is its
// D [n, m], so A and B change places.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "cublaslt.h"
#include "fb_cuda.h"

#ifndef FB_EMU
#include <dlfcn.h>
#endif

namespace {

struct Library {
  std::mutex mu;
  bool looked = false;
  FbCublasLt f = {};
  bool there = false;
  void *handle = nullptr; // of this process's context; see fb_cublaslt_reset
  std::string about = "not looked for yet";
  std::map<std::string, FbLtHeuristic> found; // what the heuristic chose, by what it was asked
};
// Never destroyed: products may still run when the process ends.
Library &library() {
  static Library &l = *new Library;
  return l;
}

constexpr size_t kMaxFound = 1024; // choices kept; ragged shapes are many

#ifndef FB_EMU
// A field of FbCublasLt by the symbol's name.
template <class F>
bool symbol(void *lib, const char *name, F *to) {
  *to = reinterpret_cast<F>(dlsym(lib, name));
  return *to != nullptr;
}

void look(Library &l) {
  const char *wish = getenv("FEWBIT_CUBLASLT");
  if (wish && !strcmp(wish, "off")) {
    l.about = "switched off";
    return;
  }
  void *lib = nullptr;
  if (wish && *wish) {
    lib = dlopen(wish, RTLD_NOW | RTLD_LOCAL);
  } else {
    // The one of this build's CUDA first; the part that is used has not changed since 12.0.
    const char *const names[] = {CUDART_VERSION >= 13000 ? "libcublasLt.so.13" : "libcublasLt.so.12", CUDART_VERSION >= 13000 ? "libcublasLt.so.12" : "libcublasLt.so.13"};
    for (const char *name : names)
      if (!lib) lib = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (!lib) {
    l.about = "not installed";
    return;
  }
  FbCublasLt &f = l.f;
  l.there = symbol(lib, "cublasLtCreate", &f.Create) && symbol(lib, "cublasLtDestroy", &f.Destroy) && symbol(lib, "cublasLtGetVersion", &f.GetVersion) &&
            symbol(lib, "cublasLtMatmulDescCreate", &f.MatmulDescCreate) && symbol(lib, "cublasLtMatmulDescDestroy", &f.MatmulDescDestroy) &&
            symbol(lib, "cublasLtMatmulDescSetAttribute", &f.MatmulDescSetAttribute) && symbol(lib, "cublasLtMatrixLayoutCreate", &f.MatrixLayoutCreate) &&
            symbol(lib, "cublasLtMatrixLayoutDestroy", &f.MatrixLayoutDestroy) && symbol(lib, "cublasLtMatrixLayoutSetAttribute", &f.MatrixLayoutSetAttribute) &&
            symbol(lib, "cublasLtMatmulPreferenceCreate", &f.MatmulPreferenceCreate) && symbol(lib, "cublasLtMatmulPreferenceDestroy", &f.MatmulPreferenceDestroy) &&
            symbol(lib, "cublasLtMatmulPreferenceSetAttribute", &f.MatmulPreferenceSetAttribute) && symbol(lib, "cublasLtMatmulAlgoGetHeuristic", &f.MatmulAlgoGetHeuristic) &&
            symbol(lib, "cublasLtMatmul", &f.Matmul);
  l.about = l.there ? "cuBLASLt " + std::to_string(f.GetVersion()) : "the library lacks a function";
}
#else
const FbCublasLt *double_of_tests = nullptr;

void look(Library &l) {
  l.there = double_of_tests != nullptr;
  l.about = l.there ? "a double" : "not emulated";
  if (l.there) l.f = *double_of_tests;
}
#endif

// l.mu is held.
bool ready(Library &l) {
  if (!l.looked) {
    l.looked = true;
    look(l);
  }
  if (l.there && !l.handle && l.f.Create(&l.handle) != 0) {
    l.there = false, l.handle = nullptr;
    l.about += ", which could not be initialized";
  }
  return l.there;
}

// What describes one product to the library, taken down at the end.
struct Call {
  const FbCublasLt &f;
  void *desc = nullptr, *a = nullptr, *b = nullptr, *c = nullptr, *preference = nullptr;
  explicit Call(const FbCublasLt &f) : f(f) {}
  ~Call() {
    if (desc) f.MatmulDescDestroy(desc);
    for (void *layout : {a, b, c})
      if (layout) f.MatrixLayoutDestroy(layout);
    if (preference) f.MatmulPreferenceDestroy(preference);
  }
  Call(const Call &) = delete;
  void operator=(const Call &) = delete;

  template <class T>
  bool set(int attribute, T value) { return f.MatmulDescSetAttribute(desc, attribute, &value, sizeof value) == 0; }
  bool layout(void **to, int type, int64_t rows, int64_t cols, int64_t ld, int64_t batch, int64_t stride) {
    if (f.MatrixLayoutCreate(to, type, (uint64_t)rows, (uint64_t)cols, ld) != 0) return false;
    const int32_t count = (int32_t)batch;
    return batch == 1 || (f.MatrixLayoutSetAttribute(*to, FB_LT_LAYOUT_BATCH, &count, sizeof count) == 0 && f.MatrixLayoutSetAttribute(*to, FB_LT_LAYOUT_STRIDE, &stride, sizeof stride) == 0);
  }
};

// The largest power of two up to 256 that p is a multiple of.
uint32_t alignment(const void *p) {
  const uintptr_t v = reinterpret_cast<uintptr_t>(p) | 256;
  return (uint32_t)(v & (~v + 1));
}

} // namespace

int fb_cublaslt_run(const fb_gemm_float *d, const void *a, const void *b, const float *bias, const float *residual, void *c, fb_stream s) {
  // Its epilogue adds the residual before the activation, and its GELU is the other one.
  if (d->out != FB_F32 || (d->act != FB_ACT_NONE && (d->act != FB_ACT_RELU || residual))) return FB_UNSUPPORTED;
  Library &l = library();
  const std::lock_guard<std::mutex> hold(l.mu);
  if (!ready(l)) return FB_UNSUPPORTED;
  const int type = d->in == FB_F16 ? FB_LT_F16 : FB_LT_F32;
  Call call(l.f);
  if (l.f.MatmulDescCreate(&call.desc, d->in == FB_F16 ? FB_LT_COMPUTE_F32 : FB_LT_COMPUTE_TF32, FB_LT_F32) != 0) return FB_UNSUPPORTED;
  int32_t epilogue = (bias ? FB_LT_EPILOGUE_BIAS : 0) | (d->act == FB_ACT_RELU ? FB_LT_EPILOGUE_RELU : 0);
  if (!epilogue) epilogue = FB_LT_EPILOGUE_DEFAULT;
  if (!call.set(FB_LT_DESC_TRANSA, (int32_t)(d->trans_b ? FB_LT_T : FB_LT_N)) || !call.set(FB_LT_DESC_TRANSB, (int32_t)FB_LT_N) || !call.set(FB_LT_DESC_EPILOGUE, epilogue) ||
      (bias && !call.set(FB_LT_DESC_BIAS, bias)))
    return FB_UNSUPPORTED;
  const bool laid = call.layout(&call.a, type, d->trans_b ? d->k : d->n, d->trans_b ? d->n : d->k, d->ldb, d->batch, d->stride_b) &&
                    call.layout(&call.b, type, d->k, d->m, d->lda, d->batch, d->stride_a) && call.layout(&call.c, FB_LT_F32, d->n, d->m, d->ldc, d->batch, d->stride_c);
  if (!laid || l.f.MatmulPreferenceCreate(&call.preference) != 0) return FB_UNSUPPORTED;
  // No workspace: nobody would have to bring one, and no sum depends on who comes first.
  const size_t workspace = 0;
  bool preferred = l.f.MatmulPreferenceSetAttribute(call.preference, FB_LT_PREF_WORKSPACE, &workspace, sizeof workspace) == 0;
  const uint32_t aligned[4] = {alignment(b), alignment(a), alignment(residual ? residual : c), alignment(c)};
  for (int i = 0; i < 4; i++) preferred = preferred && l.f.MatmulPreferenceSetAttribute(call.preference, FB_LT_PREF_ALIGN_A + i, &aligned[i], sizeof aligned[i]) == 0;
  if (!preferred) return FB_UNSUPPORTED;

  char key[320];
  snprintf(key, sizeof key, "%lld %lld %lld %lld %lld %lld %lld %lld %lld %lld %d %d %d %d %u %u %u %u", (long long)d->m, (long long)d->n, (long long)d->k, (long long)d->lda, (long long)d->ldb,
           (long long)d->ldc, (long long)d->batch, (long long)d->stride_a, (long long)d->stride_b, (long long)d->stride_c, d->trans_b, d->in, (int)epilogue, residual != nullptr, aligned[0], aligned[1],
           aligned[2], aligned[3]);
  auto at = l.found.find(key);
  if (at == l.found.end()) {
    FbLtHeuristic h = {};
    int count = 0;
    if (l.f.MatmulAlgoGetHeuristic(l.handle, call.desc, call.a, call.b, call.c, call.c, call.preference, 1, &h, &count) != 0 || count < 1) h.state = -1;
    if (l.found.size() >= kMaxFound) l.found.clear();
    at = l.found.emplace(key, h).first;
  }
  if (at->second.state != 0) return FB_UNSUPPORTED;
  const float alpha = d->alpha, beta = residual ? 1.f : 0.f;
  const int status = l.f.Matmul(l.handle, call.desc, &alpha, b, call.a, a, call.b, &beta, residual ? residual : static_cast<const float *>(c), call.c, c, call.c, &at->second.algo, nullptr, 0, s);
  if (status != 0) {
    at->second.state = status; // not this one again
    return FB_UNSUPPORTED;
  }
  return FB_OK;
}

extern "C" {

int fb_cublaslt(char *text, size_t text_bytes) {
  Library &l = library();
  const std::lock_guard<std::mutex> hold(l.mu);
  const bool there = ready(l);
  if (text && text_bytes) snprintf(text, text_bytes, "%s", l.about.c_str());
  return there;
}

void fb_cublaslt_reset(int lost) {
  Library &l = library();
  const std::lock_guard<std::mutex> hold(l.mu);
  // A lost context's handle has nothing left to give back, and touching it may block.
  if (l.handle && !lost) l.f.Destroy(l.handle);
  l.handle = nullptr;
  l.found.clear();
}

#ifdef FB_EMU
void fb_emu_cublaslt(const FbCublasLt *f) {
  fb_cublaslt_reset(0);
  Library &l = library();
  const std::lock_guard<std::mutex> hold(l.mu);
  double_of_tests = f;
  l.looked = l.there = false;
}
#endif

} // extern "C"

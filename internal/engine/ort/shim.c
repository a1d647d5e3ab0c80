#define _GNU_SOURCE
#include "shim.h"

#include <dlfcn.h>
#ifdef __linux__
#include <malloc.h>
#endif
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fewbit_cpu.h"
#include "onnxruntime_c_api.h"

#define TRY(expr)            \
  do {                       \
    OrtStatus *try_ = (expr); \
    if (try_) return try_;   \
  } while (0)

// Set once by fbort_load, fbort_bind and fbort_env_new, which the Go side calls
// under one lock before anything else; only read afterwards.
static void *library;
static const OrtApiBase *base;
static const OrtApi *api;
static OrtEnv *env;
static OrtAllocator *allocator; // the default one; not owned
static OrtMemoryInfo *cpu;

// ---- library and environment

int fbort_load(const char *lib, char *version, size_t version_len, char *path, size_t path_len, char *err,
               size_t err_len) {
  dlerror();
  void *h = dlopen(lib, RTLD_LAZY | RTLD_LOCAL);
  if (!h) {
    const char *why = dlerror();
    snprintf(err, err_len, "%s", why ? why : "dlopen failed");
    return 1;
  }
  // ISO C has no conversion from object to function pointers; POSIX promises
  // that copying the representation works.
  const OrtApiBase *(*get)(void);
  void *sym = dlsym(h, "OrtGetApiBase");
  if (!sym) {
    snprintf(err, err_len, "no symbol OrtGetApiBase: not an ONNX Runtime library");
    dlclose(h);
    return 1;
  }
  memcpy(&get, &sym, sizeof get);
  const OrtApiBase *b = get();
  if (!b) {
    snprintf(err, err_len, "OrtGetApiBase returned nothing");
    dlclose(h);
    return 1;
  }
  snprintf(version, version_len, "%s", b->GetVersionString());
  Dl_info info;
  snprintf(path, path_len, "%s", dladdr(sym, &info) && info.dli_fname ? info.dli_fname : lib);
  library = h;
  base = b;
  return 0;
}

void fbort_unload(void) {
  if (library && !api) {
    dlclose(library);
    library = NULL;
    base = NULL;
  }
}

int fbort_bind(void) {
  api = base ? base->GetApi(ORT_API_VERSION) : NULL;
  return api != NULL;
}

static struct {
  pthread_mutex_t mu;
  unsigned total; // lines ever written since the last take
  char line[FBORT_LOG_LINES][FBORT_LOG_BYTES];
} logs = {.mu = PTHREAD_MUTEX_INITIALIZER};

static void ORT_API_CALL capture(void *param, OrtLoggingLevel level, const char *category, const char *logid,
                                 const char *location, const char *message) {
  (void)param, (void)level, (void)category, (void)logid, (void)location;
  pthread_mutex_lock(&logs.mu);
  snprintf(logs.line[logs.total++ % FBORT_LOG_LINES], FBORT_LOG_BYTES, "%s", message ? message : "");
  pthread_mutex_unlock(&logs.mu);
}

int fbort_log_take(char *buf) {
  pthread_mutex_lock(&logs.mu);
  unsigned n = logs.total < FBORT_LOG_LINES ? logs.total : FBORT_LOG_LINES;
  for (unsigned i = 0; i < n; i++) {
    const char *line = logs.line[(logs.total - n + i) % FBORT_LOG_LINES];
    buf = stpcpy(buf, line) + 1;
  }
  logs.total = 0;
  pthread_mutex_unlock(&logs.mu);
  return (int)n;
}

OrtStatus *fbort_env_new(int intra_threads, int spin) {
  if (!env) {
#ifdef M_MMAP_THRESHOLD
    // glibc raises its threshold for mmap after the first large free, and what
    // an arena gives back later then stays in the heap: keep it fixed.
    mallopt(M_MMAP_THRESHOLD, FBORT_MMAP_BYTES);
#endif
    OrtThreadingOptions *t = NULL;
    TRY(api->CreateThreadingOptions(&t));
    OrtStatus *s = api->SetGlobalIntraOpNumThreads(t, intra_threads);
    if (!s) s = api->SetGlobalInterOpNumThreads(t, 1);
    if (!s) s = api->SetGlobalSpinControl(t, spin);
    if (!s)
      s = api->CreateEnvWithCustomLoggerAndGlobalThreadPools(capture, NULL, ORT_LOGGING_LEVEL_ERROR, "fewbit", t,
                                                             &env);
    api->ReleaseThreadingOptions(t);
    if (s) return s;
  }
  if (!allocator) TRY(api->GetAllocatorWithDefaultOptions(&allocator));
  if (!cpu) TRY(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &cpu));
  return NULL;
}

void fbort_trim(void) {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

int fbort_status_code(const OrtStatus *s) { return api->GetErrorCode(s); }
const char *fbort_status_text(const OrtStatus *s) { return api->GetErrorMessage(s); }
void fbort_status_release(OrtStatus *s) { api->ReleaseStatus(s); }

// ---- kernels

static const fewbit_cpu_api *kernels;
static OrtStatus *(ORT_API_CALL *register_operators)(OrtSessionOptions *, const OrtApiBase *);

int fbort_kernels_load(const char *lib, int *level, char *name, size_t name_len, char *err, size_t err_len) {
  dlerror();
  void *h = dlopen(lib, RTLD_NOW | RTLD_LOCAL);
  if (!h) {
    const char *why = dlerror();
    snprintf(err, err_len, "%s", why ? why : "dlopen failed");
    return 1;
  }
  const fewbit_cpu_api *(*get)(uint32_t);
  void *get_sym = dlsym(h, "fewbit_cpu_get_api"), *reg_sym = dlsym(h, "RegisterCustomOps");
  if (!get_sym || !reg_sym) {
    snprintf(err, err_len, "no symbol fewbit_cpu_get_api: not a libfewbit_cpu");
    dlclose(h);
    return 1;
  }
  memcpy(&get, &get_sym, sizeof get);
  const fewbit_cpu_api *k = get(FEWBIT_CPU_ABI);
  if (!k) {
    snprintf(err, err_len, "it is of another version of fewbit (interface %d is needed)", FEWBIT_CPU_ABI);
    dlclose(h);
    return 1;
  }
  memcpy(&register_operators, &reg_sym, sizeof register_operators);
  kernels = k;
  *level = k->level;
  snprintf(name, name_len, "%s", k->name);
  return 0;
}

OrtStatus *fbort_kernels_register(OrtSessionOptions *o) { return kernels ? register_operators(o, base) : NULL; }
size_t fbort_bf16_packed_size(int64_t k, int64_t n) { return kernels ? kernels->bf16_packed_size(k, n) : 0; }
size_t fbort_int8_packed_size(int64_t k, int64_t n) { return kernels ? kernels->int8_packed_size(k, n) : 0; }
void fbort_int8_pack(const int8_t *w, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to) {
  kernels->int8_pack(w, scales, k, n, first, last, to);
}
size_t fbort_int4_packed_size(int64_t k, int64_t n) { return kernels ? kernels->int4_packed_size(k, n) : 0; }
void fbort_int4_pack(const uint8_t *codes, const int8_t *steps, const float *scales, int64_t k, int64_t n, int64_t first, int64_t last, void *to) {
  kernels->int4_pack(codes, steps, scales, k, n, first, last, to);
}
void fbort_bf16_pack(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, void *to) {
  kernels->bf16_pack(w, k, n, first, last, to);
}

void fbort_bf16_gram(const void *packed, int64_t rows, int64_t k, int64_t first, int64_t last, float *sum) {
  kernels->bf16_gram(packed, rows, k, first, last, sum);
}

int fbort_solves(void) { return kernels && kernels->round_strip && kernels->clip_scales; }
void fbort_round_strip(const float *m, int64_t k, const int64_t *order, int64_t rows, const float *w, const float *carried, const float *scales, int64_t n, int64_t first, int64_t last, float lo, float hi, float *d, int8_t *codes) {
  kernels->round_strip(m, k, order, rows, w, carried, scales, n, first, last, lo, hi, d, codes);
}
void fbort_clip_scales(const float *w, int64_t k, int64_t n, int64_t first, int64_t last, const float *importance, const float *shares, int64_t steps, float top, float *scratch, float *scales) {
  kernels->clip_scales(w, k, n, first, last, importance, shares, steps, top, scratch, scales);
}

// ---- options and profiling

OrtStatus *fbort_session_new(const char *model, const OrtSessionOptions *o, OrtSession **out) {
  return api->CreateSession(env, model, o, out);
}

void fbort_session_release(OrtSession *s) { api->ReleaseSession(s); }

OrtStatus *fbort_metadata(const OrtSession *s, OrtModelMetadata **m, char ***keys, int64_t *n) {
  TRY(api->SessionGetModelMetadata(s, m));
  return api->ModelMetadataGetCustomMetadataMapKeys(*m, allocator, keys, n);
}

OrtStatus *fbort_metadata_value(const OrtModelMetadata *m, const char *key, char **value) {
  return api->ModelMetadataLookupCustomMetadataMap(m, allocator, key, value);
}

void fbort_metadata_release(OrtModelMetadata *m) { api->ReleaseModelMetadata(m); }

OrtStatus *fbort_share_threads(OrtSessionOptions *o) { return api->DisablePerSessionThreads(o); }
OrtStatus *fbort_cancel_load(OrtSessionOptions *o) { return api->SessionOptionsSetLoadCancellationFlag(o, true); }
OrtStatus *fbort_run_config(OrtRunOptions *o, const char *key, const char *value) {
  return api->AddRunConfigEntry(o, key, value);
}
OrtStatus *fbort_end_profiling(OrtSession *s, char **out) { return api->SessionEndProfiling(s, allocator, out); }
void fbort_free(void *p) {
  OrtStatus *s = api->AllocatorFree(allocator, p);
  if (s) api->ReleaseStatus(s);
}

// ---- inputs and outputs of a session

OrtStatus *fbort_io_count(OrtSession *s, size_t *inputs, size_t *outputs) {
  TRY(api->SessionGetInputCount(s, inputs));
  return api->SessionGetOutputCount(s, outputs);
}

static OrtStatus *io_tensor(const OrtTensorTypeAndShapeInfo *shape, fbort_io *io) {
  ONNXTensorElementDataType type;
  size_t rank = 0;
  TRY(api->GetTensorElementType(shape, &type));
  io->type = type;
  io->kind = FBORT_TENSOR;
  if (!api->TensorTypeAndShape_HasShape(shape)) {
    io->rank = -1;
    return NULL;
  }
  TRY(api->GetDimensionsCount(shape, &rank));
  io->rank = rank > FBORT_MAX_RANK ? FBORT_MAX_RANK + 1 : (int32_t)rank;
  if (rank > FBORT_MAX_RANK || rank == 0) return NULL;
  const char *names[FBORT_MAX_RANK];
  TRY(api->GetDimensions(shape, io->dims, rank));
  TRY(api->GetSymbolicDimensions(shape, names, rank));
  for (size_t i = 0; i < rank; i++) io->dim_names[i] = names[i] && *names[i] ? strdup(names[i]) : NULL;
  return NULL;
}

static OrtStatus *io_type(const OrtTypeInfo *info, fbort_io *io) {
  ONNXType type;
  TRY(api->GetOnnxTypeFromTypeInfo(info, &type));
  if (!io->onnx_type) io->onnx_type = type;
  io->kind = FBORT_OTHER;
  if (type == ONNX_TYPE_TENSOR) {
    const OrtTensorTypeAndShapeInfo *shape = NULL;
    TRY(api->CastTypeInfoToTensorInfo(info, &shape));
    return shape ? io_tensor(shape, io) : NULL;
  }
  if (type == ONNX_TYPE_OPTIONAL && io->onnx_type == ONNX_TYPE_OPTIONAL) {
    const OrtOptionalTypeInfo *opt = NULL;
    OrtTypeInfo *inner = NULL;
    TRY(api->CastTypeInfoToOptionalTypeInfo(info, &opt));
    if (!opt) return NULL;
    TRY(api->GetOptionalContainedTypeInfo(opt, &inner));
    ONNXType inner_type;
    OrtStatus *s = api->GetOnnxTypeFromTypeInfo(inner, &inner_type);
    // An optional of an optional does not exist in ONNX; do not recurse on it.
    if (!s && inner_type == ONNX_TYPE_TENSOR) s = io_type(inner, io);
    api->ReleaseTypeInfo(inner);
    return s;
  }
  return NULL;
}

OrtStatus *fbort_io_get(OrtSession *s, int output, size_t index, fbort_io *io) {
  memset(io, 0, sizeof *io);
  char *name = NULL;
  if (output)
    TRY(api->SessionGetOutputName(s, index, allocator, &name));
  else
    TRY(api->SessionGetInputName(s, index, allocator, &name));
  io->name = strdup(name);
  fbort_free(name);
  OrtTypeInfo *info = NULL;
  if (output)
    TRY(api->SessionGetOutputTypeInfo(s, index, &info));
  else
    TRY(api->SessionGetInputTypeInfo(s, index, &info));
  OrtStatus *st = io_type(info, io);
  api->ReleaseTypeInfo(info);
  return st;
}

void fbort_io_clear(fbort_io *io) {
  free(io->name);
  for (int i = 0; i < FBORT_MAX_RANK; i++) free(io->dim_names[i]);
  memset(io, 0, sizeof *io);
}

// ---- runs

fbort_frame *fbort_frame_new(size_t inputs, size_t outputs) {
  fbort_frame *f = calloc(1, sizeof *f);
  if (!f) return NULL;
  f->in = calloc(inputs + 1, sizeof *f->in);
  f->in_values = calloc(inputs + 1, sizeof *f->in_values);
  f->out = calloc(outputs + 1, sizeof *f->out);
  f->out_values = calloc(outputs + 1, sizeof *f->out_values);
  f->out_names = calloc(outputs + 1, sizeof *f->out_names);
  if (f->in && f->in_values && f->out && f->out_values && f->out_names) return f;
  fbort_frame_free(f);
  return NULL;
}

void fbort_frame_free(fbort_frame *f) {
  if (!f) return;
  free(f->in);
  free(f->in_values);
  free(f->out);
  free(f->out_values);
  free(f->out_names);
  free(f);
}

OrtStatus *fbort_strings_in(fbort_frame *f, size_t i, const char *bytes, const size_t *ends, size_t n) {
  TRY(api->CreateTensorAsOrtValue(allocator, f->in[i].dims, (size_t)f->in[i].rank,
                                  ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING, &f->in_values[i]));
  size_t start = 0;
  for (size_t k = 0; k < n; k++) {
    char *buf = NULL;
    TRY(api->GetResizedStringTensorElementBuffer(f->in_values[i], k, ends[k] - start, &buf));
    if (ends[k] > start) memcpy(buf, bytes + start, ends[k] - start);
    start = ends[k];
  }
  return NULL;
}

OrtStatus *fbort_strings_size(const OrtValue *v, size_t *bytes) { return api->GetStringTensorDataLength(v, bytes); }

OrtStatus *fbort_strings_out(const OrtValue *v, char *bytes, size_t len, size_t *starts, size_t n) {
  return api->GetStringTensorContent(v, bytes, len, starts, n);
}

static OrtStatus *describe(OrtValue *v, fbort_output *o) {
  o->data = NULL;
  o->rank = 0;
  o->type = 0;
  o->kind = FBORT_NONE;
  int has = 0;
  if (!v) return NULL;
  TRY(api->HasValue(v, &has));
  if (!has) return NULL;
  enum ONNXType kind;
  TRY(api->GetValueType(v, &kind));
  if (kind != ONNX_TYPE_TENSOR) {
    o->kind = FBORT_OTHER;
    return NULL;
  }
  ONNXTensorElementDataType type;
  const int64_t *dims = NULL;
  size_t rank = 0;
  TRY(api->GetTensorElementTypeAndShapeDataReference(v, &type, &dims, &rank));
  o->kind = FBORT_TENSOR;
  o->type = type;
  o->rank = rank > FBORT_MAX_RANK ? FBORT_MAX_RANK + 1 : (int32_t)rank;
  if (rank > FBORT_MAX_RANK) return NULL;
  if (rank) memcpy(o->dims, dims, rank * sizeof *dims);
  if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING) return NULL;
  return api->GetTensorMutableData(v, &o->data);
}

OrtStatus *fbort_run(OrtSession *s, OrtRunOptions *o, fbort_frame *f, const char *const *in_names, size_t n_in,
                     size_t n_out) {
  static max_align_t nothing; // an empty tensor still needs an address
  OrtStatus *st = NULL;
  for (size_t i = 0; i < n_in && !st; i++) {
    fbort_input *in = &f->in[i];
    if (f->in_values[i]) continue;
    st = api->CreateTensorWithDataAsOrtValue(cpu, in->bytes ? (void *)in->data : &nothing, in->bytes, in->dims,
                                             (size_t)in->rank, in->type, &f->in_values[i]);
  }
  memset(f->out_values, 0, n_out * sizeof *f->out_values);
  if (!st) st = api->Run(s, o, in_names, (const OrtValue *const *)f->in_values, n_in, f->out_names, n_out, f->out_values);
  fbort_inputs_release(f, n_in);
  for (size_t i = 0; i < n_out && !st; i++) st = describe(f->out_values[i], &f->out[i]);
  if (st) fbort_values_release(f->out_values, n_out);
  return st;
}

void fbort_inputs_release(fbort_frame *f, size_t n) { fbort_values_release(f->in_values, n); }

void fbort_values_release(OrtValue **v, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (v[i]) api->ReleaseValue(v[i]);
    v[i] = NULL;
  }
}

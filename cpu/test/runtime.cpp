#include "runtime.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#define FEWBIT_EXPORT extern "C"
FEWBIT_EXPORT OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base);

Pool::Pool(int threads) {
  for (int i = 1; i < threads; i++) threads_.emplace_back([this] { serve(); });
}

Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (auto &t : threads_) t.join();
}

void Pool::run(size_t n, void (*task)(void *, size_t), void *data) {
  Loop loop{task, data, n};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loops_.push_back(&loop);
  }
  work_.notify_all();
  loop.work();
  std::unique_lock<std::mutex> lock(mutex_);
  loops_.erase(std::find(loops_.begin(), loops_.end(), &loop));
  done_.wait(lock, [&] { return loop.inside == 0; });
}

void Pool::serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    const auto open = std::find_if(loops_.begin(), loops_.end(), [](Loop *l) { return l->next < l->n; });
    if (open == loops_.end()) {
      if (stop_) return;
      work_.wait(lock);
      continue;
    }
    Loop &loop = **open;
    loop.inside++;
    lock.unlock();
    loop.work();
    lock.lock();
    if (--loop.inside == 0) done_.notify_all();
  }
}

struct OrtStatus {
  std::string text;
};
struct OrtKeyValuePairs {
  std::string threads;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp *> ops;
};
struct OrtSessionOptions {
  OrtCustomOpDomain *domain = nullptr;
};

void OrtValue::reset(std::vector<int64_t> d, ONNXTensorElementDataType t, size_t size) {
  dims = std::move(d), type = t;
  bytes.assign(size + 64, 0);
  data = bytes.data() + (64 - reinterpret_cast<uintptr_t>(bytes.data()) % 64) % 64;
}

namespace {

template <class M> OrtStatus *attribute(const M &m, const char *name, typename M::mapped_type *out) {
  const auto at = m.find(name);
  if (at == m.end()) return new OrtStatus{"no such attribute"};
  *out = at->second;
  return nullptr;
}

const OrtApi *api(uint32_t) noexcept {
  static const OrtApi made = [] {
    OrtApi a{};
    a.CreateStatus = [](OrtErrorCode, const char *text) noexcept { return new OrtStatus{text}; };
    a.ReleaseStatus = [](OrtStatus *s) { delete s; };
    a.CreateCustomOpDomain = [](const char *, OrtCustomOpDomain **out) noexcept -> OrtStatus * {
      static OrtCustomOpDomain domain; // as the library's, the process'
      *out = &domain;
      return nullptr;
    };
    a.CustomOpDomain_Add = [](OrtCustomOpDomain *d, const OrtCustomOp *op) noexcept -> OrtStatus * {
      d->ops.push_back(op);
      return nullptr;
    };
    a.AddCustomOpDomain = [](OrtSessionOptions *o, OrtCustomOpDomain *d) noexcept -> OrtStatus * {
      o->domain = d;
      return nullptr;
    };
    a.KernelInfo_GetInputCount = [](const OrtKernelInfo *i, size_t *out) noexcept -> OrtStatus * {
      *out = i->inputs;
      return nullptr;
    };
    a.KernelInfo_GetConfigEntries = [](const OrtKernelInfo *i, OrtKeyValuePairs **out) noexcept -> OrtStatus * {
      *out = new OrtKeyValuePairs{std::to_string(i->threads)};
      return nullptr;
    };
    a.GetKeyValue = [](const OrtKeyValuePairs *p, const char *key) noexcept -> const char * { return std::strcmp(key, "fewbit.threads") ? nullptr : p->threads.c_str(); };
    a.ReleaseKeyValuePairs = [](OrtKeyValuePairs *p) { delete p; };
    a.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo *i, const char *name, int64_t *out) noexcept { return attribute(i->integers, name, out); };
    a.KernelInfoGetAttribute_float = [](const OrtKernelInfo *i, const char *name, float *out) noexcept { return attribute(i->reals, name, out); };
    a.KernelInfoGetAttribute_string = [](const OrtKernelInfo *i, const char *name, char *out, size_t *size) noexcept -> OrtStatus * {
      std::string v;
      if (OrtStatus *s = attribute(i->strings, name, &v)) return s;
      if (out) std::memcpy(out, v.c_str(), v.size() + 1);
      *size = v.size() + 1;
      return nullptr;
    };
    a.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo *i, size_t at, int *constant, const OrtValue **out) noexcept -> OrtStatus * {
      const auto v = i->constants.find(at);
      *constant = v != i->constants.end();
      *out = *constant ? v->second : nullptr;
      return nullptr;
    };
    a.GetTensorElementTypeAndShapeDataReference = [](const OrtValue *v, ONNXTensorElementDataType *type, const int64_t **dims, size_t *rank) noexcept -> OrtStatus * {
      *type = v->type, *dims = v->dims.data(), *rank = v->dims.size();
      return nullptr;
    };
    a.GetTensorMutableData = [](OrtValue *v, void **out) noexcept -> OrtStatus * {
      *out = v->data;
      return nullptr;
    };
    a.KernelContext_GetInput = [](const OrtKernelContext *c, size_t i, const OrtValue **out) noexcept -> OrtStatus * {
      *out = i < c->inputs.size() ? c->inputs[i] : nullptr;
      return nullptr;
    };
    a.KernelContext_GetOutput = [](OrtKernelContext *c, size_t, const int64_t *dims, size_t rank, OrtValue **out) noexcept -> OrtStatus * {
      size_t n = sizeof(float);
      for (size_t i = 0; i < rank; i++) n *= size_t(dims[i]);
      c->output.reset(std::vector<int64_t>(dims, dims + rank), ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, n);
      *out = &c->output;
      return nullptr;
    };
    a.KernelContext_ParallelFor = [](const OrtKernelContext *c, void (*task)(void *, size_t), size_t n, size_t, void *data) noexcept -> OrtStatus * {
      c->pool->run(n, task, data);
      return nullptr;
    };
    return a;
  }();
  return &made;
}

void check(OrtStatus *s) {
  if (!s) return;
  const std::string text = s->text;
  delete s;
  throw std::runtime_error(text);
}

OrtSessionOptions registered() {
  static const OrtApiBase base{api, [] () noexcept { return "0"; }};
  OrtSessionOptions options;
  check(RegisterCustomOps(&options, &base));
  return options;
}

} // namespace

void register_operators() { registered(); }

Made::Made(const OrtKernelInfo &info) {
  for (const OrtCustomOp *op : registered().domain->ops)
    if (info.op == op->GetName(op)) op_ = op;
  if (!op_) throw std::runtime_error("no operator " + info.op);
  check(op_->CreateKernelV2(op_, api(0), &info, &kernel_));
}

Made::~Made() {
  if (kernel_) op_->KernelDestroy(kernel_);
}

std::vector<float> Made::run(Pool &pool, std::vector<const OrtValue *> inputs) const {
  OrtKernelContext c;
  c.pool = &pool, c.inputs = std::move(inputs);
  check(op_->KernelComputeV2(kernel_, &c));
  const auto *y = static_cast<const float *>(c.output.data);
  size_t n = 1;
  for (const int64_t d : c.output.dims) n *= size_t(d);
  return {y, y + n};
}

// A stand-in for ONNX Runtime, which has no build for the thread sanitizer: as
// much of its C API as the operators use to be registered, made and run, on a
// pool of threads of its own. Operators are reached as ONNX Runtime does,
// through RegisterCustomOps. What it hands out has its types' names.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "onnxruntime_c_api.h"

// Threads that all calls share. Like ONNX Runtime's, they take tasks in any order,
// of several loops at once, and whoever starts a loop works on it too.
class Pool {
public:
  explicit Pool(int threads); // with the caller's
  ~Pool();
  Pool(const Pool &) = delete;
  Pool &operator=(const Pool &) = delete;
  void run(size_t n, void (*task)(void *, size_t), void *data);

private:
  struct Loop {
    void (*task)(void *, size_t);
    void *data;
    size_t n;
    std::atomic<size_t> next{0};
    int inside = 0; // threads, below mutex_
    // Tasks are handed out without ordering anything.
    void work() {
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) task(data, i);
    }
  };
  void serve();

  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::vector<Loop *> loops_;
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

struct OrtValue {
  std::vector<int64_t> dims;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::vector<char> bytes;
  void *data = nullptr; // aligned to 64 in bytes

  template <class T> static OrtValue of(const std::vector<T> &v, std::vector<int64_t> dims, ONNXTensorElementDataType type) {
    OrtValue o;
    o.reset(std::move(dims), type, v.size() * sizeof(T));
    std::copy(v.begin(), v.end(), static_cast<T *>(o.data));
    return o;
  }
  void reset(std::vector<int64_t> d, ONNXTensorElementDataType t, size_t size);
  OrtValue() = default;
  OrtValue(OrtValue &&) = default;
  OrtValue &operator=(OrtValue &&) = default;
};

// A node of a model, and what its kernel is made of.
struct OrtKernelInfo {
  std::string op;
  std::map<std::string, int64_t> integers;
  std::map<std::string, float> reals;
  std::map<std::string, std::string> strings;
  std::map<size_t, const OrtValue *> constants;
  size_t inputs = 0;
  int threads = 1; // the session's entry
};

struct OrtKernelContext {
  Pool *pool = nullptr;
  std::vector<const OrtValue *> inputs;
  OrtValue output;
};

// A node that is ready to run, from several threads at once. Throws
// std::runtime_error with the status' text.
class Made {
public:
  explicit Made(const OrtKernelInfo &);
  ~Made();
  Made(const Made &) = delete;
  Made &operator=(const Made &) = delete;
  std::vector<float> run(Pool &, std::vector<const OrtValue *> inputs) const;

private:
  const OrtCustomOp *op_ = nullptr;
  void *kernel_ = nullptr;
};

// Registers the library's operators once more, as each session does.
void register_operators();

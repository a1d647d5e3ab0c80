// What operators share of ONNX Runtime's C API: statuses, tensors, parallel
// loops, and OrtCustomOp filled from a table.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "onnxruntime_c_api.h"

namespace fewbit {

// The API of the header's version, set by RegisterCustomOps before anything
// else runs.
extern const OrtApi *ort;

// Thrown inside operators, and nowhere lets out of them: guard makes a status
// of it.
struct OrtFailure {
  OrtStatus *status;
};
inline void check(OrtStatus *s) {
  if (s) throw OrtFailure{s};
}
[[noreturn]] void refuse(const std::string &what); // ORT_INVALID_ARGUMENT

// Runs f, which may throw, for a caller that knows statuses only.
template <class F> OrtStatus *guard(F &&f) noexcept {
  try {
    f();
    return nullptr;
  } catch (const OrtFailure &e) {
    return e.status;
  } catch (const std::exception &e) {
    return ort->CreateStatus(ORT_RUNTIME_EXCEPTION, e.what());
  } catch (...) {
    return ort->CreateStatus(ORT_RUNTIME_EXCEPTION, "unknown exception");
  }
}

// One input or output of a node.
struct Slot {
  ONNXTensorElementDataType type;
  bool optional = false;
  bool variadic = false; // the last: any number, at least one, of any type
};

// A tensor where it lies. data is nullptr when an optional input is left out.
struct Tensor {
  const void *data = nullptr;
  const int64_t *dims = nullptr;
  size_t rank = 0;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;

  template <class T> const T *as() const { return static_cast<const T *>(data); }
  int64_t last() const { return rank ? dims[rank - 1] : 1; }
  int64_t rows() const; // product of all but the last
  int64_t count() const { return rows() * last(); }
};
Tensor tensor_of(const OrtValue *v);

// One call of an operator.
class Call {
public:
  explicit Call(OrtKernelContext *c) : context_(c) {}
  Tensor input(size_t i) const;
  // The output with these dimensions, of at least one element each way.
  void *output(size_t i, const std::vector<int64_t> &dims) const;
  // f(0) ... f(n-1), on the session's own threads. f must not throw and no call
  // may wait for another: they may run one after the other.
  template <class F> void parallel(size_t n, const F &f) const {
    if (n == 1) return f(size_t(0));
    check(ort->KernelContext_ParallelFor(
        context_, [](void *data, size_t i) { (*static_cast<const F *>(data))(i); }, n, 0, const_cast<F *>(&f)));
  }

private:
  OrtKernelContext *context_;
};

// Facts of a node when its kernel is made.
class Node {
public:
  explicit Node(const OrtKernelInfo *i) : info_(i) {}
  size_t inputs() const;
  std::string string(const char *attribute, const char *otherwise) const;
  int64_t integer(const char *attribute, int64_t otherwise) const;
  float real(const char *attribute, float otherwise) const;
  // The constant at input i; refuses the node when it is not one.
  Tensor constant(size_t i, const char *what) const;
  // Threads that the session computes with: the entry fewbit.threads, else the
  // processors of the machine.
  int threads() const;

private:
  const OrtKernelInfo *info_;
};

struct Kernel {
  virtual ~Kernel() = default;
  virtual void compute(const Call &) = 0;
};

// An operator as a table.
struct Operator : OrtCustomOp {
  const char *name;
  std::vector<Slot> in, out;
  Kernel *(*make)(const Node &);
  void (*shapes)(OrtShapeInferContext *);

  Operator(const char *name, std::vector<Slot> in, std::vector<Slot> out, Kernel *(*make)(const Node &),
           void (*shapes)(OrtShapeInferContext *));
};

// Dimensions while a graph is loaded: -1 where they are not known, which may have
// names then.
struct Shape {
  std::vector<int64_t> dims;
  std::vector<std::string> names; // as many

  static Shape of_input(OrtShapeInferContext *, size_t i);
  void set_output(OrtShapeInferContext *, size_t i); // gives names to what has none
};
int64_t attribute_of(OrtShapeInferContext *, const char *name); // an integer
bool has_attribute(OrtShapeInferContext *, const char *name);

// The output has the input's dimensions, but attribute N columns.
void shapes_with_columns(OrtShapeInferContext *);

} // namespace fewbit

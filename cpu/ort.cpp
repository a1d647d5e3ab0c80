#include "ort.hpp"

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

namespace fewbit {

const OrtApi *ort;

void refuse(const std::string &what) { throw OrtFailure{ort->CreateStatus(ORT_INVALID_ARGUMENT, what.c_str())}; }

int64_t Tensor::rows() const {
  int64_t n = 1;
  for (size_t i = 0; i + 1 < rank; i++) n *= dims[i];
  return n;
}

Tensor tensor_of(const OrtValue *v) {
  Tensor t;
  if (!v) return t;
  void *data = nullptr;
  check(ort->GetTensorElementTypeAndShapeDataReference(v, &t.type, &t.dims, &t.rank));
  check(ort->GetTensorMutableData(const_cast<OrtValue *>(v), &data));
  t.data = data;
  return t;
}

Tensor Call::input(size_t i) const {
  const OrtValue *v = nullptr;
  check(ort->KernelContext_GetInput(context_, i, &v));
  return tensor_of(v);
}

void *Call::output(size_t i, const std::vector<int64_t> &dims) const {
  OrtValue *v = nullptr;
  void *data = nullptr;
  check(ort->KernelContext_GetOutput(context_, i, dims.data(), dims.size(), &v));
  if (v) check(ort->GetTensorMutableData(v, &data));
  return data;
}

size_t Node::inputs() const {
  size_t n = 0;
  check(ort->KernelInfo_GetInputCount(info_, &n));
  return n;
}

std::string Node::string(const char *attribute, const char *otherwise) const {
  size_t size = 0;
  if (OrtStatus *s = ort->KernelInfoGetAttribute_string(info_, attribute, nullptr, &size)) {
    ort->ReleaseStatus(s);
    return otherwise;
  }
  std::string v(size, '\0');
  check(ort->KernelInfoGetAttribute_string(info_, attribute, &v[0], &size));
  v.resize(size ? size - 1 : 0); // size counts the NUL
  return v;
}

int64_t Node::integer(const char *attribute, int64_t otherwise) const {
  int64_t v = 0;
  OrtStatus *s = ort->KernelInfoGetAttribute_int64(info_, attribute, &v);
  if (!s) return v;
  ort->ReleaseStatus(s);
  return otherwise;
}

float Node::real(const char *attribute, float otherwise) const {
  float v = 0;
  OrtStatus *s = ort->KernelInfoGetAttribute_float(info_, attribute, &v);
  if (!s) return v;
  ort->ReleaseStatus(s);
  return otherwise;
}

Tensor Node::constant(size_t i, const char *what) const {
  int constant = 0;
  const OrtValue *v = nullptr;
  if (i < inputs()) check(ort->KernelInfoGetConstantInput_tensor(info_, i, &constant, &v));
  if (!constant || !v) refuse(std::string(what) + " must be an initializer");
  return tensor_of(v);
}

int Node::threads() const {
  constexpr int most = 1024;
  OrtKeyValuePairs *entries = nullptr;
  check(ort->KernelInfo_GetConfigEntries(info_, &entries));
  const char *text = ort->GetKeyValue(entries, "fewbit.threads");
  int n = text ? std::atoi(text) : 0;
  ort->ReleaseKeyValuePairs(entries);
  if (n < 1) n = int(std::thread::hardware_concurrency());
  return n < 1 ? 1 : n > most ? most : n;
}

Shape Shape::of_input(OrtShapeInferContext *c, size_t i) {
  OrtTensorTypeAndShapeInfo *x = nullptr; // the context's
  check(ort->ShapeInferContext_GetInputTypeShape(c, i, &x));
  size_t rank = 0;
  check(ort->GetDimensionsCount(x, &rank));
  Shape s;
  s.dims.resize(rank);
  std::vector<const char *> names(rank);
  check(ort->GetDimensions(x, s.dims.data(), rank));
  check(ort->GetSymbolicDimensions(x, names.data(), rank));
  s.names.assign(names.begin(), names.end());
  return s;
}

void Shape::set_output(OrtShapeInferContext *c, size_t i) {
  // A dimension that is neither known nor named would be written as the value -1, which makes a Reshape to it and
  // another one an error. A name of its own says as much as is known.
  static std::atomic<uint64_t> unnamed{0};
  std::vector<const char *> pointers(dims.size());
  for (size_t d = 0; d < dims.size(); d++) {
    if (dims[d] < 0 && names[d].empty()) names[d] = "fewbit_unknown_" + std::to_string(unnamed++);
    pointers[d] = names[d].c_str();
  }
  OrtTensorTypeAndShapeInfo *y = nullptr;
  check(ort->CreateTensorTypeAndShapeInfo(&y));
  std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)> owned(
      y, [](OrtTensorTypeAndShapeInfo *info) { ort->ReleaseTensorTypeAndShapeInfo(info); });
  check(ort->SetTensorElementType(y, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
  check(ort->SetDimensions(y, dims.data(), dims.size()));
  check(ort->SetSymbolicDimensions(y, pointers.data(), dims.size()));
  check(ort->ShapeInferContext_SetOutputTypeShape(c, i, y));
}

int64_t attribute_of(OrtShapeInferContext *c, const char *name) {
  const OrtOpAttr *attribute = nullptr;
  check(ort->ShapeInferContext_GetAttribute(c, name, &attribute));
  int64_t n = 0;
  size_t bytes = 0;
  check(ort->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &n, sizeof n, &bytes));
  return n;
}

bool has_attribute(OrtShapeInferContext *c, const char *name) {
  const OrtOpAttr *attribute = nullptr;
  OrtStatus *const missing = ort->ShapeInferContext_GetAttribute(c, name, &attribute);
  ort->ReleaseStatus(missing);
  return !missing;
}

void shapes_with_columns(OrtShapeInferContext *c) {
  Shape s = Shape::of_input(c, 0);
  const int64_t n = attribute_of(c, "N");
  if (s.dims.empty()) return;
  s.dims.back() = n, s.names.back() = "";
  s.set_output(c, 0);
}

namespace {

const Operator &self(const OrtCustomOp *op) { return *static_cast<const Operator *>(op); }

OrtCustomOpInputOutputCharacteristic kind(const std::vector<Slot> &s, size_t i) {
  return s[i].variadic ? INPUT_OUTPUT_VARIADIC : s[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
}

} // namespace

Operator::Operator(const char *n, std::vector<Slot> i, std::vector<Slot> o, Kernel *(*m)(const Node &),
                   void (*s)(OrtShapeInferContext *))
    : OrtCustomOp{}, name(n), in(std::move(i)), out(std::move(o)), make(m), shapes(s) {
  version = ORT_API_VERSION;
  GetName = [](const OrtCustomOp *op) { return self(op).name; };
  GetExecutionProviderType = [](const OrtCustomOp *) { return "CPUExecutionProvider"; };
  GetInputTypeCount = [](const OrtCustomOp *op) { return self(op).in.size(); };
  GetInputType = [](const OrtCustomOp *op, size_t k) { return self(op).in[k].type; };
  GetInputCharacteristic = [](const OrtCustomOp *op, size_t k) { return kind(self(op).in, k); };
  GetInputMemoryType = [](const OrtCustomOp *, size_t) { return OrtMemTypeDefault; };
  GetOutputTypeCount = [](const OrtCustomOp *op) { return self(op).out.size(); };
  GetOutputType = [](const OrtCustomOp *op, size_t k) { return self(op).out[k].type; };
  GetOutputCharacteristic = [](const OrtCustomOp *op, size_t k) { return kind(self(op).out, k); };
  GetVariadicInputMinArity = [](const OrtCustomOp *) { return 1; };
  GetVariadicInputHomogeneity = [](const OrtCustomOp *) { return 0; };
  GetStartVersion = [](const OrtCustomOp *) { return 1; };
  GetEndVersion = [](const OrtCustomOp *) { return 1; };
  CreateKernelV2 = [](const OrtCustomOp *op, const OrtApi *, const OrtKernelInfo *info, void **kernel) {
    return guard([&] { *kernel = self(op).make(Node(info)); });
  };
  KernelComputeV2 = [](void *kernel, OrtKernelContext *c) {
    return guard([&] { static_cast<Kernel *>(kernel)->compute(Call(c)); });
  };
  KernelDestroy = [](void *kernel) { delete static_cast<Kernel *>(kernel); };
  InferOutputShapeFn = [](const OrtCustomOp *op, OrtShapeInferContext *c) {
    return guard([&] { self(op).shapes(c); });
  };
}

} // namespace fewbit

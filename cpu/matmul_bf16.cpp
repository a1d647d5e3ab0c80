// fewbit.MatMulBF16(X, W, B) -> Y: see bf16.hpp. Calibration runs float models
// with it.
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

#include "bf16.hpp"
#include "operators.hpp"

namespace fewbit {

namespace {

constexpr int64_t kTileRows = 8;
constexpr int64_t kBlockRows = 64;            // rows that a task keeps in BF16 ...
constexpr int64_t kBlockBytes = 512 << 10;    // ... within this, so that they stay in the second-level cache
constexpr int64_t kTasksPerThread = 4;        // the last ones even out what the threads started late
constexpr int64_t kTaskProducts = 1 << 20;    // smaller tasks cost more than they save

// The BF16 rows of one thread, and of which call and block they are: tasks of
// the same rows come one after the other.
struct Rows {
  uint64_t call = 0;
  int64_t block = -1;
  size_t bytes = 0;
  std::unique_ptr<void, decltype(&std::free)> memory{nullptr, std::free};

  uint16_t *reserve(size_t n) {
    if (n > bytes) {
      n = (n + 4095) / 4096 * 4096;
      memory.reset(std::aligned_alloc(64, n));
      bytes = memory ? n : 0;
      call = 0;
    }
    return static_cast<uint16_t *>(memory.get());
  }
};

struct MatMulBF16 final : Kernel {
  Bf16Weight w;
  Activation act = Activation::none;
  int threads = 1;

  explicit MatMulBF16(const Node &node) : threads(node.threads()) {
    const Tensor t = node.constant(1, "MatMulBF16: W");
    if (const char *why = bf16_view(t.data, size_t(t.count()), &w)) refuse(std::string("MatMulBF16: W ") + why);
    if (node.integer("N", -1) != w.n) refuse("MatMulBF16: attribute N is not the number of W's columns");
    const std::string a = node.string("activation", "");
    if (a == "gelu")
      act = Activation::gelu;
    else if (!a.empty())
      refuse("MatMulBF16: activation must be \"gelu\" or absent");
  }

  void compute(const Call &call) override {
    const Tensor x = call.input(0), b = call.input(2);
    if (x.rank < 1 || x.last() != w.k)
      refuse("MatMulBF16: X has " + std::to_string(x.last()) + " columns, W has " + std::to_string(w.k) + " rows");
    if (b.data && (b.rank != 1 || b.last() != w.n)) refuse("MatMulBF16: B must have as many elements as W has columns");
    std::vector<int64_t> dims(x.dims, x.dims + x.rank);
    dims.back() = w.n;
    Bf16Product p;
    p.y = static_cast<float *>(call.output(0, dims));
    p.x = x.as<float>(), p.bias = b.as<float>(), p.act = act, p.w = w;
    if (const int64_t m = x.rows()) multiply(call, p, m);
  }

  void multiply(const Call &call, const Bf16Product &p, int64_t m) const {
    static std::atomic<uint64_t> calls{0};
    const uint64_t id = ++calls;
    const Bf16Kernels &kernels = bf16_kernels();
    const int64_t row_bytes = w.padded_k() * int64_t(sizeof(uint16_t));
    const int64_t most = std::clamp(kBlockBytes / row_bytes / kTileRows * kTileRows, kTileRows, kBlockRows);
    // Blocks of about equal height, of whole tiles.
    int64_t blocks = (m + most - 1) / most;
    const int64_t height = ((m + blocks - 1) / blocks + kTileRows - 1) / kTileRows * kTileRows;
    blocks = (m + height - 1) / height;
    const int64_t panels = w.panel_count(), worth = std::max<int64_t>(1, m * w.k / kTaskProducts * w.n);
    const int64_t wanted = std::min(threads * kTasksPerThread, worth);
    const int64_t groups = std::clamp<int64_t>((wanted + blocks - 1) / blocks, 1, panels);
    std::atomic<bool> failed{false};
    call.parallel(size_t(blocks * groups), [&](size_t task) {
      thread_local Rows mine;
      const int64_t block = int64_t(task) / groups, group = int64_t(task) % groups;
      const int64_t r0 = block * height, r1 = std::min(m, r0 + height);
      uint16_t *rows = mine.reserve(size_t(height * row_bytes));
      if (!rows) {
        failed = true;
        return;
      }
      if (mine.call != id || mine.block != block) {
        kernels.convert(p, r0, r1, rows);
        mine.call = id, mine.block = block;
      }
      kernels.multiply(p, r0, r1, panels * group / groups, panels * (group + 1) / groups, rows);
    });
    if (failed) throw std::bad_alloc();
  }
};

void shapes(OrtShapeInferContext *c) {
  OrtTensorTypeAndShapeInfo *x = nullptr; // the context's
  const OrtOpAttr *attribute = nullptr;
  check(ort->ShapeInferContext_GetInputTypeShape(c, 0, &x));
  check(ort->ShapeInferContext_GetAttribute(c, "N", &attribute));
  int64_t n = 0;
  size_t bytes = 0, rank = 0;
  check(ort->ReadOpAttr(attribute, ORT_OP_ATTR_INT, &n, sizeof n, &bytes));
  check(ort->GetDimensionsCount(x, &rank));
  if (rank == 0) return;
  std::vector<int64_t> dims(rank);
  std::vector<const char *> names(rank);
  check(ort->GetDimensions(x, dims.data(), rank));
  check(ort->GetSymbolicDimensions(x, names.data(), rank));
  dims.back() = n, names.back() = "";
  OrtTensorTypeAndShapeInfo *y = nullptr;
  check(ort->CreateTensorTypeAndShapeInfo(&y));
  std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo *)> owned(
      y, [](OrtTensorTypeAndShapeInfo *i) { ort->ReleaseTensorTypeAndShapeInfo(i); });
  check(ort->SetTensorElementType(y, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT));
  check(ort->SetDimensions(y, dims.data(), rank));
  check(ort->SetSymbolicDimensions(y, names.data(), rank));
  check(ort->ShapeInferContext_SetOutputTypeShape(c, 0, y));
}

} // namespace

const Operator &matmul_bf16() {
  static const Operator op("MatMulBF16",
                           {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
                            {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, true}},
                           {{ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}},
                           [](const Node &n) -> Kernel * { return new MatMulBF16(n); }, shapes);
  return op;
}

} // namespace fewbit

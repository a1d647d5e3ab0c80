// The library's entries.
#include "bf16.hpp"
#include "int4.hpp"
#include "int8.hpp"
#include "level.hpp"
#include "operators.hpp"
#include "solve.hpp"

#if defined(_WIN32)
#define FEWBIT_EXPORT extern "C" __declspec(dllexport)
#else
#define FEWBIT_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace fewbit {
namespace {

// The domain belongs to the process: sessions refer to it until they close.
OrtCustomOpDomain *domain() {
  static OrtCustomOpDomain *const d = [] {
    OrtCustomOpDomain *made = nullptr;
    check(ort->CreateCustomOpDomain("fewbit", &made));
    for (const Operator *op : {&matmul_bf16(), &patches_bf16(), &linear_rows(), &encoder_attention(), &cross_attention(), &encoder_layers()}) check(ort->CustomOpDomain_Add(made, op));
    return made;
  }();
  return d;
}

} // namespace
} // namespace fewbit

FEWBIT_EXPORT OrtStatus *ORT_API_CALL RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  using namespace fewbit;
  const OrtApi *api = base->GetApi(ORT_API_VERSION);
  if (!api) {
    const OrtApi *old = base->GetApi(1);
    return old->CreateStatus(ORT_FAIL, "libfewbit_cpu needs ONNX Runtime 1.24 or newer");
  }
  if (const std::string why = level_refused(); !why.empty()) return api->CreateStatus(ORT_FAIL, why.c_str());
  // Once: operators of other sessions read it while this one is made.
  [[maybe_unused]] static const bool set = (ort = api, true);
  return guard([&] { check(ort->AddCustomOpDomain(options, domain())); });
}

FEWBIT_EXPORT const fewbit_cpu_api *fewbit_cpu_get_api(uint32_t abi) {
  using namespace fewbit;
  static const fewbit_cpu_api api = {FEWBIT_CPU_ABI, level(), level_name(level()), bf16_packed_size, bf16_pack, bf16_gram,
                                     int8_packed_size, int8_pack, int4_packed_size, int4_pack, solve_kernels().round_strip, solve_kernels().clip_scales};
  return abi == FEWBIT_CPU_ABI ? &api : nullptr;
}

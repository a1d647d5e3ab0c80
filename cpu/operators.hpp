// The operators of the domain `fewbit` that this library has.
#pragma once
#include "ort.hpp"

namespace fewbit {

const Operator &matmul_bf16();
const Operator &linear_rows();
const Operator &encoder_attention();

} // namespace fewbit

// The operators of the domain `fewbit` that this library has.
#pragma once
#include "ort.hpp"

namespace fewbit {

const Operator &matmul_bf16();
const Operator &linear_rows();
const Operator &encoder_attention();
const Operator &cross_attention();
const Operator &encoder_layers();

struct Attention;
enum class Activation;
// The node's attribute `activation`, which may be absent; refuses others.
Activation activation_of(const Node &node, const char *op);
// Takes Bias [batch or 1, heads or 1, queries or 1, keys], or refuses it.
void set_bias(Attention &a, const Tensor &bias, const char *op);
// The node's attribute `hidden`, which may be absent: whether rows of which the bias
// hides all keys are 0; refuses others.
bool hidden_is_zero(const Node &node, const char *op);

} // namespace fewbit

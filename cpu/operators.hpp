// The operators of the domain `fewbit` that this library has.
#pragma once
#include "ort.hpp"

namespace fewbit {

const Operator &matmul_bf16();
const Operator &patches_bf16();
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
// Takes Cos and Sin, which are alike, [batch or 1, length, n] or [batch or 1, 1, length,
// n] of an even n up to a head's size, or refuses them.
void set_rotation(Attention &a, const Tensor &cos, const Tensor &sin, const char *op);
// The node's attribute `hidden`, which may be absent: whether rows of which the bias
// hides all keys are 0; refuses others.
bool hidden_is_zero(const Node &node, const char *op);

} // namespace fewbit

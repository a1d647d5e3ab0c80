// kernels.cu: the table of entries. A test holds it against fewbit_cuda.h.
#include "fewbit_cuda.h"

namespace {

const fb_entry kEntries[] = {
    {"fb_device", "memory"},
    {"fb_malloc", "memory"},
    {"fb_free", "memory"},
    {"fb_copy_in", "memory"},
    {"fb_copy_out", "memory"},
    {"fb_sync", "memory"},
    {"fb_quantize_rows", "quantize"},
    {"fb_quantize_tensor", "quantize"},
    {"fb_quantize_channels", "quantize"},
    {"fb_dequantize_rows", "quantize"},
    {"fb_dequantize_channels", "quantize"},
    {"fb_dequantize_tensor", "quantize"},
    {"fb_quantize_blocks_s4", "quantize"},
    {"fb_dequantize_blocks_s4", "quantize"},
    {"fb_range_init", "histogram"},
    {"fb_range", "histogram"},
    {"fb_histogram_init", "histogram"},
    {"fb_histogram_observe", "histogram"},
    {"fb_channel_max", "histogram"},
    {"fb_histogram_linear", "histogram"},
    {"fb_kl_threshold", "histogram"},
    {"fb_kl_workspace", "histogram"},
    {"fb_gemm_s8_run", "gemm_s8"},
    {"fb_gemm_s8_workspace", "gemm_s8"},
    {"fb_gemm_s8_pick", "gemm_s8"},
    {"fb_gemm_s8_configs", "gemm_s8"},
    {"fb_row_sums", "gemm_s8"},
    {"fb_w4_pack", "gemm_w4"},
    {"fb_gemm_w4_run", "gemm_w4"},
    {"fb_gemm_w4_workspace", "gemm_w4"},
    {"fb_gemm_w4_pick", "gemm_w4"},
    {"fb_gemm_w4_configs", "gemm_w4"},
    {"fb_gemm_float_run", "gemm_float"},
    {"fb_gemm_float_pick", "gemm_float"},
    {"fb_cublaslt", "cublaslt"},
    {"fb_attention_run", "attention"},
    {"fb_conv_s8_run", "conv"},
    {"fb_conv_s8_workspace", "conv"},
    {"fb_conv_s8_pick", "conv"},
    {"fb_conv_s8_configs", "conv"},
    {"fb_conv_float", "conv_float"},
    {"fb_conv_float_pick", "conv_float"},
    {"fb_layer_norm", "norm"},
    {"fb_softmax", "norm"},
    {"fb_embed", "embed"},
    {"fb_pool_f32", "pool"},
    {"fb_pool_s8", "pool"},
    {"fb_global_average_f32", "pool"},
    {"fb_masked_mean", "pool"},
    {"fb_binary", "elementwise"},
    {"fb_unary", "elementwise"},
    {"fb_where", "elementwise"},
    {"fb_cast", "elementwise"},
    {"fb_copy", "layout"},
    {"fb_gather", "layout"},
    {"fb_nchw_to_nhwc_s8", "layout"},
    {"fb_nhwc_s8_to_nchw", "layout"},
    {"fb_reduce", "reduce"},
};

} // namespace

extern "C" const fb_entry *fb_entries(int *count) {
  *count = (int)(sizeof kEntries / sizeof kEntries[0]);
  return kEntries;
}

// Micro-benchmarks on this machine's own device. Attention: forward and backward as training runs them, in bf16.
// FLOPs are those of causal attention: B H T^2 (qk + v) forward, B H T^2 (3 qk + 2 v) backward.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"

namespace egmla {

struct AttentionShape {
  int64_t B = 0, H = 0, T = 0;
  int64_t dk = 0, dr = 0, dv = 0;  // qk = dk + dr, dr the part of the keys that all heads share
};

struct AttentionTiming {
  AttentionShape shape;
  std::string backend;                     // native or cudnn
  double forward_ms = 0, backward_ms = 0;  // medians
  double forward_tflops = 0, backward_tflops = 0;
};

// "B,H,T,QK,V", where QK is one width or "DK+DR". Raises a usage error on anything else.
AttentionShape parse_attention_shape(const std::string& text);

// Shapes of the sizes 124m and 1b, as parse_attention_shape reads them.
std::vector<std::string> default_attention_shapes();

// The first CUDA device, or a clear error where the build or the machine has none.
std::unique_ptr<Context> bench_device();

std::vector<AttentionTiming> bench_attention(Context& device, const std::vector<AttentionShape>& shapes);

#ifdef EGMLA_WITH_CUDA
// Times one shape with CUDA events on random data: our kernels, then cuDNN's where it takes the shape.
std::vector<AttentionTiming> time_attention(Context& context, const AttentionShape& shape);
#endif

std::string attention_table(const std::vector<AttentionTiming>& timings);
std::string attention_json(const std::string& device, const std::vector<AttentionTiming>& timings);

}  // namespace egmla

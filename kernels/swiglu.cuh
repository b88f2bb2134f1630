// SwiGLU at one element, for all kernels that compute it.
#pragma once

#include "kernels/cuda_utils.cuh"

namespace egmla::gpu {

struct SwigluOp {
  static constexpr int kIn = 2, kOut = 1;
  __device__ void operator()(const float (&in)[kIn], float (&out)[kOut]) const {
    out[0] = in[0] * sigmoid(in[0]) * in[1];
  }
};

// In: out_grad, gate, up. Out: gate_grad, up_grad and, kAgain, SwigluOp's result to the same bits.
template <bool kAgain>
struct SwigluBackwardOp {
  static constexpr int kIn = 3, kOut = kAgain ? 3 : 2;
  __device__ void operator()(const float (&in)[kIn], float (&out)[kOut]) const {
    const float g = in[1], s = sigmoid(g);
    out[0] = in[0] * in[2] * s * (1.0f + g * (1.0f - s));
    out[1] = in[0] * g * s;
    if constexpr (kAgain) out[2] = g * s * in[2];
  }
};

}  // namespace egmla::gpu

// Products with few rows, as a decoding step has them: bound by the bytes of the weight, so what stands before (sum of
// the residual stream, norm, row look-up) and behind (SwiGLU) runs in the same kernel.
//   r = x + delta (stored to `sum`);  y = norm(r);  out = y W^T, or silu(y W_gate^T) * (y W_up^T)
#pragma once

#include <string>

#include "kernels/launch.h"

namespace egmla {

// On CUDA more rows than these are worth a product of its own (kernels/matmul.h).
constexpr int64_t kDecodeLinearRows = 8;

struct DecodeLinear {
  static constexpr const char* kName = "decode_linear";
  View out;            // [M, N], row stride allowed
  View sum{};          // [M, K] or undefined; must not overlap x or delta
  View x;              // [M, K], row stride allowed; with ids a table [V, K]
  View ids{};          // [M] i32 or undefined: row m of the input is x[ids[m]]
  View delta{};        // [M, K] or undefined
  View norm_weight{};  // [K] or undefined: RMSNorm, LayerNorm where norm_bias is defined as well
  View norm_bias{};    // [K] or undefined
  View weight;         // [N, K], or [2N, K] with swiglu: gate, then up
  double eps = 1e-6;
  bool swiglu = false;
};

inline KernelViews views_of(const DecodeLinear& k) {
  return {.written = {{"out", k.out}, {"sum", k.sum}},
          .read = {{"x", k.x},
                   {"ids", k.ids},
                   {"delta", k.delta},
                   {"norm_weight", k.norm_weight},
                   {"norm_bias", k.norm_bias},
                   {"weight", k.weight}}};
}

// A row is read for each id, not the whole table.
inline int64_t bytes_of(const DecodeLinear& k) {
  const int64_t all = views_of(k).bytes();
  if (!k.ids.defined()) return all;
  return all - static_cast<int64_t>(k.x.bytes()) +
         k.out.size(0) * k.x.size(1) * static_cast<int64_t>(size_of(k.x.dtype));
}

// "decode_linear 5376x1792": the weight's rows and columns.
inline std::string label_of(const DecodeLinear& k) {
  return fmt::format("{} {}x{}{}", DecodeLinear::kName, k.weight.size(0), k.weight.size(1), k.swiglu ? " swiglu" : "");
}

EGMLA_DECLARE_KERNEL(DecodeLinear);

// Raises unless the shapes agree.
inline void check_decode_linear(const DecodeLinear& k) {
  const int64_t M = k.out.size(0), N = k.out.size(1), K = k.x.size(1);
  check(
      k.weight.size(0) == (k.swiglu ? 2 * N : N) && k.weight.size(1) == K && (k.ids.defined() || k.x.size(0) == M),
      "decode_linear: out must be [M,N], x [M,K], weight [N,K] ([2N,K] with swiglu); out is {}, x is {}, weight is {}",
      k.out.shape.text(), k.x.shape.text(), k.weight.shape.text());
}

}  // namespace egmla

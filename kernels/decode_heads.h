// A small product for each head: how MLA decodes absorbed.  q^C W^UK -> a query against latents;  W^UV (latent) -> v
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out[b, h, :] = W_h x[b, h, :], or W_h^T x[b, h, :] with transpose.
struct HeadLinear {
  static constexpr const char* kName = "head_linear";
  View out;     // [B, H, n], strided
  View x;       // [B, H, k], strided
  View weight;  // [H, n, k], or [H, k, n] with transpose; strided
  bool transpose = false;
};

inline KernelViews views_of(const HeadLinear& k) {
  return {.written = {{"out", k.out}}, .read = {{"x", k.x}, {"weight", k.weight}}};
}

// "head_linear 14x128x256": heads, outputs, inputs.
inline std::string label_of(const HeadLinear& k) {
  return fmt::format("{} {}x{}x{}", HeadLinear::kName, k.out.size(1), k.out.size(2), k.x.size(2));
}

EGMLA_DECLARE_KERNEL(HeadLinear);

}  // namespace egmla

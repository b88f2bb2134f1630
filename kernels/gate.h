// EG-MLA's gate (arXiv 2509.16686; spec: kv = LayerNorm(u * g)) with its ablation keys:
//   y = u * act(offset + g);  out = y, or LayerNorm(y) over all H w features of a token (joint) or over each head's w
//   features.
// Weight and bias are one per feature, [H, w] with a head stride, so that K or V alone can be gated out of a packed
// tensor.
#pragma once

#include "kernels/launch.h"
#include "kernels/norm.h"

namespace egmla {

enum class GateActivation : uint8_t { none, sigmoid, tanh, silu };
enum class GateNorm : uint8_t { none, joint, per_head };

struct GateForward {
  static constexpr const char* kName = "gate";
  View out;           // [N, H, w], head and row strides allowed
  View mean, rstd;    // [N] (joint) or [N, H] (per head), f32/f64; undefined without a norm
  View u;             // [N, H, w], strided
  View g;             // [N, H, w], strided: W^UE E[x_t]
  View weight, bias;  // [H, w] with a head stride; undefined without a norm
  double offset = 0;
  double eps = 1e-6;
  GateActivation activation = GateActivation::none;
  GateNorm norm = GateNorm::joint;
};

struct GateBackward {
  static constexpr const char* kName = "gate_backward";
  View u_grad, g_grad;          // [N, H, w], strided; u_grad may be out_grad
  View weight_grad, bias_grad;  // [H, w] with a head stride, master precision; undefined without a norm
  View partials;                // [kNormPartials, 2, H w] workspace, master precision
  View out_grad;                // [N, H, w]
  View u, g, mean, rstd, weight;
  double offset = 0;
  GateActivation activation = GateActivation::none;
  GateNorm norm = GateNorm::joint;
  bool accumulate = false;  // of weight_grad and bias_grad
};

inline KernelViews views_of(const GateForward& k) {
  return {.written = {{"out", k.out}, {"mean", k.mean}, {"rstd", k.rstd}},
          .read = {{"u", k.u}, {"g", k.g}, {"weight", k.weight}, {"bias", k.bias}}};
}
// Gradients that are added to are read as well.
inline KernelViews views_of(const GateBackward& k) {
  return {.written = {{"u_grad", k.u_grad},
                      {"g_grad", k.g_grad},
                      {"weight_grad", k.weight_grad},
                      {"bias_grad", k.bias_grad}},
          .read = {{"out_grad", k.out_grad},
                   {"u", k.u},
                   {"g", k.g},
                   {"mean", k.mean},
                   {"rstd", k.rstd},
                   {"weight", k.weight},
                   {"weight_grad", k.accumulate ? k.weight_grad : View{}},
                   {"bias_grad", k.accumulate ? k.bias_grad : View{}}}};
}

EGMLA_DECLARE_KERNEL(GateForward);
EGMLA_DECLARE_KERNEL(GateBackward);

}  // namespace egmla

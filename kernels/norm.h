// RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last axis, with a fused residual sum.
// Statistics are f32 (f64 when x is f64). Weight gradients are reduced in a fixed order: partial sums over
// kNormPartials interleaved sets of rows, then over the sets, so the result does not depend on thread counts.
#pragma once

#include "kernels/launch.h"

namespace egmla {

constexpr int64_t kNormPartials = 128;  // rows of the partial-sum workspaces

// r = x + residual (when residual is defined, stored to residual_out);  out = r * rstd * weight, rstd =
// 1/sqrt(mean(r^2) + eps).
struct RmsNormForward {
  static constexpr const char* kName = "rms_norm";
  View out;           // [N, C]
  View rstd;          // [N] statistics
  View residual_out;  // [N, C] or undefined
  View x;             // [N, C], row stride allowed
  View residual;      // [N, C] or undefined
  View weight;        // [C]
  double eps = 1e-6;
};

// x_grad = d(out)/dx out_grad + (residual_grad when defined). weight_grad (f32/f64 [C]) is overwritten, or added to
// when accumulate.
struct RmsNormBackward {
  static constexpr const char* kName = "rms_norm_backward";
  View x_grad;         // [N, C], row stride allowed; may be out_grad or residual_grad
  View weight_grad;    // [C] master precision
  View partials;       // [kNormPartials, C] workspace, master precision
  View out_grad;       // [N, C]
  View residual_grad;  // [N, C] or undefined
  View x;              // [N, C]: the normalised sum r, row stride allowed
  View rstd;           // [N]
  View weight;         // [C]
  bool accumulate = false;
};

// As RmsNormForward with out = (r - mean) * rstd * weight + bias, rstd = 1/sqrt(var(r) + eps), var biased.
struct LayerNormForward {
  static constexpr const char* kName = "layer_norm";
  View out, mean, rstd, residual_out, x, residual, weight, bias;
  double eps = 1e-6;
};

struct LayerNormBackward {
  static constexpr const char* kName = "layer_norm_backward";
  View x_grad;                  // [N, C]
  View weight_grad, bias_grad;  // [C] master precision
  View partials;                // [kNormPartials, 2, C] workspace
  View out_grad, residual_grad, x, mean, rstd, weight;
  bool accumulate = false;
};

inline KernelViews views_of(const RmsNormForward& k) {
  return {.written = {{"out", k.out}, {"rstd", k.rstd}, {"residual_out", k.residual_out}},
          .read = {{"x", k.x}, {"residual", k.residual}, {"weight", k.weight}}};
}
inline KernelViews views_of(const LayerNormForward& k) {
  return {.written = {{"out", k.out}, {"mean", k.mean}, {"rstd", k.rstd}, {"residual_out", k.residual_out}},
          .read = {{"x", k.x}, {"residual", k.residual}, {"weight", k.weight}, {"bias", k.bias}}};
}
// A weight's gradient that is added to is read as well.
inline KernelViews views_of(const RmsNormBackward& k) {
  return {.written = {{"x_grad", k.x_grad}, {"weight_grad", k.weight_grad}},
          .read = {{"out_grad", k.out_grad},
                   {"residual_grad", k.residual_grad},
                   {"x", k.x},
                   {"rstd", k.rstd},
                   {"weight", k.weight},
                   {"weight_grad", k.accumulate ? k.weight_grad : View{}}}};
}
inline KernelViews views_of(const LayerNormBackward& k) {
  return {.written = {{"x_grad", k.x_grad}, {"weight_grad", k.weight_grad}, {"bias_grad", k.bias_grad}},
          .read = {{"out_grad", k.out_grad},
                   {"residual_grad", k.residual_grad},
                   {"x", k.x},
                   {"mean", k.mean},
                   {"rstd", k.rstd},
                   {"weight", k.weight},
                   {"weight_grad", k.accumulate ? k.weight_grad : View{}},
                   {"bias_grad", k.accumulate ? k.bias_grad : View{}}}};
}

EGMLA_DECLARE_KERNEL(RmsNormForward);
EGMLA_DECLARE_KERNEL(RmsNormBackward);
EGMLA_DECLARE_KERNEL(LayerNormForward);
EGMLA_DECLARE_KERNEL(LayerNormBackward);

}  // namespace egmla

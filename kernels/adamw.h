// The optimizer's kernels over spans of the flat parameter buffers.
#pragma once

#include "core/rng.h"
#include "kernels/launch.h"

namespace egmla {

constexpr int64_t kSquareSumPartials = 1024;

// partials[p] = sum of squares of a fixed part of x (f64 on the CPU, f32 on CUDA).
// Together with GradNorm the order of summation depends on the length alone.
struct SquareSum {
  static constexpr const char* kName = "square_sum";
  View partials;  // [P], mostly kSquareSumPartials; f32 (f64 when x is f64)
  View x;         // [n] master precision
};

// norm[0] = sqrt(sum(partials)). With halt, a norm that is not finite stays.
struct GradNorm {
  static constexpr const char* kName = "grad_norm";
  View norm;      // [1] as partials
  View partials;  // [P]
  bool halt = false;
};

// AdamW (Loshchilov and Hutter 2019) on one span, bias-corrected:
//   g = grad * min(1, max_norm / norm)    (max_norm <= 0: no clipping)
//   m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = w - lr (m / (1-b1^step)) / (sqrt(v / (1-b2^step)) + eps) - lr weight_decay w
// working (bf16) receives the rounded w when defined. A non-finite norm leaves everything unchanged.
// w takes its step from the m and v of this formula; bf16 moments then store them rounded stochastically.
struct AdamW {
  static constexpr const char* kName = "adamw";
  View master;               // [n] master precision
  View exp_avg, exp_avg_sq;  // [n] both master precision or both bf16
  View working;              // [n] bf16 or undefined
  View grad;                 // [n] master precision
  View grad_norm;            // [1] from GradNorm
  double max_norm = 0;
  double lr = 0, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  int64_t step = 1;   // counted from 1
  uint64_t seed = 0;  // with step and place, the random bits of the rounding
  int64_t first = 0;  // place of these elements in the model's flat buffers, a multiple of kRoundingWidth
};

constexpr int64_t kRoundingWidth = 4;
constexpr uint64_t kRoundingStream = stream_of("adamw rounding");

// Random bits for kRoundingWidth elements of the flat buffers, from element i kRoundingWidth on: the low half of a word
// rounds an element's exp_avg, the high half its exp_avg_sq.
constexpr std::array<uint32_t, kRoundingWidth> rounding_bits(uint64_t seed, int64_t step, int64_t i) {
  return philox(seed, static_cast<uint64_t>(i), kRoundingStream + static_cast<uint64_t>(step));
}

inline KernelViews views_of(const SquareSum& k) {
  return {.written = {{"partials", k.partials}}, .read = {{"x", k.x}}};
}
inline KernelViews views_of(const GradNorm& k) {
  return {.written = {{"norm", k.norm}}, .read = {{"partials", k.partials}, {"norm", k.halt ? k.norm : View{}}}};
}
inline KernelViews views_of(const AdamW& k) {
  return {
      .written = {{"master", k.master}, {"exp_avg", k.exp_avg}, {"exp_avg_sq", k.exp_avg_sq}, {"working", k.working}},
      .read = {{"master", k.master},
               {"exp_avg", k.exp_avg},
               {"exp_avg_sq", k.exp_avg_sq},
               {"grad", k.grad},
               {"grad_norm", k.grad_norm}}};
}

EGMLA_DECLARE_KERNEL(SquareSum);
EGMLA_DECLARE_KERNEL(GradNorm);
EGMLA_DECLARE_KERNEL(AdamW);

}  // namespace egmla

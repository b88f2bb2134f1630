// Softmax cross-entropy on one chunk of logits, and the fixed-order sum of per-token losses.
#pragma once

#include "kernels/launch.h"

namespace egmla {

constexpr int32_t kIgnoreIndex = -100;  // a target that counts for nothing

// loss[n] = logsumexp(logits[n]) - logits[n, target]  (0 where ignored).
// With write_grad, logits are overwritten by grad_scale * (softmax - onehot)  (0 where ignored).
struct CrossEntropy {
  static constexpr const char* kName = "cross_entropy";
  View loss;     // [N] f32/f64
  View logits;   // [N, V], row stride allowed
  View targets;  // [N] i32
  double grad_scale = 1.0;
  bool write_grad = false;
};

// out[0] = scale * sum(x), in an order fixed by the length alone.
struct Sum {
  static constexpr const char* kName = "sum";
  View out;  // [1] f32/f64
  View x;    // [n] f32/f64
  double scale = 1.0;
};

// The loss alone reads the logits; with write_grad they come back as their gradient.
inline KernelViews views_of(const CrossEntropy& k) {
  return {.written = {{"loss", k.loss}, {"logits", k.write_grad ? k.logits : View{}}},
          .read = {{"logits", k.logits}, {"targets", k.targets}}};
}
inline KernelViews views_of(const Sum& k) {
  return {.written = {{"out", k.out}}, .read = {{"x", k.x}}};
}

EGMLA_DECLARE_KERNEL(CrossEntropy);
EGMLA_DECLARE_KERNEL(Sum);

}  // namespace egmla

// Causal attention, flash style (Dao 2023): no T x T matrix in memory, probabilities rebuilt from lse in backward.
//   score[i, j] = scale * (q_i[0:dk] . k_j + q_i[dk:dk+dr] . k_rope_j);  out_i = sum_j softmax_j(score) v_j
// dr may be 0 (k_rope undefined). k_rope is one head shared by all (MLA), read in place. Query head h reads key head
// h / (H / Hkv) (grouped-query attention). Query i stands at position i + (Tk - Tq) and sees keys j <= its position,
// and, where document_start is defined, j >= document_start[b, i].
// All tensors are strided [B, T, heads, width], so slices of packed projections need no copy. Backward is
// deterministic.
#pragma once

#include "kernels/launch.h"

namespace egmla {

struct AttentionForward {
  static constexpr const char* kName = "attention";
  View out;             // [B, Tq, H, dv]
  View lse;             // [B, H, Tq] f32/f64, natural log of the sum of exp(score)
  View q;               // [B, Tq, H, dk + dr]
  View k;               // [B, Tk, Hkv, dk]
  View k_rope;          // [B, Tk, 1, dr] or undefined
  View v;               // [B, Tk, Hkv, dv]
  View document_start;  // [B, Tq] i32 or undefined
  double scale = 1.0;
};

// Training only: Tq == Tk. All gradients are overwritten.
struct AttentionBackward {
  static constexpr const char* kName = "attention_backward";
  View q_grad, k_grad, k_rope_grad, v_grad;  // as q, k, k_rope (or undefined), v
  View delta;                                // [B, H, T] f32/f64 workspace: sum(out * out_grad) per row
  View workspace;  // f32/f64, attention_backward_workspace() elements, or undefined if that is 0
  View out_grad;   // [B, T, H, dv]
  View out, lse, q, k, k_rope, v, document_start;
  double scale = 1.0;
};

inline KernelViews views_of(const AttentionForward& k) {
  return {.written = {{"out", k.out}, {"lse", k.lse}},
          .read = {{"q", k.q}, {"k", k.k}, {"k_rope", k.k_rope}, {"v", k.v}, {"document_start", k.document_start}}};
}
inline KernelViews views_of(const AttentionBackward& k) {
  return {.written = {{"q_grad", k.q_grad}, {"k_grad", k.k_grad}, {"k_rope_grad", k.k_rope_grad}, {"v_grad", k.v_grad}},
          .read = {{"out_grad", k.out_grad},
                   {"out", k.out},
                   {"lse", k.lse},
                   {"q", k.q},
                   {"k", k.k},
                   {"k_rope", k.k_rope},
                   {"v", k.v},
                   {"document_start", k.document_start}}};
}

EGMLA_DECLARE_KERNEL(AttentionForward);
EGMLA_DECLARE_KERNEL(AttentionBackward);

// Elements of AttentionBackward::workspace that a back end needs for these shapes.
int64_t attention_backward_workspace(CpuContext& context, const AttentionBackward& kernel);
int64_t attention_backward_workspace(PlanContext& context, const AttentionBackward& kernel);
#ifdef EGMLA_WITH_CUDA
int64_t attention_backward_workspace(CudaContext& context, const AttentionBackward& kernel);
#endif

}  // namespace egmla

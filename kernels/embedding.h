// Row gather and its gradient, a scatter without atomics: tokens are grouped by id once a step (Batch) and each id's
// rows are summed in token order, so the result is the same on every run and for every thread count.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out[n, :] = table[ids[n], :]
struct EmbeddingForward {
  static constexpr const char* kName = "embedding";
  View out;    // [N, C]
  View table;  // [V, C]
  View ids;    // [N] i32
};

// table_grad[id, :] += sum of out_grad rows of that id; without accumulate the whole table gradient is cleared first.
struct EmbeddingBackward {
  static constexpr const char* kName = "embedding_backward";
  View table_grad;  // [V, C] master precision
  View out_grad;    // [N, C]
  View ids;         // [N] i32
  View order;       // [N] i32: token indices sorted by id, stable
  View segments;    // [U + 1] i32: order[segments[u] .. segments[u+1]) share one id
  bool accumulate = false;
};

EGMLA_DECLARE_KERNEL(EmbeddingForward);
EGMLA_DECLARE_KERNEL(EmbeddingBackward);

}  // namespace egmla

// Row gather and its gradient, a scatter without atomics: tokens are grouped by id once a step (Batch) and each id's
// rows are summed in token order, so the result is the same on every run and for every thread count.
#pragma once

#include <algorithm>

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

inline KernelViews views_of(const EmbeddingForward& k) {
  return {.written = {{"out", k.out}}, .read = {{"table", k.table}, {"ids", k.ids}}};
}
inline KernelViews views_of(const EmbeddingBackward& k) {
  return {.written = {{"table_grad", k.table_grad}},
          .read = {{"out_grad", k.out_grad},
                   {"ids", k.ids},
                   {"order", k.order},
                   {"segments", k.segments},
                   {"table_grad", k.accumulate ? k.table_grad : View{}}}};
}

// A row is read for each token, at most the whole table.
inline int64_t bytes_of(const EmbeddingForward& k) {
  const size_t rows = std::min(k.table.bytes(), k.out.bytes());
  return static_cast<int64_t>(rows + k.out.bytes() + k.ids.bytes());
}
// Added to, the rows of the ids that occur are read and written; otherwise the whole gradient is written.
inline int64_t bytes_of(const EmbeddingBackward& k) {
  const size_t row = static_cast<size_t>(k.table_grad.size(1)) * size_of(k.table_grad.dtype);
  const size_t occurring = static_cast<size_t>(k.segments.elements() - 1) * row;
  const size_t grad = k.accumulate ? 2 * occurring : k.table_grad.bytes();
  return static_cast<int64_t>(grad + k.out_grad.bytes() + k.order.bytes() + k.segments.bytes());
}

EGMLA_DECLARE_KERNEL(EmbeddingForward);
EGMLA_DECLARE_KERNEL(EmbeddingBackward);

}  // namespace egmla

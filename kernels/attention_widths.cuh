// The widths that tensor-core attention is compiled for. A tensor takes the narrowest class that holds it; the columns
// beyond its width are zeros in shared memory and never written back.
#pragma once

#include "kernels/attention_arguments.cuh"

namespace egmla::flash {

template <int QK, int V>
struct Widths {
  static constexpr int kQk = QK, kV = V;
};

// Calls function(Widths<QK, V>{}).
template <class F>
void for_widths(int qk, int v, F&& function) {
  if (qk <= 64 && v <= 64) return function(Widths<64, 64>{});
  if (qk <= 96 && v <= 64) return function(Widths<96, 64>{});
  if (qk <= 128 && v <= 64) return function(Widths<128, 64>{});
  if (qk <= 128 && v <= 128) return function(Widths<128, 128>{});
  if (qk <= 192 && v <= 128) return function(Widths<192, 128>{});
  function(Widths<kMaxWidth, kMaxWidth>{});
}

}  // namespace egmla::flash

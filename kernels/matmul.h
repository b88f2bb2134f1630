// Matrix products: OpenBLAS on the CPU, cuBLASLt on CUDA.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out[M, N] = alpha op(a) op(b) + (accumulate ? out : 0), with row strides; op transposes when asked.
// On CUDA a and b are bf16 (or f32) and out is bf16 or f32; accumulation is in f32. On the CPU all are f32 or all f64.
struct Matmul {
  static constexpr const char* kName = "matmul";
  View out;  // [M, N]
  View a;    // [M, K], or [K, M] when transpose_a
  View b;    // [K, N], or [N, K] when transpose_b
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
  double alpha = 1.0;
};

// A result that is added to is read as well.
inline KernelViews views_of(const Matmul& k) {
  return {.written = {{"out", k.out}}, .read = {{"a", k.a}, {"b", k.b}, {"out", k.accumulate ? k.out : View{}}}};
}

EGMLA_DECLARE_KERNEL(Matmul);

// "matmul MxNxK tn f32 +=": the shape, which of a and b is transposed, the result's type, whether it is added to.
inline std::string label_of(const Matmul& k) {
  return fmt::format("matmul {}x{}x{} {}{} {}{}", k.out.size(0), k.out.size(1), k.a.size(k.transpose_a ? 0 : 1),
                     k.transpose_a ? 't' : 'n', k.transpose_b ? 't' : 'n', name_of(k.out.dtype),
                     k.accumulate ? " +=" : "");
}

}  // namespace egmla

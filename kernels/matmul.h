// Matrix products: OpenBLAS on the CPU, cuBLASLt on CUDA.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out[M, N] = alpha op(a) op(b) + (accumulate ? out : 0), with row strides; op transposes when asked.
// On CUDA a and b are bf16 (or f32) and out is bf16 or f32; accumulation is in f32. On the CPU all are f32 or all f64.
// On Hopper a and b may be e4m3 copies with their factors (kernels/quantize.h): then b alone is transposed, so that
// both have K innermost, K is a multiple of 128, M and N of 16, and 128 x 128 blocks stand on one side at most.
struct Matmul {
  static constexpr const char* kName = "matmul";
  View out;  // [M, N]
  View a;    // [M, K], or [K, M] when transpose_a
  View b;    // [K, N], or [N, K] when transpose_b
  bool transpose_a = false;
  bool transpose_b = false;
  bool accumulate = false;
  double alpha = 1.0;
  View a_scales{}, b_scales{};  // of e4m3 operands
  bool square_blocks_a = false, square_blocks_b = false;
};

// A result that is added to is read as well.
inline KernelViews views_of(const Matmul& k) {
  return {.written = {{"out", k.out}},
          .read = {{"a", k.a},
                   {"b", k.b},
                   {"a_scales", k.a_scales},
                   {"b_scales", k.b_scales},
                   {"out", k.accumulate ? k.out : View{}}}};
}

EGMLA_DECLARE_KERNEL(Matmul);

#ifdef EGMLA_WITH_CUDA
// Whether card and library take e4m3 with factors of blocks: Hopper, cuBLASLt 12.9 or later.
bool multiplies_e4m3(CudaContext& context);
#endif

// "matmul MxNxK tn f32 +=": the shape, which of a and b is transposed, the result's type behind that of e4m3 operands,
// whether it is added to.
inline std::string label_of(const Matmul& k) {
  return fmt::format("matmul {}x{}x{} {}{} {}{}{}", k.out.size(0), k.out.size(1), k.a.size(k.transpose_a ? 0 : 1),
                     k.transpose_a ? 't' : 'n', k.transpose_b ? 't' : 'n', k.a.dtype == DType::e4m3 ? "e4m3 " : "",
                     name_of(k.out.dtype), k.accumulate ? " +=" : "");
}

}  // namespace egmla

// What linear layers need to multiply in e4m3: copies of activations, gradients and weights, and the product of two
// copies. Activations and gradients have a factor for 128 elements along the summed axis, weights one for 128 x 128, so
// that both their copies hold the same values.
#pragma once

#include "autograd/parameter.h"
#include "core/tensor.h"

namespace egmla::ops {

// Whether the three products of a layer gain more than the copies cost, and e4m3 takes their shape, for so many rows of
// activations.
bool runs_in_fp8(int64_t rows, const Parameter& weight);

// Copies of x, seen as [R, C]: [R, C'] and, transposed, [C, R'].
struct WantedCopies {
  bool rows = true, columns = true;
};
Fp8Copies quantize(const Tensor& x, const WantedCopies& wanted);
// Those of swiglu(gate_up), and of its gradient with respect to gate_up, which themselves are never written.
Fp8Copies quantize_swiglu(const Tensor& gate_up, const WantedCopies& wanted);
Fp8Copies quantize_swiglu_backward(const Tensor& out_grad, const Tensor& gate_up, const WantedCopies& wanted);

// Those of the parameter's present value; made once a step, whatever the number of micro-steps.
const Fp8Copies& fp8_copies(Context& context, Parameter& weight);

// out [M, N] (+)= a b^T for copies a [M, K'] and b [N, K'].
void multiply(const View& out, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate = false);

}  // namespace egmla::ops

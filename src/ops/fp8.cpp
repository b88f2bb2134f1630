#include "ops/fp8.h"

#include "kernels/matmul.h"
#include "kernels/quantize.h"

namespace egmla::ops {
namespace {

// In e4m3 the three products of a row save 6 K M FLOPs at the difference of both rates, and its copies move 4 (K + M)
// bytes: on an H100 they are even at K M / (K + M) = 440 (docs/performance.md).
constexpr int64_t kWorth = 512;
constexpr int64_t kMultiple = 16;  // of every extent

// Memory of a copy [outer, inner']. What pads the factors of 128 x 128 blocks must be finite.
Fp8Matrix make_copy(Context& context, int64_t outer, int64_t inner, bool square) {
  const Shape scales = fp8_scale_shape(outer, inner, square);
  return {.values = Tensor::empty(context, {outer, fp8_padded(inner)}, DType::e4m3),
          .scales = square ? Tensor::zeros(context, scales, DType::f32) : Tensor::empty(context, scales, DType::f32),
          .square = square};
}

QuantizedViews views_of_copies(const Fp8Copies& copies) {
  const auto view = [](const Tensor& tensor) { return tensor.defined() ? tensor.view() : View{}; };
  return {.rows = view(copies.rows.values),
          .row_scales = view(copies.rows.scales),
          .columns = view(copies.columns.values),
          .column_scales = view(copies.columns.scales),
          .square = copies.rows.square};
}

Fp8Copies make_copies(Context& context, int64_t R, int64_t C, const WantedCopies& wanted) {
  Fp8Copies out;
  if (wanted.rows) out.rows = make_copy(context, R, C, false);
  if (wanted.columns) out.columns = make_copy(context, C, R, false);
  return out;
}

}  // namespace

bool runs_in_fp8(int64_t rows, const Parameter& weight) {
  const int64_t M = weight.value.size(0), K = weight.value.size(1);
  return rows % kMultiple == 0 && M % kMultiple == 0 && K % kMultiple == 0 && K * M >= kWorth * (K + M);
}

Fp8Copies quantize(const Tensor& x, const WantedCopies& wanted) {
  const View matrix = x.view().as_matrix();
  const Fp8Copies out = make_copies(x.context(), matrix.size(0), matrix.size(1), wanted);
  launch(x.context(), Quantize{.out = views_of_copies(out), .x = matrix});
  return out;
}

Fp8Copies quantize_swiglu(const Tensor& gate_up, const WantedCopies& wanted) {
  const View matrix = gate_up.view().as_matrix();
  const Fp8Copies out = make_copies(gate_up.context(), matrix.size(0), matrix.size(1) / 2, wanted);
  launch(gate_up.context(), QuantizeSwiglu{.out = views_of_copies(out), .gate_up = matrix});
  return out;
}

Fp8Copies quantize_swiglu_backward(const Tensor& out_grad, const Tensor& gate_up, const WantedCopies& wanted) {
  const View matrix = gate_up.view().as_matrix();
  const Fp8Copies out = make_copies(gate_up.context(), matrix.size(0), matrix.size(1), wanted);
  launch(
      gate_up.context(),
      QuantizeSwigluBackward{.out = views_of_copies(out), .out_grad = out_grad.view().as_matrix(), .gate_up = matrix});
  return out;
}

const Fp8Copies& fp8_copies(Context& context, Parameter& weight) {
  Fp8Copies& copies = weight.fp8;
  if (!copies.rows.values.defined()) {
    const MemoryScope scope(context, MemoryCategory::weights);
    const int64_t M = weight.value.size(0), K = weight.value.size(1);
    copies = {.rows = make_copy(context, M, K, true), .columns = make_copy(context, K, M, true)};
  }
  if (!weight.fp8_current) launch(context, Quantize{.out = views_of_copies(copies), .x = weight.value});
  weight.fp8_current = true;
  return copies;
}

void multiply(const View& out, const Fp8Matrix& a, const Fp8Matrix& b, bool accumulate) {
  launch(a.values.context(), Matmul{.out = out,
                                    .a = a.values.view(),
                                    .b = b.values.view(),
                                    .transpose_b = true,
                                    .accumulate = accumulate,
                                    .a_scales = a.scales.view(),
                                    .b_scales = b.scales.view(),
                                    .square_blocks_a = a.square,
                                    .square_blocks_b = b.square});
}

}  // namespace egmla::ops

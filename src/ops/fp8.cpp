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

void fill_copies(Context& context, const Fp8Copies& copies, const View& x, bool square) {
  const auto view = [](const Tensor& tensor) { return tensor.defined() ? tensor.view() : View{}; };
  launch(context, Quantize{.rows = view(copies.rows.values),
                           .row_scales = view(copies.rows.scales),
                           .columns = view(copies.columns.values),
                           .column_scales = view(copies.columns.scales),
                           .x = x,
                           .square = square});
}

}  // namespace

bool runs_in_fp8(const Shape& x, const Parameter& weight) {
  const int64_t M = weight.value.size(0), K = weight.value.size(1), rows = x.elements() / std::max<int64_t>(K, 1);
  return rows % kMultiple == 0 && M % kMultiple == 0 && K % kMultiple == 0 && K * M >= kWorth * (K + M);
}

Fp8Copies quantize(const Tensor& x, const WantedCopies& wanted) {
  const View matrix = x.view().as_matrix();
  const int64_t R = matrix.size(0), C = matrix.size(1);
  Fp8Copies out;
  if (wanted.rows) out.rows = make_copy(x.context(), R, C, false);
  if (wanted.columns) out.columns = make_copy(x.context(), C, R, false);
  fill_copies(x.context(), out, matrix, false);
  return out;
}

const Fp8Copies& fp8_copies(Context& context, Parameter& weight) {
  if (!weight.fp8.rows.values.defined()) {
    const MemoryScope scope(context, MemoryCategory::weights);
    const int64_t M = weight.value.size(0), K = weight.value.size(1);
    weight.fp8 = {.rows = make_copy(context, M, K, true), .columns = make_copy(context, K, M, true)};
  }
  if (!weight.fp8_current) fill_copies(context, weight.fp8, weight.value, true);
  weight.fp8_current = true;
  return weight.fp8;
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

// Per chunk of rows: logits = x W^T; loss and d(logits) in place; dW += d(logits)^T x; dx = d(logits) W.
// The gradient of the loss is known to be 1 in advance, so nothing of the chunk outlives it.
#include "kernels/cross_entropy.h"
#include "kernels/matmul.h"
#include "ops/ops.h"

namespace egmla::ops {
namespace {

// Elements of a chunk of logits: small enough for a CPU's cache, large enough to fill a GPU.
constexpr int64_t kCpuChunk = int64_t{1} << 20;
constexpr int64_t kCudaChunk = int64_t{1} << 28;

int64_t rows_per_chunk(Context& context, int64_t rows, int64_t V, int64_t asked) {
  if (asked > 0) return std::min(asked, rows);
  const int64_t budget = context.is_cpu() ? kCpuChunk : kCudaChunk;
  const int64_t chunks = std::max<int64_t>(1, (rows * V + budget - 1) / budget);
  return (rows + chunks - 1) / chunks;
}

}  // namespace

HeadLoss head_loss(const Var& x, Parameter& weight, const Tensor& targets, double loss_scale, int64_t chunk_rows) {
  const View in = x.view().as_matrix();
  const int64_t N = in.size(0), V = weight.value.size(0);
  check(weight.value.rank() == 2 && in.size(1) == weight.value.size(1) && targets.shape().elements() == N,
        "head_loss: x must be [N,C], weight [V,C], targets [N]; x is {}, weight is {}, targets is {}", x.shape().text(),
        weight.value.shape.text(), targets.shape().text());
  Tape& tape = *x.tape;
  Context& context = tape.context();
  const OpScope scope(context, "head_loss");
  tape.use(weight);
  const DType statistics = weight.value.dtype == DType::f64 ? DType::f64 : DType::f32;
  HeadLoss result;
  result.per_token = Tensor::empty(context, {N}, statistics);
  const Tensor dx = tape.recording() && x.id != kNoGrad ? Tensor::empty(context, x.shape(), x.value.dtype()) : Tensor{};
  const int64_t chunk = rows_per_chunk(context, N, V, chunk_rows);
  const Tensor logits = Tensor::empty(context, {std::max<int64_t>(chunk, 1), V}, weight.value.dtype);
  const View flat_targets = make_view(targets.view().data, {N}, DType::i32);
  for (int64_t begin = 0; begin < N; begin += chunk) {
    const int64_t rows = std::min(chunk, N - begin);
    const View scores = logits.view().rows(0, rows), x_rows = in.rows(begin, rows);
    launch(context, Matmul{.out = scores, .a = x_rows, .b = weight.value, .transpose_b = true});
    launch(context, CrossEntropy{.loss = result.per_token.view().rows(begin, rows),
                                 .logits = scores,
                                 .targets = flat_targets.rows(begin, rows),
                                 .grad_scale = loss_scale,
                                 .write_grad = tape.recording()});
    if (!tape.recording()) continue;
    launch(
        context,
        Matmul{.out = weight.grad, .a = scores, .b = x_rows, .transpose_a = true, .accumulate = weight.accumulate()});
    if (dx.defined())
      launch(context, Matmul{.out = dx.view().as_matrix().rows(begin, rows), .a = scores, .b = weight.value});
  }
  if (tape.recording()) weight.end_use();
  const Tensor loss = Tensor::empty(context, {1}, statistics);
  launch(context, Sum{.out = loss.view(), .x = result.per_token.view(), .scale = loss_scale});
  result.loss = tape.output(loss);
  if (tape.recording()) {
    tape.record("head_loss", [dx, x_id = x.id](Tape& t) { t.give(x_id, dx); });
  }
  return result;
}

Tensor head_logits(const Tensor& x, Parameter& weight) {
  check(x.shape().back() == weight.value.size(1),
        "head_logits: x must be [...,C] and weight [V,C]; x is {}, weight is {}", x.shape().text(),
        weight.value.shape.text());
  const OpScope scope(x.context(), "head_logits");
  Shape shape = x.shape();
  shape[-1] = weight.value.size(0);
  Tensor logits = Tensor::empty(x.context(), shape, weight.value.dtype);
  launch(x.context(),
         Matmul{.out = logits.view().as_matrix(), .a = x.view().as_matrix(), .b = weight.value, .transpose_b = true});
  return logits;
}

}  // namespace egmla::ops

// y = x W^T;  dx = dy W;  dW += dy^T x, summed by the product itself (beta = 1).
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "ops/fp8.h"
#include "ops/ops.h"

namespace egmla::ops {
namespace {

Tensor product(const Tensor& x, const Parameter& weight) {
  const View& w = weight.value;
  Shape shape = x.shape();
  shape[-1] = w.size(0);
  Tensor out = Tensor::empty(x.context(), shape, w.dtype);
  launch(x.context(), Matmul{.out = out.view().as_matrix(), .a = x.view().as_matrix(), .b = w, .transpose_b = true});
  return out;
}

void check_product(const Var& x, const Parameter& weight) {
  const View& w = weight.value;
  check(w.rank() == 2 && x.shape().rank() >= 2 && x.shape().back() == w.size(1),
        "linear: x must be [...,K] and weight [M,K]; x is {}, weight is {}", x.shape().text(), w.shape.text());
}

int64_t rows_of(const Var& x) {
  return x.shape().elements() / std::max<int64_t>(x.shape().back(), 1);
}

Var record_product(const Var& x, Parameter& weight, Activation::Rebuild rebuild) {
  check_product(x, weight);
  Tape& tape = *x.tape;
  const OpScope scope(tape.context(), "linear");
  tape.use(weight);
  Var y = tape.output(product(x.value, weight), std::move(rebuild));
  if (tape.recording()) {
    tape.record("linear", [x = x.activation(), x_id = x.id, parameter = &weight, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      t.run_or_postpone([x, dy, parameter] {
        Context& context = dy.context();
        const OpScope op(context, "linear");
        launch(context, Matmul{.out = parameter->grad,
                               .a = dy.view().as_matrix(),
                               .b = x.view().as_matrix(),
                               .transpose_a = true,
                               .accumulate = parameter->accumulate()});
        parameter->end_use();
      });
      t.write(x_id, [&](const View& dx) {
        launch(t.context(), Matmul{.out = dx.as_matrix(), .a = dy.view().as_matrix(), .b = parameter->value});
      });
    });
  }
  return y;
}

// The same in e4m3. For backward stays the transposed copy of x, or on a frugal tape the way to x.
Var record_fp8_product(const Var& x, Parameter& weight) {
  Tape& tape = *x.tape;
  const OpScope scope(tape.context(), "linear");
  tape.use(weight);
  const bool again = x.again.defined(), records = tape.recording();
  const Fp8Copies x8 = quantize(x.value, {.rows = true, .columns = records && !again});
  Shape shape = x.shape();
  shape[-1] = weight.value.size(0);
  const Tensor out = Tensor::empty(tape.context(), shape, x.value.dtype());
  multiply(out.view().as_matrix(), x8.rows, fp8_copies(tape.context(), weight).rows);
  Var y = tape.output(out);
  if (records) {
    tape.record("linear", [kept = x8.columns, x = again ? x.again : Activation(), x_id = x.id, w = &weight,
                           id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      const Fp8Copies d = quantize(dy, {.rows = x_id != kNoGrad, .columns = true});
      const Fp8Matrix columns = x.defined() ? quantize(x.get(), {.rows = false, .columns = true}).columns : kept;
      multiply(w->grad, d.columns, columns, w->accumulate());
      w->end_use();
      t.write(x_id, [&](const View& dx) { multiply(dx.as_matrix(), d.rows, fp8_copies(t.context(), *w).columns); });
    });
  }
  return y;
}

}  // namespace

Var linear(const Var& x, Parameter& weight) {
  check_product(x, weight);
  return x.tape->fp8() && runs_in_fp8(rows_of(x), weight) ? record_fp8_product(x, weight)
                                                          : record_product(x, weight, {});
}

Var small_linear(const Var& x, Parameter& weight) {
  check_product(x, weight);
  if (x.tape->fp8() && runs_in_fp8(rows_of(x), weight)) return record_fp8_product(x, weight);
  return record_product(x, weight, [x = x.activation(), w = &weight] { return product(x.get(), *w); });
}

Var add(const Var& a, const Var& b) {
  check(a.shape() == b.shape(), "add: shapes must agree; a is {}, b is {}", a.shape().text(), b.shape().text());
  Tape& tape = *a.tape;
  const OpScope scope(tape.context(), "add");
  Tensor out = Tensor::empty(tape.context(), a.shape(), a.value.dtype());
  launch(tape.context(), Add{.out = out.view(), .a = a.view(), .b = b.view()});
  Var y = tape.output(out);
  if (tape.recording()) {
    tape.record("add", [a_id = a.id, b_id = b.id, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      t.give(a_id, dy);
      t.give(b_id, dy);
    });
  }
  return y;
}

}  // namespace egmla::ops

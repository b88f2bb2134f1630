#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "ops/fp8.h"
#include "ops/ops.h"

namespace egmla::ops {

Var swiglu(const Var& x) {
  check(x.shape().back() % 2 == 0, "swiglu: x must be [...,2F]; x is {}", x.shape().text());
  Tape& tape = *x.tape;
  const OpScope scope(tape.context(), "swiglu");
  const auto forward = [](const Tensor& in) {
    Shape shape = in.shape();
    shape[-1] /= 2;
    Tensor out = Tensor::empty(in.context(), shape, in.dtype());
    launch(in.context(), SwigluForward{.out = out.view(), .gate_up = in.view()});
    return out;
  };
  Var y = tape.output(forward(x.value), [forward, x = x.activation()] { return forward(x.get()); });
  if (tape.recording()) {
    tape.record("swiglu", [x = x.activation(), x_id = x.id, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      t.write(x_id, [&](const View& dx) {
        launch(t.context(), SwigluBackward{.gate_up_grad = dx, .out_grad = dy.view(), .gate_up = x.view()});
      });
    });
  }
  return y;
}

Var swiglu_linear(const Var& x, Parameter& weight) {
  Tape& tape = *x.tape;
  if (!tape.frugal() || x.id == kNoGrad) return linear(swiglu(x), weight);
  const OpScope scope(tape.context(), "swiglu_linear");
  tape.use(weight);
  Tape forward(tape.context(), Tape::Mode::inference);
  Var y = tape.output(linear(swiglu(forward.constant(x.value)), weight).value);
  tape.record("swiglu_linear", [x = x.activation(), w = &weight, x_id = x.id, id = y.id](Tape& t) {
    const Tensor dy = t.take(id);
    Shape shape = x.get().shape();
    shape[-1] /= 2;
    // First the gradient of the hidden layer, then, in the same memory, the hidden layer.
    const Tensor hidden = Tensor::empty(t.context(), shape, dy.dtype());
    const View h = hidden.view(), d = dy.view().as_matrix();
    launch(t.context(), Matmul{.out = h.as_matrix(), .a = d, .b = w->value});
    t.write(x_id, [&](const View& dx) {
      launch(t.context(), SwigluBackward{.gate_up_grad = dx, .out_grad = h, .gate_up = x.view(), .out = h});
    });
    launch(t.context(),
           Matmul{.out = w->grad, .a = d, .b = h.as_matrix(), .transpose_a = true, .accumulate = w->accumulate()});
    w->end_use();
  });
  return y;
}

namespace {

Shape with_width(Shape shape, int64_t width) {
  shape[-1] = width;
  return shape;
}

// For backward stay gate_up and the transposed copies of x and of the hidden layer; what a frugal tape does not keep is
// made again.
Var record_fp8_ffn(const Var& x, Parameter& up, Parameter& down) {
  Tape& tape = *x.tape;
  Context& context = tape.context();
  const OpScope scope(context, "swiglu_ffn");
  tape.use(up);
  tape.use(down);
  const bool records = tape.recording(), again = x.again.defined();
  const DType dtype = x.value.dtype();
  const Fp8Copies x8 = quantize(x.value, {.rows = true, .columns = records && !again});
  const Tensor gate_up = Tensor::empty(context, with_width(x.shape(), up.value.size(0)), dtype);
  multiply(gate_up.view().as_matrix(), x8.rows, fp8_copies(context, up).rows);
  const Fp8Copies hidden = quantize_swiglu(gate_up, {.rows = true, .columns = records && !tape.frugal()});
  const Tensor out = Tensor::empty(context, with_width(x.shape(), down.value.size(0)), dtype);
  multiply(out.view().as_matrix(), hidden.rows, fp8_copies(context, down).rows);
  Var y = tape.output(out);
  if (!records) return y;
  tape.record("swiglu_ffn", [=, kept_x = x8.columns, kept_hidden = hidden.columns, x = again ? x.again : Activation(),
                             x_id = x.id, up = &up, down = &down, id = y.id](Tape& t) {
    constexpr WantedCopies kTransposed{.rows = false, .columns = true};
    const Tensor dy = t.take(id);
    const Fp8Copies d = quantize(dy, {});
    multiply(down->grad, d.columns,
             kept_hidden.values.defined() ? kept_hidden : quantize_swiglu(gate_up, kTransposed).columns,
             down->accumulate());
    down->end_use();
    const Tensor hidden_grad = Tensor::empty(t.context(), with_width(dy.shape(), down->value.size(1)), dtype);
    multiply(hidden_grad.view().as_matrix(), d.rows, fp8_copies(t.context(), *down).columns);
    const Fp8Copies g = quantize_swiglu_backward(hidden_grad, gate_up, {.rows = x_id != kNoGrad, .columns = true});
    multiply(up->grad, g.columns, x.defined() ? quantize(x.get(), kTransposed).columns : kept_x, up->accumulate());
    up->end_use();
    t.write(x_id, [&](const View& dx) { multiply(dx.as_matrix(), g.rows, fp8_copies(t.context(), *up).columns); });
  });
  return y;
}

}  // namespace

Var swiglu_ffn(const Var& x, Parameter& up, Parameter& down) {
  const int64_t rows = x.shape().elements() / std::max<int64_t>(x.shape().back(), 1);
  if (x.tape->fp8() && runs_in_fp8(rows, up) && runs_in_fp8(rows, down)) return record_fp8_ffn(x, up, down);
  return swiglu_linear(linear(x, up), down);
}

Var gelu(const Var& x) {
  Tape& tape = *x.tape;
  const OpScope scope(tape.context(), "gelu");
  const auto forward = [](const Tensor& in) {
    Tensor out = Tensor::empty(in.context(), in.shape(), in.dtype());
    launch(in.context(), GeluForward{.out = out.view(), .x = in.view()});
    return out;
  };
  Var y = tape.output(forward(x.value), [forward, x = x.activation()] { return forward(x.get()); });
  if (tape.recording()) {
    tape.record("gelu", [x = x.activation(), x_id = x.id, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      t.write(x_id, [&](const View& dx) {
        launch(t.context(), GeluBackward{.x_grad = dx, .out_grad = dy.view(), .x = x.view()});
      });
    });
  }
  return y;
}

}  // namespace egmla::ops

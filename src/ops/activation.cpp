#include "kernels/elementwise.h"
#include "kernels/matmul.h"
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
  if (!tape.frugal() || tape.fp8() || x.id == kNoGrad) return linear(swiglu(x), weight);
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

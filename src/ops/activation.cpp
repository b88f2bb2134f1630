#include "kernels/elementwise.h"
#include "ops/ops.h"

namespace egmla::ops {

Var swiglu(const Var& x) {
  check(x.shape().back() % 2 == 0, "swiglu: x must be [...,2F]; x is {}", x.shape().text());
  Tape& tape = *x.tape;
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

Var gelu(const Var& x) {
  Tape& tape = *x.tape;
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

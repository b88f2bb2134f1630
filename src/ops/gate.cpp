#include "kernels/gate.h"

#include "kernels/norm.h"
#include "ops/ops.h"

namespace egmla::ops {

Var gate(const Var& u, const Var& g, Parameter* weight, Parameter* bias, const GateOptions& options,
         GateMoments* moments) {
  const bool normed = options.norm != GateNorm::none;
  check(u.shape().rank() == 4 && u.shape() == g.shape(), "gate: u and g must be [B,T,H,w] alike; u is {}, g is {}",
        u.shape().text(), g.shape().text());
  const int64_t N = u.shape()[0] * u.shape()[1], H = u.shape()[2], w = u.shape()[3];
  check(normed == (weight && bias), "gate: a norm needs weight and bias, no norm takes neither");
  check(!normed || (weight->value.shape == Shape{H, w} && bias->value.shape == Shape{H, w}),
        "gate: norm weight and bias must be [{},{}]; weight is {}, bias is {}", H, w,
        normed ? weight->value.shape.text() : "", normed ? bias->value.shape.text() : "");
  Tape& tape = *u.tape;
  Context& context = tape.context();
  const OpScope scope(context, "gate");
  if (normed) {
    tape.use(*weight);
    tape.use(*bias);
  }
  const DType statistics = u.value.dtype() == DType::f64 ? DType::f64 : DType::f32;
  // [B, T, H, w] with any strides whose first two axes collapse, as [N, H, w].
  const auto rows = [=](const View& view) {
    View out = view;
    out.shape = {N, H, w};
    out.strides = {view.stride(1), view.stride(2), 1};
    return out;
  };
  const int64_t groups = options.norm == GateNorm::per_head ? H : 1;
  const Tensor mean = normed ? Tensor::empty(context, {N, groups}, statistics) : Tensor{};
  const Tensor rstd = normed ? Tensor::empty(context, {N, groups}, statistics) : Tensor{};
  if (moments) *moments = {mean, rstd};
  // Run again, it leaves the statistics as they are.
  const auto forward = [=](const Tensor& u_value, const Tensor& g_value) {
    Tensor out = Tensor::empty(u_value.context(), u_value.shape(), u_value.dtype());
    launch(u_value.context(), GateForward{.out = rows(out.view()),
                                          .mean = mean.view(),
                                          .rstd = rstd.view(),
                                          .u = rows(u_value.view()),
                                          .g = rows(g_value.view()),
                                          .weight = normed ? weight->value : View{},
                                          .bias = normed ? bias->value : View{},
                                          .offset = options.offset,
                                          .eps = options.eps,
                                          .activation = options.activation,
                                          .norm = options.norm});
    return out;
  };
  Var y = tape.output(forward(u.value, g.value),
                      [forward, u = u.activation(), g = g.activation()] { return forward(u.get(), g.get()); });
  if (!tape.recording()) return y;
  tape.record("gate", [=, u = u.activation(), g = g.activation(), u_id = u.id, g_id = g.id, id = y.id](Tape& t) {
    const Tensor dy = t.take(id);
    t.write(u_id, [&](const View& du) {
      t.write(g_id, [&](const View& dg) {
        GateBackward kernel{.u_grad = rows(du),
                            .g_grad = rows(dg),
                            .weight_grad = {},
                            .bias_grad = {},
                            .partials = {},
                            .out_grad = rows(dy.view()),
                            .u = rows(u.view()),
                            .g = rows(g.view()),
                            .mean = mean.view(),
                            .rstd = rstd.view(),
                            .weight = {},
                            .offset = options.offset,
                            .activation = options.activation,
                            .norm = options.norm};
        if (!normed) return launch(t.context(), kernel);
        const Tensor partials = Tensor::empty(t.context(), {kNormPartials, 2, H * w}, weight->grad.dtype);
        kernel.partials = partials.view();
        kernel.weight_grad = weight->grad;
        kernel.bias_grad = bias->grad;
        kernel.weight = weight->value;
        kernel.accumulate = weight->accumulate();
        bias->accumulate();
        launch(t.context(), kernel);
        weight->end_use();
        bias->end_use();
      });
    });
  });
  return y;
}

}  // namespace egmla::ops

#include "kernels/norm.h"

#include "kernels/elementwise.h"
#include "ops/ops.h"

namespace egmla::ops {
namespace {

DType statistics_dtype(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

void check_norm(const Var& x, const Parameter& weight, const Parameter* bias) {
  const char* op = bias ? "layer_norm" : "rms_norm";
  check(weight.value.shape == Shape{x.shape().back()}, "{}: weight must be [C]; x is {}, weight is {}", op,
        x.shape().text(), weight.value.shape.text());
  check(!bias || bias->value.shape == weight.value.shape, "{}: bias must be [C]; x is {}, bias is {}", op,
        x.shape().text(), bias ? bias->value.shape.text() : "");
}

struct Statistics {
  Tensor mean, rstd;
};

// Runs the forward kernel; `residual` and `sum` are undefined without a residual.
Statistics forward(const Tensor& out, const Tensor& x, const View& residual, const Tensor& sum, Parameter& weight,
                   Parameter* bias, double eps) {
  Context& context = x.context();
  const int64_t rows = x.shape().elements() / std::max<int64_t>(x.shape().back(), 1);
  Statistics saved{{}, Tensor::empty(context, {rows}, statistics_dtype(x.dtype()))};
  const View sum_view = sum.defined() ? sum.view() : View{};
  if (!bias) {
    launch(context, RmsNormForward{.out = out.view(),
                                   .rstd = saved.rstd.view(),
                                   .residual_out = sum_view,
                                   .x = x.view(),
                                   .residual = residual,
                                   .weight = weight.value,
                                   .eps = eps});
    return saved;
  }
  saved.mean = Tensor::empty(context, {rows}, statistics_dtype(x.dtype()));
  launch(context, LayerNormForward{.out = out.view(),
                                   .mean = saved.mean.view(),
                                   .rstd = saved.rstd.view(),
                                   .residual_out = sum_view,
                                   .x = x.view(),
                                   .residual = residual,
                                   .weight = weight.value,
                                   .bias = bias->value,
                                   .eps = eps});
  return saved;
}

// The norm of the sum as forward() has left it: the sum is rounded before it is normalised, so the bits are the same.
Activation::Rebuild norm_again(const Activation& sum, Parameter& weight, Parameter* bias, double eps) {
  return [=, w = &weight] {
    const Tensor& x = sum.get();
    Tensor out = Tensor::empty(x.context(), x.shape(), x.dtype());
    forward(out, x, View{}, Tensor{}, *w, bias, eps);
    return out;
  };
}

// The sum of an addend that is kept, or cheap, and one that can be computed again; nothing where that one is kept.
Activation::Rebuild sum_again(const Var& x, const Var& delta) {
  if (!delta.again.defined()) return {};
  return [x = x.activation(), delta = delta.again] {
    Tensor out = Tensor::empty(x.get().context(), x.get().shape(), x.get().dtype());
    launch(out.context(), Add{.out = out.view(), .a = x.view(), .b = delta.view()});
    return out;
  };
}

// dx = norm'(dy) + residual_grad, at x.
void backward(Context& context, const View& dx, const Tensor& x, const Statistics& saved, const View& dy,
              const View& residual_grad, Parameter& weight, Parameter* bias) {
  const int64_t C = x.shape().back();
  if (!bias) {
    const Tensor partials = Tensor::empty(context, {kNormPartials, C}, weight.grad.dtype);
    launch(context, RmsNormBackward{.x_grad = dx,
                                    .weight_grad = weight.grad,
                                    .partials = partials.view(),
                                    .out_grad = dy,
                                    .residual_grad = residual_grad,
                                    .x = x.view(),
                                    .rstd = saved.rstd.view(),
                                    .weight = weight.value,
                                    .accumulate = weight.accumulate()});
    return weight.end_use();
  }
  const Tensor partials = Tensor::empty(context, {kNormPartials, 2, C}, weight.grad.dtype);
  bias->accumulate();
  launch(context, LayerNormBackward{.x_grad = dx,
                                    .weight_grad = weight.grad,
                                    .bias_grad = bias->grad,
                                    .partials = partials.view(),
                                    .out_grad = dy,
                                    .residual_grad = residual_grad,
                                    .x = x.view(),
                                    .mean = saved.mean.view(),
                                    .rstd = saved.rstd.view(),
                                    .weight = weight.value,
                                    .accumulate = weight.accumulate()});
  weight.end_use();
  bias->end_use();
}

void use(Tape& tape, Parameter& weight, Parameter* bias) {
  tape.use(weight);
  if (bias) tape.use(*bias);
}

}  // namespace

Var norm(const Var& x, Parameter& weight, Parameter* bias, double eps) {
  check_norm(x, weight, bias);
  Tape& tape = *x.tape;
  const OpScope scope(tape.context(), bias ? "layer_norm" : "rms_norm");
  use(tape, weight, bias);
  Tensor out = Tensor::empty(tape.context(), x.shape(), x.value.dtype());
  const Statistics saved = forward(out, x.value, View{}, Tensor{}, weight, bias, eps);
  const Activation kept = x.activation();
  Var y = tape.output(out, norm_again(kept, weight, bias, eps));
  if (tape.recording()) {
    tape.record(bias ? "layer_norm" : "rms_norm", [kept, saved, w = &weight, bias, x_id = x.id, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      const auto run = [&](const View& dx) {
        backward(t.context(), dx, kept.get(), saved, dy.view(), View{}, *w, bias);
      };
      if (x_id != kNoGrad) return t.write(x_id, run);
      const Tensor unused = Tensor::empty(t.context(), dy.shape(), dy.dtype());
      run(unused.view());
    });
  }
  return y;
}

std::pair<Var, Var> add_norm(const Var& x, const Var& delta, Parameter& weight, Parameter* bias, double eps) {
  check_norm(x, weight, bias);
  check(x.shape() == delta.shape(), "add_norm: shapes must agree; x is {}, delta is {}", x.shape().text(),
        delta.shape().text());
  Tape& tape = *x.tape;
  const OpScope scope(tape.context(), bias ? "add_layer_norm" : "add_rms_norm");
  use(tape, weight, bias);
  Tensor sum = Tensor::empty(tape.context(), x.shape(), x.value.dtype());
  Tensor out = Tensor::empty(tape.context(), x.shape(), x.value.dtype());
  const Statistics saved = forward(out, x.value, delta.view(), sum, weight, bias, eps);
  Var r = tape.output(sum, sum_again(x, delta));
  const Activation kept = r.activation();
  Var y = tape.output(out, norm_again(kept, weight, bias, eps));
  if (tape.recording()) {
    tape.record(bias ? "add_layer_norm" : "add_rms_norm", [kept, saved, w = &weight, bias, x_id = x.id,
                                                           delta_id = delta.id, r_id = r.id, id = y.id](Tape& t) {
      const Tensor dy = t.take(id);
      const Tensor dr = t.has(r_id) ? t.take(r_id) : Tensor{};
      // The sum's gradient overwrites dy; both summands share it.
      backward(t.context(), dy.view(), kept.get(), saved, dy.view(), dr.defined() ? dr.view() : View{}, *w, bias);
      t.give(x_id, dy);
      t.give(delta_id, dy);
    });
  }
  return {r, y};
}

}  // namespace egmla::ops

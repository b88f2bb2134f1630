#include "kernels/attention.h"

#include <cmath>

#include "kernels/rope.h"
#include "ops/ops.h"

namespace egmla::ops {

RopeTable make_rope_table(Context& context, int64_t positions, int64_t width, double theta, bool interleave,
                          DType dtype) {
  check(width % 2 == 0, "rope: the rotated width must be even, found {}", width);
  const int64_t half = width / 2;
  std::vector<double> cos(static_cast<size_t>(positions * half)), sin(cos.size());
  for (int64_t t = 0; t < positions; ++t) {
    for (int64_t p = 0; p < half; ++p) {
      const double angle =
          static_cast<double>(t) * std::pow(theta, -2.0 * static_cast<double>(p) / static_cast<double>(width));
      cos[static_cast<size_t>(t * half + p)] = std::cos(angle);
      sin[static_cast<size_t>(t * half + p)] = std::sin(angle);
    }
  }
  if (dtype == DType::f64)
    return {Tensor::from(context, {positions, half}, cos), Tensor::from(context, {positions, half}, sin), interleave};
  const std::vector<float> cos32(cos.begin(), cos.end()), sin32(sin.begin(), sin.end());
  return {Tensor::from(context, {positions, half}, cos32), Tensor::from(context, {positions, half}, sin32), interleave};
}

Var rope_in_place(const Var& x, int64_t begin, const RopeTable& table, const Tensor& positions) {
  const int64_t width = 2 * table.cos.shape()[1];
  check(x.shape().rank() == 4 && begin >= 0 && begin + width <= x.shape()[3],
        "rope: x must be [B,T,H,d] with d >= {}; x is {}", begin + width, x.shape().text());
  check(positions.defined() || x.shape()[1] <= table.cos.shape()[0], "rope: {} positions asked of a table of {}",
        x.shape()[1], table.cos.shape()[0]);
  check(!x.again.defined(), "rope: x is computed again in backward; only a value that is kept can change in place");
  const auto kernel = [=](const View& view, bool inverse) {
    return Rope{.x = view.columns(begin, width),
                .cos = table.cos.view(),
                .sin = table.sin.view(),
                .positions = positions.defined() ? positions.view() : View{},
                .interleave = table.interleave,
                .inverse = inverse};
  };
  launch(x.context(), kernel(x.view(), false));
  if (x.tape->recording() && x.id != kNoGrad) {
    x.tape->record("rope", [kernel, id = x.id](Tape& t) {
      if (t.has(id)) launch(t.context(), kernel(t.peek(id).view(), true));
    });
  }
  return x;
}

Var attention(const Var& q, const Var& k, const Var* k_rope, const Var& v, const Tensor& document_start, double scale) {
  const Shape qs = q.shape(), ks = k.shape(), vs = v.shape();
  const int64_t dr = k_rope ? k_rope->shape()[3] : 0;
  check(qs.rank() == 4 && ks.rank() == 4 && vs.rank() == 4 && qs[3] == ks[3] + dr && ks[1] == vs[1] && ks[2] == vs[2] &&
            qs[2] % ks[2] == 0 && qs[1] <= ks[1] && qs[0] == ks[0] && qs[0] == vs[0],
        "attention: q must be [B,Tq,H,dk+dr], k [B,Tk,Hkv,dk], v [B,Tk,Hkv,dv] with Hkv dividing H and Tq <= Tk; q is "
        "{}, k is {}, "
        "v is {}, dr is {}",
        qs.text(), ks.text(), vs.text(), dr);
  check(k.id == kNoGrad || (k.id != v.id && k.id != q.id), "attention: q, k and v must be variables of their own");
  Tape& tape = *q.tape;
  const OpScope scope(tape.context(), "attention");
  const DType statistics = q.value.dtype() == DType::f64 ? DType::f64 : DType::f32;
  const int64_t B = qs[0], T = qs[1], H = qs[2], dv = vs[3];
  Tensor out = Tensor::empty(tape.context(), {B, T, H * dv}, q.value.dtype());
  Tensor lse = Tensor::empty(tape.context(), {B, H, T}, statistics);
  const View documents = document_start.defined() ? document_start.view() : View{};
  launch(tape.context(), AttentionForward{.out = out.view().split_heads(H),
                                          .lse = lse.view(),
                                          .q = q.view(),
                                          .k = k.view(),
                                          .k_rope = k_rope ? k_rope->view() : View{},
                                          .v = v.view(),
                                          .document_start = documents,
                                          .scale = scale});
  Var y = tape.output(out);
  if (!tape.recording()) return y;
  check(qs[1] == ks[1], "attention: gradients need Tq == Tk; q is {}, k is {}", qs.text(), ks.text());
  const VarId rope_id = k_rope ? k_rope->id : kNoGrad;
  tape.record("attention", [=, q = q.activation(), k = k.activation(), v = v.activation(),
                            rope = k_rope ? k_rope->activation() : Activation{}, q_id = q.id, k_id = k.id, v_id = v.id,
                            id = y.id](Tape& t) {
    const Tensor dy = t.take(id);
    const Tensor delta = Tensor::empty(t.context(), {B, H, T}, statistics);
    t.write(q_id, [&](const View& dq) {
      t.write(k_id, [&](const View& dk) {
        t.write(v_id, [&](const View& dv_view) {
          const auto finish = [&](const View& drope) {
            AttentionBackward kernel{.q_grad = dq,
                                     .k_grad = dk,
                                     .k_rope_grad = drope,
                                     .v_grad = dv_view,
                                     .delta = delta.view(),
                                     .workspace = {},
                                     .out_grad = dy.view().split_heads(H),
                                     .out = out.view().split_heads(H),
                                     .lse = lse.view(),
                                     .q = q.view(),
                                     .k = k.view(),
                                     .k_rope = rope.defined() ? rope.view() : View{},
                                     .v = v.view(),
                                     .document_start = documents,
                                     .scale = scale};
            const int64_t size =
                t.context().visit([&](auto& backend) { return attention_backward_workspace(backend, kernel); });
            const Tensor workspace = size ? Tensor::empty(t.context(), {size}, statistics) : Tensor{};
            if (size) kernel.workspace = workspace.view();
            launch(t.context(), kernel);
          };
          if (rope.defined()) {
            t.write(rope_id, finish);
          } else {
            finish(View{});
          }
        });
      });
    });
    (void)document_start;  // keeps the starts alive until here
  });
  return y;
}

}  // namespace egmla::ops

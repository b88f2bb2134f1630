#include "nn/decode_ops.h"

#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"

namespace egmla {
namespace {

// The normalised rows of an input, written down.
View prepare(DecodeState& state, const std::string& name, const DecodeInput& input) {
  const int64_t B = state.sequences(), K = input.x.size(1);
  View x = input.x;
  if (input.ids.defined()) {
    x = input.sum.defined() ? input.sum : state.buffer(name + ".rows", {B, K});
    launch(state, EmbeddingForward{.out = x, .table = input.x, .ids = input.ids});
  }
  if (!input.norm_weight.defined()) return x;
  const View out = state.buffer(name + ".normed", {B, K});
  const View rstd = state.buffer("rstd", {B}, state.statistics());
  const View sum = input.delta.defined() ? input.sum : View{};
  if (!input.norm_bias.defined()) {
    launch(state, RmsNormForward{.out = out,
                                 .rstd = rstd,
                                 .residual_out = sum,
                                 .x = x,
                                 .residual = input.delta,
                                 .weight = input.norm_weight,
                                 .eps = input.eps});
    return out;
  }
  launch(state, LayerNormForward{.out = out,
                                 .mean = state.buffer("mean", {B}, state.statistics()),
                                 .rstd = rstd,
                                 .residual_out = sum,
                                 .x = x,
                                 .residual = input.delta,
                                 .weight = input.norm_weight,
                                 .bias = input.norm_bias,
                                 .eps = input.eps});
  return out;
}

}  // namespace

void decode_project(DecodeState& state, const std::string& name, const DecodeInput& input, const Parameter& weight,
                    const View& out, bool swiglu) {
  Context& context = state.context();
  if (context.is_cpu() || state.sequences() <= kDecodeLinearRows) {
    state.add(DecodeLinear{.out = out,
                           .sum = input.sum,
                           .x = input.x,
                           .ids = input.ids,
                           .delta = input.delta,
                           .norm_weight = input.norm_weight,
                           .norm_bias = input.norm_bias,
                           .weight = weight.value,
                           .eps = input.eps,
                           .swiglu = swiglu});
    return;
  }
  const View x = prepare(state, name, input);
  const View y = swiglu ? state.buffer(name + ".gate_up", {state.sequences(), weight.value.size(0)}) : out;
  launch(state, Matmul{.out = y, .a = x, .b = weight.value, .transpose_b = true});
  if (swiglu) launch(state, SwigluForward{.out = out, .gate_up = y});
}

void decode_attend(DecodeState& state, const DecodeAppend& append, const std::optional<HeadLinear>& absorb,
                   const View& q, const View& k, const View& v, const View& out, double scale,
                   const std::optional<HeadLinear>& expand) {
  // As the CUDA kernel cuts its work: 16 query heads of a key head, tiles of 64 tokens, two blocks a multiprocessor.
  constexpr int64_t kHeads = 16, kTile = 64, kBlocks = 2;
  constexpr double kOverhead = 2;
  Context& context = state.context();
  const int64_t B = q.size(0), H = q.size(1), kv_heads = k.size(2), dv = v.size(3);
  const int64_t tasks = B * kv_heads * ((H / kv_heads + kHeads - 1) / kHeads);
  const auto shape = [&](int64_t splits) { return Shape{B, H, splits, dv + 2}; };
  const auto attend = [&](const View& partials) {
    return DecodeAttend{
        .append = append,
        .absorb = absorb,
        .attention =
            {.partials = partials, .q = q, .k = k, .v = v, .positions = state.positions.view(), .scale = scale},
        .combine = {.out = out, .partials = partials},
        .expand = expand};
  };
  int64_t splits = decode_splits(context, tasks, state.capacity(), kTile, kOverhead, kBlocks);
  const int64_t in_chain = decode_splits_of_one(context, H);
  if (chain_takes(context, attend(make_view(nullptr, shape(in_chain), state.statistics())))) splits = in_chain;
  state.add(attend(state.buffer("partials", shape(splits), state.statistics())));
}

}  // namespace egmla

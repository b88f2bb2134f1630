// EG-MLA's gate in a decoding step (kernels/decode_gated.h).
#include "kernels/decode_attention.h"
#include "kernels/layout.h"
#include "kernels/matmul.h"
#include "nn/attention_egmla.h"

namespace egmla {
namespace {

// [H w, K] seen as [H, w, K].
View rows_by_head(const View& weight, int64_t heads) {
  return make_view(weight.data, {heads, weight.size(0) / heads, weight.size(1)}, weight.dtype);
}

}  // namespace

void Gate::step_latent(DecodeState& state, const View& c, const View& out) const {
  const int64_t B = c.size(0), dc = c.size(1);
  const View g = state.buffer("gate.g", {B, dc});
  decode_project(state, "gate", {.x = table_->value, .ids = state.tokens.view()}, *up_, g);
  const bool normed = norm_ != nullptr;
  const ops::GateOptions how = options();
  const auto one_head = [](const View& view) { return view.split_heads(1); };
  launch(state, GateForward{.out = one_head(out),
                            .mean = normed ? state.buffer("gate.mean", {B, 1}, state.statistics()) : View{},
                            .rstd = normed ? state.buffer("gate.rstd", {B, 1}, state.statistics()) : View{},
                            .u = one_head(c),
                            .g = one_head(g),
                            .weight = normed ? all_.weight->value : View{},
                            .bias = normed ? all_.bias->value : View{},
                            .offset = how.offset,
                            .eps = how.eps,
                            .activation = how.activation,
                            .norm = how.norm});
}

int64_t Gate::norms() const {
  if (in_latent() || config_.norm == GateNormType::none) return 0;
  return config_.norm == GateNormType::separate && config_.targets == GateTargets::kv ? 2 : 1;
}

Tensor Gate::fold(Context& context) const {
  const View &table = table_->value, &up = up_->value;
  const Tensor out = Tensor::empty(context, {table.size(0), up.size(0)}, up.dtype);
  launch(context, Matmul{.out = out.view(), .a = table, .b = up, .transpose_b = true});
  return out;
}

Gate::Gated Gate::gated(bool value) const {
  if (config_.targets == (value ? GateTargets::k : GateTargets::v)) return {};
  const bool both = config_.targets == GateTargets::kv;
  return {.begin = both && value ? nope_ : 0,
          .width = value ? value_ : nope_,
          .norm = value && norms() == 2 ? size_t{1} : size_t{0}};
}

GateSide Gate::side(const DecodeState& state, size_t layer, const Parameter& up, bool value) const {
  GateSide out{.up = rows_by_head(up.value, heads_).middle(value ? nope_ : 0, value ? value_ : nope_)};
  const Gated part = gated(value);
  if (part.width == 0) return out;
  if (state.tables.empty()) {
    out.gate = rows_by_head(up_->value, heads_).middle(part.begin, part.width);
  } else {
    out.table = state.tables[layer].view().split_heads(heads_).columns(part.begin, part.width);
  }
  if (norms() == 0) return out;
  out.mean = state.layers[layer].mean[part.norm].view();
  out.rstd = state.layers[layer].rstd[part.norm].view();
  const NormWeights& apart = value ? v_ : k_;
  const bool whole = apart.weight == nullptr;  // one norm weight per head, of which this side is a part
  out.weight = whole ? all_.weight->value.columns(part.begin, part.width) : apart.weight->value;
  out.bias = whole ? all_.bias->value.columns(part.begin, part.width) : apart.bias->value;
  return out;
}

View Gate::new_up(DecodeState& state, const Parameter& up) const {
  return state.buffer("gate.u", {state.sequences(), up.value.size(0)});
}

View Gate::new_gate(DecodeState& state) const {
  return state.buffer("gate.g", {state.sequences(), up_->value.size(0)});
}

void Gate::step_products(DecodeState& state, const DecodeInput& latent, const Parameter& up) const {
  if (norms() == 0) return;
  decode_project(state, "gate.u", latent, up, new_up(state, up));
  if (state.tables.empty())
    decode_project(state, "gate.g", {.x = table_->value, .ids = state.tokens.view()}, *up_, new_gate(state));
}

void Gate::step_statistics(DecodeState& state, size_t layer, const Parameter& up) const {
  if (norms() == 0) return;
  const View tokens = state.tokens.view(), u = new_up(state, up);
  const bool folded = !state.tables.empty();
  const View g = folded ? View{} : new_gate(state).split_heads(heads_);
  const View table = folded ? state.tables[layer].view().split_heads(heads_) : View{};
  const LayerCache& cache = state.layers[layer];
  const ops::GateOptions how = options();
  const auto launch_norm = [&](size_t norm, int64_t u_begin, int64_t g_begin, int64_t width) {
    launch(state, GateStatistics{.mean = cache.mean[norm].view(),
                                 .rstd = cache.rstd[norm].view(),
                                 .u = u.split_heads(heads_).columns(u_begin, width),
                                 .g = g.defined() ? g.columns(g_begin, width) : View{},
                                 .table = table.defined() ? table.columns(g_begin, width) : View{},
                                 .tokens = tokens,
                                 .positions = state.positions.view(),
                                 .offset = how.offset,
                                 .eps = how.eps,
                                 .activation = how.activation});
  };
  if (config_.targets == GateTargets::kv && norms() == 1) return launch_norm(0, 0, 0, nope_ + value_);
  for (const bool value : {false, true}) {
    const Gated part = gated(value);
    if (part.width > 0) launch_norm(part.norm, value ? nope_ : 0, part.begin, part.width);
  }
}

void Gate::step(DecodeState& state, size_t layer, const Parameter& up, const View& q, const View& out,
                double scale) const {
  Context& context = state.context();
  step_statistics(state, layer, up);
  // A block a head, one a multiprocessor; loading its weights costs about half a tile.
  constexpr double kOverhead = 0.5;
  const int64_t B = q.size(0), splits = decode_splits(context, B * heads_, state.capacity(), kGatedTile, kOverhead, 1);
  const View partials = state.buffer("partials", {B, heads_, splits, value_ + 2}, state.statistics());
  const ops::GateOptions how = options();
  launch(state,
         GatedDecodeAttention{.partials = partials,
                              .scores = state.buffer("scores", {B, heads_, state.capacity()}, state.statistics()),
                              .q = q,
                              .cache = state.layers[layer].rows.view(),
                              .ids = state.ids.view(),
                              .positions = state.positions.view(),
                              .embedding = table_->value,
                              .k = side(state, layer, up, false),
                              .v = side(state, layer, up, true),
                              .scale = scale,
                              .offset = how.offset,
                              .activation = how.activation});
  launch(state, DecodeCombine{.out = out, .partials = partials});
}

}  // namespace egmla

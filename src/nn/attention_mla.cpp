#include "nn/attention_mla.h"

#include <cmath>

#include "kernels/layout.h"
#include "kernels/norm.h"

namespace egmla {
namespace {

// DeepSeek-V3's inner norms use this eps whatever the model's is.
constexpr double kLatentNormEps = 1e-6;

}  // namespace

MlaAttention::MlaAttention(const ModelConfig& model, const std::string& path, ParameterStore& store,
                           std::unique_ptr<Gate> gate)
    : heads_(model.num_attention_heads),
      nope_(model.attention.qk_nope_head_dim),
      rope_width_(model.attention.qk_rope_head_dim),
      value_(model.attention.v_head_dim),
      latent_(model.attention.kv_lora_rank),
      query_latent_(model.attention.q_lora_rank.value_or(0)),
      gate_(std::move(gate)) {
  const int64_t D = model.hidden_size, H = heads_, query = H * (nope_ + rope_width_);
  const Init init{.std = model.initializer_range}, one{.constant = 1};
  const auto vector = ParameterGroup::vector;
  const NamedTensor kv_down{
      .path = path + "kv_a_proj_with_mqa.weight", .rows = latent_ + rope_width_, .columns = D, .init = init};
  if (query_latent_ > 0) {
    down_ = store.add({{.path = path + "q_a_proj.weight", .rows = query_latent_, .columns = D, .init = init}, kv_down});
    q_norm_ = store.add({{.path = path + "q_a_layernorm.weight", .rows = query_latent_, .init = one, .group = vector}});
    q_up_ = store.add({{.path = path + "q_b_proj.weight", .rows = query, .columns = query_latent_, .init = init}});
  } else {
    down_ = store.add({{.path = path + "q_proj.weight", .rows = query, .columns = D, .init = init}, kv_down});
  }
  c_norm_ = store.add({{.path = path + "kv_a_layernorm.weight", .rows = latent_, .init = one, .group = vector}});
  kv_up_ =
      store.add({{.path = path + "kv_b_proj.weight", .rows = H * (nope_ + value_), .columns = latent_, .init = init}});
  out_ = store.add(
      {{.path = path + "o_proj.weight", .rows = D, .columns = H * value_, .init = {.std = residual_std(model)}}});
}

double MlaAttention::attention_flops(int64_t T) const {
  return static_cast<double>(heads_ * T * (nope_ + rope_width_ + value_));
}

MlaAttention::Projected MlaAttention::project(const Var& x, const Batch& batch) {
  Tape& tape = *x.tape;
  const int64_t H = heads_, dc = latent_, dr = rope_width_, query = query_latent_ ? query_latent_ : H * (nope_ + dr);
  const auto by_head = [H](const View& view) { return view.split_heads(H); };
  const Var down = ops::linear(x, *down_);  // [B, T, q | c | k^R]
  const auto parts =
      tape.windows(down, {[=, factored = query_latent_ > 0](const View& view) {
                            const View q = view.columns(0, query);
                            return factored ? q : q.split_heads(H);
                          },
                          [=](const View& view) { return view.columns(query, dc); },
                          [=](const View& view) { return view.columns(query + dc, dr).split_heads(1); }});
  Projected out{parts[0], ops::norm(parts[1], *c_norm_, nullptr, kLatentNormEps), parts[2]};
  if (query_latent_) {
    const Var q = ops::linear(ops::norm(parts[0], *q_norm_, nullptr, kLatentNormEps), *q_up_);
    out.q = tape.windows(q, {by_head}).front();
  }
  if (gate_ && gate_->in_latent()) out.c = gate_->apply(out.c, batch.tokens);
  out.q = ops::rope_in_place(out.q, nope_, rope_, batch.positions);
  out.k_rope = ops::rope_in_place(out.k_rope, 0, rope_, batch.positions);
  return out;
}

void MlaAttention::through_cache(Projected& newest, const Batch& batch, LayerCache& cache) const {
  Tape& tape = *newest.q.tape;
  const int64_t B = batch.rows(), T = batch.length(), total = batch.past + T;
  const View rows = cache.rows.view().middle(batch.past, T), all = cache.rows.view().middle(0, total);
  launch(tape.context(), Copy{.out = rows.columns(0, latent_), .x = newest.c.view()});
  launch(tape.context(), Copy{.out = rows.columns(latent_, rope_width_).split_heads(1), .x = newest.k_rope.view()});
  const Tensor c = Tensor::empty(tape.context(), {B, total, latent_}, cache.rows.dtype());
  launch(tape.context(), Copy{.out = c.view(), .x = all.columns(0, latent_)});
  newest.c = tape.constant(c);
  newest.k_rope = tape.constant(cache.rows.with_view(all.columns(latent_, rope_width_).split_heads(1)));
}

Var MlaAttention::forward(const Var& x, const Batch& batch, LayerCache* cache) {
  Projected p = project(x, batch);
  if (cache) through_cache(p, batch, *cache);
  const Var kv = ops::small_linear(p.c, *kv_up_);  // [B, T, H (d_n | d_v)]
  const auto [k, v] = rebuilds() ? gate_->apply(kv, heads_, cache ? batch.all_tokens : batch.tokens, cache)
                                 : split_key_value(kv, heads_, nope_, value_);
  return ops::linear(ops::attention(p.q, k, &p.k_rope, v, batch.document_start, scale()), *out_);
}

double MlaAttention::decode_flops(bool folded) const {
  if (!rebuilds()) return static_cast<double>(2 * heads_ * (2 * latent_ + rope_width_));
  const int64_t up = latent_ * heads_ * (nope_ + value_), gate = folded ? 0 : gate_->features() * gate_->embed_dim();
  return static_cast<double>(2 * (up + gate + heads_ * (nope_ + rope_width_ + value_)));
}

double MlaAttention::scale() const {
  return 1.0 / std::sqrt(static_cast<double>(nope_ + rope_width_));
}

Attention::CachedStatistics MlaAttention::cached_statistics() const {
  return rebuilds() ? CachedStatistics{.tensors = gate_->norms(), .groups = gate_->groups()} : CachedStatistics{};
}

Tensor MlaAttention::fold_gate(Context& context) const {
  return rebuilds() ? gate_->fold(context) : Tensor{};
}

View MlaAttention::step(const DecodeInput& in, DecodeState& state, size_t layer) {
  const int64_t B = state.sequences(), H = heads_, dc = latent_, dr = rope_width_, dn = nope_;
  const int64_t query = query_latent_ ? query_latent_ : H * (dn + dr);
  const View down = state.buffer("down", {B, query + dc + dr}), newest = down.columns(query, dc + dr);
  decode_project(state, "down", in, *down_, down);
  View q = down.columns(0, query);
  if (query_latent_) {
    const View up = state.buffer("q", {B, H * (dn + dr)});
    decode_project(state, "q", {.x = q, .norm_weight = q_norm_->value, .eps = kLatentNormEps}, *q_up_, up);
    q = up;
  }
  q = q.split_heads(H);
  const DecodeInput latent{.x = newest.columns(0, dc), .norm_weight = c_norm_->value, .eps = kLatentNormEps};
  const bool gated_latent = gate_ && gate_->in_latent();
  if (gated_latent) {
    const View c = state.buffer("latent", {B, dc});
    launch(state, RmsNormForward{.out = c,
                                 .rstd = state.buffer("rstd", {B}, state.statistics()),
                                 .residual_out = {},
                                 .x = latent.x,
                                 .residual = {},
                                 .weight = latent.norm_weight,
                                 .eps = latent.eps});
    gate_->step_latent(state, c, latent.x);
  }
  if (rebuilds()) gate_->step_products(state, latent, *kv_up_);
  const View q_latent = rebuilds() ? View{} : state.buffer("q_latent", {B, H, dc + dr});
  const View cache = state.layers[layer].rows.view(), mixed = state.buffer("mixed", {B, H, value_});
  const DecodeAppend append{.cache = cache,
                            .q_out = rebuilds() ? q.columns(dn, dr) : q_latent.columns(dc, dr),
                            .q = q.columns(dn, dr),
                            .rows = newest,
                            .norm_weight = gated_latent ? View{} : latent.norm_weight,
                            .cos = rope_.cos.view(),
                            .sin = rope_.sin.view(),
                            .positions = state.positions.view(),
                            .key_begin = dc,
                            .key_heads = 1,
                            .eps = kLatentNormEps,
                            .interleave = rope_.interleave};
  if (rebuilds()) {
    launch(state, append);
    gate_->step(state, layer, *kv_up_, q, mixed, scale());
  } else {
    step_absorbed(state, append, q, q_latent, mixed);
  }
  const View out = state.buffer("attention", {B, in.x.size(1)});
  decode_project(state, "attention", {.x = make_view(mixed.data, {B, H * value_}, mixed.dtype)}, *out_, out);
  return out;
}

void MlaAttention::step_absorbed(DecodeState& state, const DecodeAppend& append, const View& q, const View& q_latent,
                                 const View& out) const {
  const int64_t B = state.sequences(), H = heads_, dc = latent_;
  const View up = make_view(kv_up_->value.data, {H, nope_ + value_, dc}, kv_up_->value.dtype);
  const View mixed = state.buffer("mixed_latent", {B, H, dc}), rows = append.cache.split_heads(1);
  const HeadLinear absorb{
      .out = q_latent.columns(0, dc), .x = q.columns(0, nope_), .weight = up.middle(0, nope_), .transpose = true};
  decode_attend(state, append, absorb, q_latent, rows, rows.columns(0, dc), mixed, scale(),
                HeadLinear{.out = out, .x = mixed, .weight = up.middle(nope_, value_)});
}

}  // namespace egmla

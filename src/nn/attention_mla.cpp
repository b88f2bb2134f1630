#include "nn/attention_mla.h"

#include <cmath>

#include "kernels/layout.h"

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
  const View rows = cache.data.view().middle(batch.past, T), all = cache.data.view().middle(0, total);
  launch(tape.context(), Copy{.out = rows.columns(0, latent_), .x = newest.c.view()});
  launch(tape.context(), Copy{.out = rows.columns(latent_, rope_width_).split_heads(1), .x = newest.k_rope.view()});
  const Tensor c = Tensor::empty(tape.context(), {B, total, latent_}, cache.data.dtype());
  launch(tape.context(), Copy{.out = c.view(), .x = all.columns(0, latent_)});
  newest.c = tape.constant(c);
  newest.k_rope = tape.constant(cache.data.with_view(all.columns(latent_, rope_width_).split_heads(1)));
}

Var MlaAttention::forward(const Var& x, const Batch& batch, LayerCache* cache) {
  Projected p = project(x, batch);
  if (cache) through_cache(p, batch, *cache);
  const Var kv = ops::small_linear(p.c, *kv_up_);  // [B, T, H (d_n | d_v)]
  const auto [k, v] = gate_ && !gate_->in_latent() ? gate_->apply(kv, heads_, cache ? batch.all_tokens : batch.tokens)
                                                   : split_key_value(kv, heads_, nope_, value_);
  const double scale = 1.0 / std::sqrt(static_cast<double>(nope_ + rope_width_));
  return ops::linear(ops::attention(p.q, k, &p.k_rope, v, batch.document_start, scale), *out_);
}

}  // namespace egmla

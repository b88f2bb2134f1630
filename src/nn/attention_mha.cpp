#include "nn/attention_mha.h"

#include <cmath>

#include "kernels/layout.h"

namespace egmla {

MhaAttention::MhaAttention(const ModelConfig& model, const std::string& path, ParameterStore& store)
    : heads_(model.num_attention_heads), kv_heads_(model.key_value_heads()), width_(model.mha_head_dim()) {
  const int64_t D = model.hidden_size;
  const Init init{.std = model.initializer_range};
  qkv_ = store.add({{.path = path + "q_proj.weight", .rows = heads_ * width_, .columns = D, .init = init},
                    {.path = path + "k_proj.weight", .rows = kv_heads_ * width_, .columns = D, .init = init},
                    {.path = path + "v_proj.weight", .rows = kv_heads_ * width_, .columns = D, .init = init}});
  out_ = store.add(
      {{.path = path + "o_proj.weight", .rows = D, .columns = heads_ * width_, .init = {.std = residual_std(model)}}});
}

double MhaAttention::attention_flops(int64_t T) const {
  return static_cast<double>(heads_ * T * 2 * width_);
}

Var MhaAttention::forward(const Var& x, const Batch& batch, LayerCache* cache) {
  Tape& tape = *x.tape;
  const int64_t H = heads_, G = kv_heads_, d = width_;
  const Var qkv = ops::linear(x, *qkv_);  // [B, T, q | k | v]
  const auto heads = [d](int64_t first, int64_t count) {
    return [=](const View& view) { return view.columns(first * d, count * d).split_heads(count); };
  };
  const auto parts = tape.windows(qkv, {heads(0, H), heads(H, G), heads(H + G, G)});
  const Var q = ops::rope_in_place(parts[0], 0, rope_, batch.positions);
  Var k = ops::rope_in_place(parts[1], 0, rope_, batch.positions), v = parts[2];
  if (cache) {
    const int64_t T = batch.length(), total = batch.past + T;
    launch(tape.context(),
           Copy{.out = cache->rows.view().middle(batch.past, T), .x = qkv.view().columns(H * d, 2 * G * d)});
    const View rows = cache->rows.view().middle(0, total);
    k = tape.constant(cache->rows.with_view(rows.columns(0, G * d).split_heads(G)));
    v = tape.constant(cache->rows.with_view(rows.columns(G * d, G * d).split_heads(G)));
  }
  const Var o = ops::attention(q, k, nullptr, v, batch.document_start, 1.0 / std::sqrt(static_cast<double>(d)));
  return ops::small_linear(o,
                           *out_);  // keys and values have no latent to come from: this is what memory can be saved on
}

View MhaAttention::step(const DecodeInput& in, DecodeState& state, size_t layer) {
  const int64_t B = state.sequences(), H = heads_, G = kv_heads_, d = width_;
  const View qkv = state.buffer("qkv", {B, (H + 2 * G) * d});
  decode_project(state, "qkv", in, *qkv_, qkv);
  const View q = qkv.columns(0, H * d).split_heads(H), cache = state.layers[layer].rows.view();
  const DecodeAppend append{.cache = cache,
                            .q_out = q,
                            .q = q,
                            .rows = qkv.columns(H * d, 2 * G * d),
                            .cos = rope_.cos.view(),
                            .sin = rope_.sin.view(),
                            .positions = state.positions.view(),
                            .key_begin = 0,
                            .key_heads = G,
                            .interleave = rope_.interleave};
  const View mixed = state.buffer("mixed", {B, H, d});
  decode_attend(state, append, {}, q, cache.columns(0, G * d).split_heads(G),
                cache.columns(G * d, G * d).split_heads(G), mixed, 1.0 / std::sqrt(static_cast<double>(d)), {});
  const View out = state.buffer("attention", {B, in.x.size(1)});
  decode_project(state, "attention", {.x = make_view(mixed.data, {B, H * d}, mixed.dtype)}, *out_, out);
  return out;
}

}  // namespace egmla

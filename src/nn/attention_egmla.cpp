#include "nn/attention_egmla.h"

#include "kernels/layout.h"

namespace egmla {
namespace {

// Far below the variance of u * g at initialisation (about 1e-3 with tables at N(0, 1)), so that the norm normalises.
constexpr double kGateNormEps = 1e-6;

using Select = std::function<View(const View&)>;

// [features] seen as [heads, features / heads], then columns [begin, begin + width) of each head.
Select head_columns(int64_t heads, int64_t begin, int64_t width) {
  return [=](const View& view) { return view.split_heads(heads).columns(begin, width); };
}

}  // namespace

std::unique_ptr<Gate> make_gate(const ModelConfig& model, int64_t layer, ParameterStore& store) {
  return model.gated() ? std::make_unique<Gate>(model, layer, store) : nullptr;
}

std::pair<Var, Var> split_key_value(const Var& kv, int64_t heads, int64_t nope, int64_t value) {
  const auto parts = kv.tape->windows(kv, {head_columns(heads, 0, nope), head_columns(heads, nope, value)});
  return {parts[0], parts[1]};
}

Gate::Gate(const ModelConfig& model, int64_t layer, ParameterStore& store)
    : config_(model.attention.gate),
      heads_(model.num_attention_heads),
      nope_(model.attention.qk_nope_head_dim),
      value_(model.attention.v_head_dim) {
  const auto name = [](int64_t l, const char* what) { return fmt::format("model.layers.{}.self_attn.{}", l, what); };
  const int64_t H = model.num_attention_heads, group_first = layer / config_.share_layers * config_.share_layers;
  const bool has_k = config_.targets != GateTargets::v, has_v = config_.targets != GateTargets::k;
  const int64_t per_head = (has_k ? nope_ : 0) + (has_v ? value_ : 0);
  const int64_t features = in_latent() ? model.attention.kv_lora_rank : H * per_head;
  features_ = features;

  const std::string table = name(group_first, "gate_embed.weight");
  table_ = store.find(table);
  if (!table_)
    table_ = store.add({{.path = table,
                         .rows = model.vocab_size,
                         .columns = config_.embed_dim,
                         .init = {.std = config_.init_std},
                         .group = ParameterGroup::gate_table}});
  up_ = store.add({{.path = name(layer, "gate_proj.weight"),
                    .rows = features,
                    .columns = config_.embed_dim,
                    .init = {.std = model.initializer_range}}});
  if (config_.norm == GateNormType::none) return;
  const auto vector = ParameterGroup::vector;
  norm_ = store.add(
      {{.path = name(layer, "gate_norm.weight"), .rows = features, .init = {.constant = 1}, .group = vector}});
  norm_bias_ = store.add({{.path = name(layer, "gate_norm.bias"), .rows = features, .group = vector}});
  if (config_.norm == GateNormType::separate && has_k && has_v) {
    k_ = window(head_columns(H, 0, nope_), store);
    v_ = window(head_columns(H, nope_, value_), store);
  } else {
    const int64_t rows = in_latent() ? 1 : H;
    all_ = window(head_columns(rows, 0, features / rows), store);
  }
}

Gate::NormWeights Gate::window(const Select& select, ParameterStore& store) {
  return {store.window(norm_, select), store.window(norm_bias_, select)};
}

ops::GateOptions Gate::options() const {
  ops::GateOptions options{.offset = config_.offset, .eps = kGateNormEps};
  switch (config_.activation) {
    case GateActivationType::none:
      options.activation = GateActivation::none;
      break;
    case GateActivationType::sigmoid:
      options.activation = GateActivation::sigmoid;
      break;
    case GateActivationType::tanh:
      options.activation = GateActivation::tanh;
      break;
    case GateActivationType::silu:
      options.activation = GateActivation::silu;
      break;
  }
  switch (config_.norm) {
    case GateNormType::none:
      options.norm = GateNorm::none;
      break;
    case GateNormType::per_head:
      options.norm = GateNorm::per_head;
      break;
    case GateNormType::joint:
    case GateNormType::separate:
      options.norm = GateNorm::joint;
      break;  // separate: joint over K's window and over V's
  }
  return options;
}

Var Gate::modulate(const Var& u, const Var& g, const NormWeights& norm, LayerCache* cache, size_t number) const {
  ops::GateMoments moments;
  const Var out = ops::gate(u, g, norm.weight, norm.bias, options(), &moments);
  if (!cache || !moments.mean.defined()) return out;
  const int64_t B = u.shape()[0], T = u.shape()[1];
  const auto store = [&](const Tensor& target, const Tensor& values) {
    launch(u.context(), Copy{.out = target.view().middle(0, T), .x = values.reshaped({B, T, groups()}).view()});
  };
  store(cache->mean[number], moments.mean);
  store(cache->rstd[number], moments.rstd);
  return out;
}

Var Gate::apply(const Var& c, const ops::TokenIndex& tokens) {
  Tape& tape = *c.tape;
  const auto one_head = [](const View& view) { return view.split_heads(1); };
  const Var g = ops::small_linear(ops::embedding(tape, tokens, *table_), *up_);
  const Var gated = modulate(tape.windows(c, {one_head}).front(), tape.windows(g, {one_head}).front(), all_);
  return tape
      .windows(gated, {[](const View& view) {
                 View out = view;
                 out.shape = {view.size(0), view.size(1), view.size(3)};
                 out.strides = {view.stride(0), view.stride(1), 1};
                 return out;
               }})
      .front();
}

std::pair<Var, Var> Gate::apply(const Var& kv, int64_t heads, const ops::TokenIndex& tokens, LayerCache* cache) {
  Tape& tape = *kv.tape;
  const Var g = ops::small_linear(ops::embedding(tape, tokens, *table_), *up_);
  const auto by_head = [heads](const View& view) { return view.split_heads(heads); };
  if (config_.targets == GateTargets::kv && config_.norm != GateNormType::separate) {
    const Var gated = modulate(tape.windows(kv, {by_head}).front(), tape.windows(g, {by_head}).front(), all_, cache);
    const auto columns = [](int64_t begin, int64_t width) {
      return [=](const View& view) { return view.columns(begin, width); };
    };
    const auto parts = tape.windows(gated, {columns(0, nope_), columns(nope_, value_)});
    return {parts[0], parts[1]};
  }
  auto [k, v] = split_key_value(kv, heads, nope_, value_);
  if (config_.targets == GateTargets::kv) {
    const auto [g_k, g_v] = split_key_value(g, heads, nope_, value_);
    return {modulate(k, g_k, k_, cache, 0), modulate(v, g_v, v_, cache, 1)};
  }
  const Var g_heads = tape.windows(g, {by_head}).front();
  if (config_.targets == GateTargets::k) return {modulate(k, g_heads, all_, cache), v};
  return {k, modulate(v, g_heads, all_, cache)};
}

}  // namespace egmla

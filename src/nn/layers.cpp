#include "nn/layers.h"

#include "kernels/elementwise.h"
#include "nn/attention.h"

namespace egmla {

Norm::Norm(const ModelConfig& model, const std::string& path, ParameterStore& store) : eps_(model.norm_eps) {
  const auto vector = ParameterGroup::vector;
  weight_ =
      store.add({{.path = path + ".weight", .rows = model.hidden_size, .init = {.constant = 1}, .group = vector}});
  if (model.norm == NormType::layernorm)
    bias_ = store.add({{.path = path + ".bias", .rows = model.hidden_size, .group = vector}});
}

FeedForward::FeedForward(const ModelConfig& model, const std::string& path, ParameterStore& store) : type_(model.ffn) {
  const int64_t D = model.hidden_size, F = model.intermediate_size;
  const Init init{.std = model.initializer_range};
  const NamedTensor up{.path = path + "up_proj.weight", .rows = F, .columns = D, .init = init};
  if (type_ == FfnType::swiglu) {
    up_ = store.add({{.path = path + "gate_proj.weight", .rows = F, .columns = D, .init = init}, up});
  } else {
    up_ = store.add({up});
  }
  down_ =
      store.add({{.path = path + "down_proj.weight", .rows = D, .columns = F, .init = {.std = residual_std(model)}}});
}

Var FeedForward::operator()(const Var& x) const {
  if (type_ == FfnType::swiglu) return ops::swiglu_ffn(x, *up_, *down_);
  return ops::linear(ops::gelu(ops::linear(x, *up_)), *down_);
}

DecodeInput Norm::input(const View& x, const View& delta, const View& sum) const {
  return {.x = x,
          .delta = delta,
          .sum = sum,
          .norm_weight = weight_->value,
          .norm_bias = bias_ ? bias_->value : View{},
          .eps = eps_};
}

View FeedForward::step(const DecodeInput& in, DecodeState& state) const {
  const bool swiglu = type_ == FfnType::swiglu;
  const int64_t B = state.sequences(), F = down_->value.size(1);
  const View hidden = state.buffer("ffn.hidden", {B, F}), out = state.buffer("ffn.out", {B, down_->value.size(0)});
  decode_project(state, "ffn", in, *up_, hidden, swiglu);
  View active = hidden;
  if (!swiglu) {
    active = state.buffer("ffn.active", {B, F});
    launch(state, GeluForward{.out = active, .x = hidden});
  }
  decode_project(state, "ffn.out", {.x = active}, *down_, out);
  return out;
}

}  // namespace egmla

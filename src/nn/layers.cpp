#include "nn/layers.h"

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
  const Var hidden = ops::linear(x, *up_);
  return type_ == FfnType::swiglu ? ops::swiglu_linear(hidden, *down_) : ops::linear(ops::gelu(hidden), *down_);
}

}  // namespace egmla

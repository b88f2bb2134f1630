#include "nn/attention.h"

#include <cmath>

#include "nn/attention_mha.h"
#include "nn/attention_mla.h"

namespace egmla {

std::unique_ptr<Attention> make_attention(const ModelConfig& model, int64_t layer, ParameterStore& store) {
  const std::string path = fmt::format("model.layers.{}.self_attn.", layer);
  switch (model.attention.type) {
    case AttentionType::mha:
      return std::make_unique<MhaAttention>(model, path, store);
    case AttentionType::mla:
      return std::make_unique<MlaAttention>(model, path, store, nullptr);
    case AttentionType::egmla:
      return std::make_unique<MlaAttention>(model, path, store, make_gate(model, layer, store));
  }
  fail("attention: unknown type");
}

double residual_std(const ModelConfig& model) {
  return model.initializer_range / std::sqrt(2.0 * static_cast<double>(model.num_hidden_layers));
}

}  // namespace egmla

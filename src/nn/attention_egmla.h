// EG-MLA's gate (arXiv 2509.16686), the only difference from MLA:
//   g = act(offset + W^UE E_l[x_t]);  kv = LayerNorm(u * g)
// with the ablations of `model.attention.gate`: where it stands, what it gates, how it is normalised, who shares E_l.
#pragma once

#include <memory>
#include <utility>

#include "nn/batch.h"
#include "nn/model_config.h"
#include "nn/parameter_store.h"

namespace egmla {

class Gate {
 public:
  Gate(const ModelConfig& model, int64_t layer, ParameterStore& store);

  bool in_latent() const { return config_.position == GatePosition::latent; }
  // position latent: c [B, T, d_c] -> gated c.
  Var apply(const Var& c, const ops::TokenIndex& tokens);
  // position after_up: kv [B, T, H (d_n | d_v)] -> {k [B, T, H, d_n], v [B, T, H, d_v]}.
  std::pair<Var, Var> apply(const Var& kv, int64_t heads, const ops::TokenIndex& tokens);

 private:
  struct NormWeights {
    Parameter *weight = nullptr, *bias = nullptr;
  };
  NormWeights window(const std::function<View(const View&)>& select, ParameterStore& store);
  Var modulate(const Var& u, const Var& g, const NormWeights& norm) const;
  ops::GateOptions options() const;

  GateConfig config_;
  int64_t nope_, value_;                              // d_n, d_v
  Parameter* table_;                                  // E_l [V, d_e]
  Parameter* up_;                                     // W^UE [features, d_e]
  Parameter *norm_ = nullptr, *norm_bias_ = nullptr;  // [features]
  NormWeights all_, k_, v_;  // the norm seen as [H, w]: one LayerNorm, or K's and V's (separate)
};

// Null when the gate is switched off (embed_dim 0).
std::unique_ptr<Gate> make_gate(const ModelConfig& model, int64_t layer, ParameterStore& store);

// kv [B, T, H (d_n | d_v)] -> windows k [B, T, H, d_n], v [B, T, H, d_v].
std::pair<Var, Var> split_key_value(const Var& kv, int64_t heads, int64_t nope, int64_t value);

}  // namespace egmla

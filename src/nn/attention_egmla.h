// EG-MLA's gate (arXiv 2509.16686), the only difference from MLA:
//   g = act(offset + W^UE E_l[x_t]);  kv = LayerNorm(u * g)
// with the ablations of `model.attention.gate`: where it stands, what it gates, how it is normalised, who shares E_l.
#pragma once

#include <memory>
#include <utility>

#include "kernels/decode_gated.h"
#include "nn/batch.h"
#include "nn/decode_ops.h"
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
  // With `cache`, the norms' statistics of these tokens, a sequence's first, go there.
  std::pair<Var, Var> apply(const Var& kv, int64_t heads, const ops::TokenIndex& tokens, LayerCache* cache = nullptr);

  // A decoding step of position latent: the normalised latent c [B, d_c] -> out, gated.
  void step_latent(DecodeState& state, const View& c, const View& out) const;
  // The same of position after_up, in two parts: what statistics of the new tokens' norms come from, u and g, where
  // `latent` gives their normalised c and up is W^UKV; and, once c is in the layer's cache, these statistics and
  // attention of q [B, H, d_n + d_r] over the cache -> out [B, H, d_v].
  void step_products(DecodeState& state, const DecodeInput& latent, const Parameter& up) const;
  void step(DecodeState& state, size_t layer, const Parameter& up, const View& q, const View& out, double scale) const;
  // Norms whose statistics are cached, and numbers of each a token.
  int64_t norms() const;
  int64_t groups() const { return config_.norm == GateNormType::per_head ? heads_ : 1; }
  // W^UE E_l of every token, [V, features()].
  Tensor fold(Context& context) const;
  int64_t features() const { return features_; }
  int64_t embed_dim() const { return config_.embed_dim; }

 private:
  struct NormWeights {
    Parameter *weight = nullptr, *bias = nullptr;
  };
  NormWeights window(const std::function<View(const View&)>& select, ParameterStore& store);
  Var modulate(const Var& u, const Var& g, const NormWeights& norm, LayerCache* cache = nullptr,
               size_t number = 0) const;
  // Keys (value false) or values: their features [begin, begin + width) of a head of the gate; width 0: not gated.
  struct Gated {
    int64_t begin = 0, width = 0;
    size_t norm = 0;  // whose statistics
  };
  Gated gated(bool value) const;
  GateSide side(const DecodeState& state, size_t layer, const Parameter& up, bool value) const;
  void step_statistics(DecodeState& state, size_t layer, const Parameter& up) const;
  // u and g of the newest tokens, [B, features].
  View new_up(DecodeState& state, const Parameter& up) const;
  View new_gate(DecodeState& state) const;
  ops::GateOptions options() const;

  GateConfig config_;
  int64_t heads_, nope_, value_;                      // H, d_n, d_v
  int64_t features_ = 0;                              // gated, of all heads
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

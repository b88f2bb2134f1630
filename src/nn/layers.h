// The parts of a block beside attention.
#pragma once

#include <string>
#include <utility>

#include "nn/decode_ops.h"
#include "nn/model_config.h"
#include "nn/parameter_store.h"
#include "ops/ops.h"

namespace egmla {

// RMSNorm or LayerNorm (with bias) over D, by configuration.
class Norm {
 public:
  Norm(const ModelConfig& model, const std::string& path, ParameterStore& store);
  Var operator()(const Var& x) const { return ops::norm(x, *weight_, bias_, eps_); }
  // {x + delta, norm(x + delta)}
  std::pair<Var, Var> after_sum(const Var& x, const Var& delta) const {
    return ops::add_norm(x, delta, *weight_, bias_, eps_);
  }
  // A decoding step's norm of x + delta, taken by the product behind it; the sum goes to `sum`.
  DecodeInput input(const View& x, const View& delta, const View& sum) const;

 private:
  double eps_;
  Parameter* weight_;
  Parameter* bias_ = nullptr;
};

// SwiGLU: down(silu(gate x) * up x);  GELU: down(gelu(up x)).
class FeedForward {
 public:
  FeedForward(const ModelConfig& model, const std::string& path, ParameterStore& store);
  Var operator()(const Var& x) const;
  // A decoding step: [B, D], a buffer of the state.
  View step(const DecodeInput& in, DecodeState& state) const;

 private:
  FfnType type_;
  Parameter* up_;  // [2F, D]: gate_proj, up_proj (SwiGLU) or [F, D]
  Parameter* down_;
};

}  // namespace egmla

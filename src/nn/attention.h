// The one polymorphic family: how a layer mixes tokens. A new variant is one file, one line in make_attention, one
// configuration and one test case.
#pragma once

#include <memory>
#include <string>

#include "nn/batch.h"
#include "nn/decode_ops.h"
#include "nn/model_config.h"
#include "nn/parameter_store.h"

namespace egmla {

class Attention {
 public:
  virtual ~Attention() = default;
  // x [B, T, D], normalised -> [B, T, D]. With a cache (inference only), x holds the newest T tokens; the cache's rows
  // [past, past + T) are filled and attention reaches over all past + T tokens.
  virtual Var forward(const Var& x, const Batch& batch, LayerCache* cache) = 0;
  // One new token a sequence: its row joins the cache at DecodeState::positions, and attention reaches over all rows
  // up to there. The first projection takes `in`; returns [B, D], a buffer of the state.
  virtual View step(const DecodeInput& in, DecodeState& state, size_t layer) = 0;
  // Cached elements per token in this layer.
  virtual int64_t cache_width() const = 0;
  // Statistics cached beside them: tensors of `groups` means and as many deviations per token.
  struct CachedStatistics {
    int64_t tensors = 0, groups = 0;
    int64_t numbers() const { return 2 * tensors * groups; }
  };
  virtual CachedStatistics cached_statistics() const { return {}; }
  // W^UE E_l of every token, [V, features], where keys and values are gated; else undefined.
  virtual Tensor fold_gate(Context&) const { return {}; }
  virtual int64_t folded_features() const { return 0; }
  // FLOPs of the two attention products for one token at sequence length T, causal counted as half, forward only.
  virtual double attention_flops(int64_t T) const = 0;
  // FLOPs of a decoding step for each cached token, what is rebuilt of it included.
  virtual double decode_flops(bool folded) const = 0;
  // Width of the rotated part of a head.
  virtual int64_t rope_width() const = 0;
  // The table all layers share, [max_position_embeddings, rope_width() / 2].
  void use_rope(const ops::RopeTable& table) { rope_ = table; }

 protected:
  ops::RopeTable rope_;
};

// Declares the parameters of layer `layer` under "model.layers.N.self_attn." in `store`.
std::unique_ptr<Attention> make_attention(const ModelConfig& model, int64_t layer, ParameterStore& store);

// Standard deviation of projections that write into the residual stream: initializer_range / sqrt(2 L).
double residual_std(const ModelConfig& model);

}  // namespace egmla

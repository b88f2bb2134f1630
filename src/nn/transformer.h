// The decoder: x = x + Attn(norm(x), ids);  x = x + FFN(norm(x)), final norm, LM head (tied to the embedding or not).
// Each sum and the norm that follows it run as one kernel, across block borders.
#pragma once

#include <memory>
#include <vector>

#include "nn/attention.h"
#include "nn/gate_folding.h"
#include "nn/layers.h"
#include "nn/recompute.h"

namespace egmla {

class Transformer {
 public:
  // Declares all parameters; no memory is taken. Everything `inspect` tells is known from here on.
  explicit Transformer(const ModelConfig& model);
  Transformer(const Transformer&) = delete;
  Transformer& operator=(const Transformer&) = delete;

  // Takes memory on `context`; `dtype` is what activations and products use (f32, f64; bf16 on CUDA); `own` is what
  // this process updates, everything where it is empty.
  void allocate(Context& context, DType dtype, std::vector<OwnPart> own = {});

  // What backward computes again; results and gradients keep their bits.
  void set_recompute(Recompute recompute) { recompute_ = recompute; }
  // Large products of training run in e4m3; evaluation and decoding stay in the dtype. The device must be able to
  // (multiplies_e4m3).
  void set_fp8(bool fp8) { fp8_ = fp8; }

  // loss_scale * sum of token losses, and each token's loss. Batch::targets must be there.
  ops::HeadLoss loss(Tape& tape, const Batch& batch, double loss_scale);
  // Final hidden states [R, D] of the tokens `rows` (0 .. B T - 1) of a batch, and logits [R, V] of such states, both
  // without gradients.
  Tensor hidden(const Batch& batch, const std::vector<int32_t>& rows);
  Tensor logits(const Tensor& hidden) { return ops::head_logits(hidden, *head_); }
  // Logits [B, 1, V] of the last token of each row, through the caches (one a layer).
  Tensor next_logits(const Batch& batch, std::vector<LayerCache>& caches);
  // Empty caches for B sequences of up to `capacity` tokens.
  DecodeState make_decode_state(int64_t B, int64_t capacity) const;
  // W^UE E_l of every layer, for DecodeState::tables; empty where nothing is rebuilt by token. Their columns together.
  std::vector<Tensor> fold_gates() const;
  int64_t folded_features() const;
  // Whether decoding folds them (run.fold_gate). Never until set, so that samples during training take no memory.
  void set_gate_folding(GateFolding folding) { gate_folding_ = folding; }
  GateFolding gate_folding() const { return gate_folding_; }
  // Feeds every sequence its token at its position. Returns the logits [B, V]; afterwards tokens holds the most
  // probable next ones and positions have moved on.
  View decode_step(DecodeState& state);

  const ModelConfig& config() const { return model_; }
  ParameterStore& parameters() { return store_; }
  const ParameterStore& parameters() const { return store_; }
  DType dtype() const { return dtype_; }

  // Cached elements per token, all layers.
  int64_t cache_elements() const;
  // FLOPs of a decoding step for each cached token, all layers (its products with weights are 2 x matmul_parameters).
  double decode_flops(bool folded) const;
  // Numbers of f32 statistics cached beside them, per token, all layers.
  int64_t cache_statistics() const;
  // Weights that enter a matrix product (tied embeddings once, as the head).
  int64_t matmul_parameters() const;
  // FLOPs of matrix products per token, forward and backward: 6 x matmul_parameters + 3 x attention, causal as half.
  double flops_per_token(int64_t T) const;

 private:
  struct Block {
    Norm attention_norm;
    std::unique_ptr<Attention> attention;
    Norm ffn_norm;
    FeedForward ffn;
  };
  // {x, h} = {residual stream, its norm} before a layer -> the same after it.
  std::vector<Var> run_block(size_t layer, const std::vector<Var>& in, const Batch& batch, LayerCache* cache) const;
  // Final norm's output.
  Var trunk(Tape& tape, const Batch& batch, std::vector<LayerCache>* caches);

  ModelConfig model_;
  ParameterStore store_;
  DType dtype_ = DType::f32;
  Recompute recompute_ = Recompute::none;
  bool fp8_ = false;
  GateFolding gate_folding_ = GateFolding::never;
  Parameter* embedding_ = nullptr;
  std::vector<Block> blocks_;
  std::unique_ptr<Norm> final_norm_;
  Parameter* head_ = nullptr;  // the embedding when tied
};

}  // namespace egmla

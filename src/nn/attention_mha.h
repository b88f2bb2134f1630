// Multi-head and grouped-query attention, Llama's layout: q, k, v = W x, RoPE on all of q and k.
#pragma once

#include "nn/attention.h"

namespace egmla {

class MhaAttention : public Attention {
 public:
  MhaAttention(const ModelConfig& model, const std::string& path, ParameterStore& store);
  Var forward(const Var& x, const Batch& batch, LayerCache* cache) override;
  View step(const DecodeInput& in, DecodeState& state, size_t layer) override;
  int64_t cache_width() const override { return 2 * kv_heads_ * width_; }
  double attention_flops(int64_t T) const override;
  double decode_flops(bool) const override { return static_cast<double>(4 * heads_ * width_); }
  int64_t rope_width() const override { return width_; }

 private:
  int64_t heads_, kv_heads_, width_;  // H, Hkv, d_h
  Parameter* qkv_;                    // [(H + 2 Hkv) d_h, D]: q_proj, k_proj, v_proj
  Parameter* out_;
};

}  // namespace egmla

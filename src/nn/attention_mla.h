// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434), and EG-MLA where a gate is given (attention_egmla.h):
//   q = W^Q h  (or W^UQ RMSNorm(W^DQ h));  [c ; k^R] = W^DKV h;  c = RMSNorm(c);  [k^C | v] = W^UKV c;  RoPE on q^R,
//   k^R score = (q^C . k^C + q^R . k^R) / sqrt(d_n + d_r);  o = W^O softmax(score) v
#pragma once

#include "nn/attention.h"
#include "nn/attention_egmla.h"

namespace egmla {

class MlaAttention : public Attention {
 public:
  // `gate` may be null: MLA.
  MlaAttention(const ModelConfig& model, const std::string& path, ParameterStore& store, std::unique_ptr<Gate> gate);
  Var forward(const Var& x, const Batch& batch, LayerCache* cache) override;
  View step(const DecodeInput& in, DecodeState& state, size_t layer) override;
  int64_t cache_width() const override { return latent_ + rope_width_; }
  CachedStatistics cached_statistics() const override;
  Tensor fold_gate(Context& context) const override;
  int64_t folded_features() const override { return rebuilds() ? gate_->features() : 0; }
  double attention_flops(int64_t T) const override;
  double decode_flops(bool folded) const override;
  int64_t rope_width() const override { return rope_width_; }

 private:
  // Queries, the latent (normalised, gated where the gate sits there) and the rotated shared key of the newest tokens.
  struct Projected {
    Var q, c, k_rope;
  };
  Projected project(const Var& x, const Batch& batch);
  // Stores c and k_rope and replaces them by those of all tokens.
  void through_cache(Projected& newest, const Batch& batch, LayerCache& cache) const;
  // Queries against latents instead of keys, mixed latents instead of values: W^UKV is applied once a head, not once a
  // cached token.
  void step_absorbed(DecodeState& state, const DecodeAppend& append, const View& q, const View& q_latent,
                     const View& out) const;
  bool rebuilds() const { return gate_ && !gate_->in_latent(); }
  double scale() const;

  int64_t heads_, nope_, rope_width_, value_, latent_, query_latent_;  // H, d_n, d_r, d_v, d_c, q_lora_rank (0: none)
  Parameter* down_;                                // [q | c | k^R, D]: q_proj or q_a_proj, then kv_a_proj_with_mqa
  Parameter *q_norm_ = nullptr, *q_up_ = nullptr;  // q_a_layernorm, q_b_proj
  Parameter *c_norm_, *kv_up_, *out_;              // kv_a_layernorm, kv_b_proj, o_proj
  std::unique_ptr<Gate> gate_;
};

}  // namespace egmla

// What a model is: the `model:` section of a configuration. Key names follow Hugging Face's configs.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace egmla {

enum class AttentionType : uint8_t { mha, mla, egmla };
enum class NormType : uint8_t { rmsnorm, layernorm };
enum class FfnType : uint8_t { swiglu, gelu };
enum class GatePosition : uint8_t { after_up, latent };
enum class GateTargets : uint8_t { kv, k, v };
enum class GateNormType : uint8_t { joint, separate, per_head, none };
enum class GateActivationType : uint8_t { none, sigmoid, tanh, silu };

// EG-MLA's gate and its ablations (arXiv 2509.16686). embed_dim 0 switches it off: exactly MLA.
struct GateConfig {
  int64_t embed_dim = 256;  // d_e
  GatePosition position = GatePosition::after_up;
  GateTargets targets = GateTargets::kv;
  GateNormType norm = GateNormType::joint;
  GateActivationType activation = GateActivationType::none;
  int64_t share_layers = 1;
  double init_std = 1.0;
  double offset = 0.0;
  double lr_scale = 1.0;
  double weight_decay = 0.0;
};

struct AttentionConfig {
  AttentionType type = AttentionType::egmla;
  int64_t num_key_value_heads = 0;  // MHA; 0: num_attention_heads
  int64_t head_dim = 0;             // MHA; 0: hidden_size / num_attention_heads
  std::optional<int64_t> q_lora_rank;
  int64_t kv_lora_rank = 256;     // d_c
  int64_t qk_nope_head_dim = 64;  // d_n
  int64_t qk_rope_head_dim = 64;  // d_r
  int64_t v_head_dim = 64;        // d_v
  GateConfig gate;
};

struct ModelConfig {
  int64_t hidden_size = 0;  // D
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;  // H
  int64_t vocab_size = 0;           // V
  int64_t max_position_embeddings = 0;
  NormType norm = NormType::rmsnorm;
  double norm_eps = 1e-6;
  FfnType ffn = FfnType::swiglu;
  double rope_theta = 10000.0;
  std::optional<bool> rope_interleave;  // default: false for MHA (Llama), true for MLA and EG-MLA (DeepSeek-V3)
  bool tie_word_embeddings = true;
  double initializer_range = 0.02;
  AttentionConfig attention;

  bool gated() const { return attention.type == AttentionType::egmla && attention.gate.embed_dim > 0; }
  int64_t key_value_heads() const {
    return attention.num_key_value_heads > 0 ? attention.num_key_value_heads : num_attention_heads;
  }
  int64_t mha_head_dim() const {
    return attention.head_dim > 0 ? attention.head_dim : hidden_size / num_attention_heads;
  }
  bool interleaved_rope() const { return rope_interleave.value_or(attention.type != AttentionType::mha); }
};

}  // namespace egmla

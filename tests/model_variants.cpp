#include "model_variants.h"

#include <functional>

#include "op_case.h"

namespace egmla::test {
namespace {

ModelConfig base(AttentionType type) {
  ModelConfig model;
  model.hidden_size = 32;
  model.intermediate_size = 48;
  model.num_hidden_layers = 2;
  model.num_attention_heads = 4;
  model.vocab_size = 61;
  model.max_position_embeddings = 64;
  model.attention.type = type;
  model.attention.kv_lora_rank = 16;
  model.attention.qk_nope_head_dim = 8;
  model.attention.qk_rope_head_dim = 4;
  model.attention.v_head_dim = 12;
  model.attention.gate.embed_dim = 16;
  return model;
}

Variant changed(const std::string& name, AttentionType type, const std::function<void(ModelConfig&)>& change) {
  Variant out{name, base(type)};
  change(out.model);
  return out;
}

Variant gated(const std::string& name, const std::function<void(GateConfig&)>& change) {
  return changed("egmla_" + name, AttentionType::egmla, [&](ModelConfig& m) { change(m.attention.gate); });
}

}  // namespace

std::vector<Variant> all_variants() {
  const auto mha = AttentionType::mha, mla = AttentionType::mla, egmla = AttentionType::egmla;
  return {
      changed("mha", mha, [](ModelConfig&) {}),
      changed("mha_gqa_untied", mha,
              [](ModelConfig& m) {
                m.attention.num_key_value_heads = 2;
                m.tie_word_embeddings = false;
              }),
      changed("mha_gpt2_block", mha,
              [](ModelConfig& m) {
                m.norm = NormType::layernorm;
                m.ffn = FfnType::gelu;
                m.attention.head_dim = 16;
                m.rope_interleave = true;
              }),
      changed("mla", mla, [](ModelConfig&) {}),
      changed("mla_q_lora", mla,
              [](ModelConfig& m) {
                m.attention.q_lora_rank = 20;
                m.rope_interleave = false;
              }),
      changed("egmla", egmla, [](ModelConfig&) {}),
      changed("egmla_gpt2_block_untied", egmla,
              [](ModelConfig& m) {
                m.norm = NormType::layernorm;
                m.ffn = FfnType::gelu;
                m.tie_word_embeddings = false;
                m.attention.q_lora_rank = 20;
              }),
      gated("latent", [](GateConfig& g) { g.position = GatePosition::latent; }),
      gated("latent_bare",
            [](GateConfig& g) {
              g.position = GatePosition::latent;
              g.norm = GateNormType::none;
              g.offset = 1;
            }),
      gated("targets_k", [](GateConfig& g) { g.targets = GateTargets::k; }),
      gated("targets_v_per_head",
            [](GateConfig& g) {
              g.targets = GateTargets::v;
              g.norm = GateNormType::per_head;
            }),
      gated("separate_sigmoid",
            [](GateConfig& g) {
              g.norm = GateNormType::separate;
              g.activation = GateActivationType::sigmoid;
            }),
      gated("per_head_tanh",
            [](GateConfig& g) {
              g.norm = GateNormType::per_head;
              g.activation = GateActivationType::tanh;
            }),
      gated("silu_offset",
            [](GateConfig& g) {
              g.activation = GateActivationType::silu;
              g.offset = 1;
              g.init_std = 0.1;
            }),
      gated("shared_table", [](GateConfig& g) { g.share_layers = 2; }),
  };
}

Variant variant(const std::string& name) {
  for (const Variant& candidate : all_variants()) {
    if (candidate.name == name) return candidate;
  }
  fail("test: no variant {}", name);
}

Batch make_batch(Context& context, const std::vector<int32_t>& ids, int64_t B, int64_t T, int64_t document_length) {
  std::vector<int32_t> inputs, targets, starts;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < T; ++t) {
      inputs.push_back(ids[static_cast<size_t>(b * (T + 1) + t)]);
      targets.push_back(ids[static_cast<size_t>(b * (T + 1) + t + 1)]);
      if (document_length > 0) starts.push_back(static_cast<int32_t>(t / document_length * document_length));
    }
  }
  Batch batch;
  batch.tokens = ops::make_token_index(context, inputs, B, T, true);
  batch.targets = Tensor::from(context, {B, T}, targets);
  if (document_length > 0) batch.document_start = Tensor::from(context, {B, T}, starts);
  return batch;
}

std::vector<int32_t> batch_ids(const ModelConfig& model, int64_t B, int64_t T, uint64_t seed) {
  return random_ids(B * (T + 1), model.vocab_size, seed);
}

std::unique_ptr<Transformer> build(const ModelConfig& config, Context& context, DType dtype, uint64_t seed) {
  auto model = std::make_unique<Transformer>(config);
  model->allocate(context, dtype);
  model->parameters().initialize(seed);
  return model;
}

double loss_and_gradients(Transformer& model, const Batch& batch) {
  Tape tape(model.parameters().context());
  model.parameters().begin_step();
  const Var loss = model.loss(tape, batch, 1.0 / static_cast<double>(batch.rows() * batch.length())).loss;
  tape.backward(loss);
  model.parameters().end_step();
  return doubles_of(loss.value).front();
}

std::vector<double> token_losses(Transformer& model, const Batch& batch) {
  Tape tape(model.parameters().context(), Tape::Mode::inference);
  return doubles_of(model.loss(tape, batch, 1.0).per_token);
}

}  // namespace egmla::test

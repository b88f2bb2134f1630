#include "infer/hf_card.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/config_keys.h"

namespace egmla {
namespace {

// The newest value of a metric at or before a step; lines that are no JSON are passed over.
std::optional<double> metric_at(const std::string& file, const char* name, int64_t step) {
  std::optional<double> value;
  std::ifstream lines(file);
  for (std::string line; std::getline(lines, line);) {
    const auto row = nlohmann::json::parse(line, nullptr, false);
    if (!row.is_object() || !row.value("step", nlohmann::json()).is_number_integer()) continue;
    if (row["step"].get<int64_t>() <= step && row.contains(name) && row[name].is_number()) value = row[name];
  }
  return value;
}

std::string row(const std::string& what, const std::string& value) {
  return fmt::format("| {} | {} |\n", what, value);
}

std::string shape_rows(const HfCard& card) {
  const ModelConfig& m = card.config.model;
  const AttentionConfig& a = m.attention;
  std::string out = row("parameters", std::to_string(card.parameters)) +
                    row("layers, width, feed-forward width",
                        fmt::format("{}, {}, {}", m.num_hidden_layers, m.hidden_size, m.intermediate_size));
  if (a.type == AttentionType::mha) {
    out += row("attention", fmt::format("MHA, {} heads of {}, {} key/value heads", m.num_attention_heads,
                                        m.mha_head_dim(), m.key_value_heads()));
  } else {
    out += row("attention", fmt::format("{}, {} heads, d_n {}, d_r {}, d_v {}, latent {}", m.gated() ? "EG-MLA" : "MLA",
                                        m.num_attention_heads, a.qk_nope_head_dim, a.qk_rope_head_dim, a.v_head_dim,
                                        a.kv_lora_rank));
  }
  if (m.gated()) {
    for (const ConfigKey& key : config_keys()) {
      if (key.scope == Scope::gate) out += row(key.name.substr(sizeof "model.attention." - 1), key.write(card.config));
    }
  }
  return out + row("cached elements per token", std::to_string(card.cache_elements)) +
         row("vocabulary, context", fmt::format("{}, {}", m.vocab_size, m.max_position_embeddings));
}

std::string training_rows(const HfCard& card) {
  const TrainConfig& train = card.config.train;
  std::string out = row("steps, tokens", fmt::format("{}, {}", card.state.step, card.state.tokens)) +
                    row("tokens per step, sequence length",
                        fmt::format("{}, {}", train.batch_tokens, card.config.data.sequence_length)) +
                    row("highest learning rate, weight decay",
                        fmt::format("{}, {}", train.optimizer.lr, train.optimizer.weight_decay));
  for (const auto& [name, words] : {std::pair("loss", "training loss of the last step"),
                                    std::pair("val_loss", "validation loss, nats per token")}) {
    const auto value = metric_at(card.metrics, name, card.state.step);
    if (value) out += row(words, fmt::format("{:.4f}", *value));
  }
  return out;
}

}  // namespace

std::string hf_card(const HfCard& card) {
  const bool own = card.architecture == HfArchitecture::egmla;
  const char* const trust = own ? ", trust_remote_code=True" : "";
  const std::string tokens =
      card.tokenizer
          ? fmt::format("ids = AutoTokenizer.from_pretrained(\".\"{})(\"Once\", return_tensors=\"pt\").input_ids\n",
                        trust)
          : "ids = torch.tensor([[0]])  # no tokenizer: token ids in, token ids out\n";
  return fmt::format(
      "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- egmla\n---\n\n# {}\n\n"
      "Trained with egmla, a C++ and CUDA framework for MHA, MLA and EG-MLA "
      "([arXiv 2509.16686](https://arxiv.org/abs/2509.16686)). The class is `{}`{}.\n\n"
      "| model | |\n|---|---|\n{}\n| training | |\n|---|---|\n{}\n## Use\n\n```python\n"
      "import torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
      "model = AutoModelForCausalLM.from_pretrained(\".\"{})\n{}"
      "print(model.generate(ids, max_new_tokens=64))\n```\n",
      card.config.run.name, hf_class(card.architecture),
      own ? ", defined in modeling_egmla.py beside this file" : " of transformers, unchanged", shape_rows(card),
      training_rows(card), trust, tokens);
}

}  // namespace egmla

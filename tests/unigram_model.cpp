#include "unigram_model.h"

#include <algorithm>
#include <cmath>

#include "io/checkpoint.h"
#include "io/config.h"
#include "nn/transformer.h"

namespace egmla::test {

Tokenizer unigram_tokenizer() {
  TokenizerModel model;
  for (int32_t byte = 0; byte < 256; ++byte) {
    model.tokens.emplace_back(1, static_cast<char>(byte));
    model.byte_ids[static_cast<size_t>(byte)] = byte;
  }
  model.tokens.emplace_back(" a");
  model.merges = {{' ', 'a', kSpaceA}};
  model.tokens.emplace_back(Tokenizer::kEndOfText);
  model.added = {{.id = kEnd, .text = Tokenizer::kEndOfText}};
  return Tokenizer(std::move(model));
}

// All weights are 0 but two: the last norm's bias makes every hidden state (1, 0, ..., 0), and the head's first column
// holds the logits.
void write_unigram_model(const std::string& path, const Weights& weights) {
  const Config config = parse_config(fmt::format(R"(
run: {{device: cpu, precision: fp32}}
model:
  hidden_size: 8
  intermediate_size: 8
  num_hidden_layers: 1
  num_attention_heads: 2
  vocab_size: {}
  max_position_embeddings: {}
  norm: layernorm
  tie_word_embeddings: false
  attention: {{type: mha}}
data: {{train: train.bin, sequence_length: 32}}
train: {{max_steps: 1, batch_tokens: 64}}
)",
                                                 kUnigrams, kPositions),
                                     "unigram model", {});
  CheckpointContents contents;
  contents.config_yaml = resolved_yaml(config, false);
  contents.tokenizer_json = unigram_tokenizer().to_json();
  const Transformer declared(config.model);
  for (const NamedTensor& tensor : declared.parameters().tensors()) {
    contents.model.push_back({tensor.path, tensor.shape(), [tensor, weights](float* target) {
                                std::fill_n(target, tensor.elements(), 0.0F);
                                if (tensor.path == "model.norm.bias") target[0] = 1;
                                if (tensor.path != "lm_head.weight") return;
                                for (const auto& [id, weight] : weights)
                                  target[id * tensor.columns] = static_cast<float>(std::log(weight));
                              }});
  }
  write_checkpoint(path, contents);
}

}  // namespace egmla::test

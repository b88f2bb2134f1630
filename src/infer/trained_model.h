// A model with its weights, configuration and tokenizer, as a checkpoint holds them.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/config.h"
#include "nn/transformer.h"
#include "text/tokenizer.h"

namespace egmla {

struct TrainedModel {
  Config config;
  CheckpointState state;
  std::string checkpoint;              // path
  std::optional<Tokenizer> tokenizer;  // absent when the run had none
  std::unique_ptr<Context> context;    // outlives the model
  std::unique_ptr<Transformer> model;

  // The tokenizer; a usage error when there is none.
  const Tokenizer& need_tokenizer() const;
};

// `path` is a checkpoint or a run directory (its newest checkpoint that verifies). Overrides change the stored
// configuration, except for the model's own keys.
TrainedModel load_trained_model(const std::string& path, const std::vector<std::string>& overrides);

// The checkpoint `path` means: itself, or the newest of a run directory. Raises a usage error when there is none.
std::string find_checkpoint(const std::string& path);

// Copies the weights of a checkpoint into allocated parameters. Names and shapes must agree exactly.
void load_weights(ParameterStore& store, const CheckpointReader& reader, const std::string& checkpoint);

}  // namespace egmla

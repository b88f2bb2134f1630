// Everything a training run holds, and its way into and out of checkpoints.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/batches.h"
#include "data/token_loader.h"
#include "io/checkpoint.h"
#include "io/config.h"
#include "nn/transformer.h"
#include "optim/adamw.h"
#include "text/tokenizer.h"
#include "train/run_directory.h"

namespace egmla {

class TrainState {
 public:
  // Opens tokenizer, data and run directory, and takes the newest checkpoint that verifies, or run.init_from, or draws
  // new weights. All checks come before the first allocation.
  explicit TrainState(const Config& config);

  // Writes the checkpoint of state() and prunes older ones.
  void save() const;

  // The config with what the tokenizer decides (model.vocab_size).
  const Config& config() const { return config_; }
  const RunDirectory& directory() const { return *directory_; }
  Context& context() { return *context_; }
  Transformer& model() { return *model_; }
  AdamWOptimizer& optimizer() { return *optimizer_; }
  const TokenLoader& data() const { return *loader_; }
  const std::optional<ValidationSet>& validation() const { return validation_; }
  const BatchBuilder& builder() const { return *builder_; }
  const std::optional<Tokenizer>& tokenizer() const { return tokenizer_; }
  CheckpointState& state() { return state_; }

 private:
  void open_text();
  void open_data();
  void open_model();
  void resume(const CheckpointReader& reader, const std::string& path);

  Config config_;
  std::optional<Tokenizer> tokenizer_;
  std::string tokenizer_json_;
  std::unique_ptr<TokenLoader> loader_;
  std::optional<ValidationSet> validation_;
  std::unique_ptr<BatchBuilder> builder_;
  std::unique_ptr<RunDirectory> directory_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  CheckpointState state_;
};

}  // namespace egmla

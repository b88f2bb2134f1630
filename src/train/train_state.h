// Everything a training run holds, and its way into and out of checkpoints.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/batches.h"
#include "data/token_loader.h"
#include "dist/gradient_sync.h"
#include "io/checkpoint.h"
#include "io/config.h"
#include "nn/transformer.h"
#include "optim/adamw.h"
#include "text/tokenizer.h"
#include "train/checkpoint_saver.h"
#include "train/run_directory.h"

namespace egmla {

class TrainState {
 public:
  // Opens tokenizer, data and run directory, and takes the newest checkpoint that verifies, or run.init_from, or draws
  // new weights. All checks come before the first allocation. Files are the root rank's; what it has found there, every
  // rank receives.
  TrainState(const Config& config, Communicator& host);

  // Copies what a checkpoint of state() holds to the root's memory, whence a thread writes it and prunes older ones.
  // Every rank calls it; it waits for the save before.
  void save();
  // After a spike: the newest checkpoint again, without `batch`. False where there is none or the list is full.
  // Every rank calls it.
  bool go_back(int64_t batch);
  // Of the root's writing: raises a failure, if there is one by now; waits for its end.
  void raise_save_failure() { saver_.raise_failure(); }
  void finish_saving() { saver_.wait(); }

  // The config with what the tokenizer decides (model.vocab_size).
  const Config& config() const { return config_; }
  // For tensors on context().
  Communicator& ranks() { return device_ranks_ ? *device_ranks_ : *host_; }
  // This process's micro-batch; the configuration's default is for one process.
  int64_t micro_batch_size() const { return micro_batch_size_; }
  // On the root alone.
  const RunDirectory& directory() const { return *directory_; }
  Context& context() { return *context_; }
  Transformer& model() { return *model_; }
  AdamWOptimizer& optimizer() { return *optimizer_; }
  GradientSync& sync() { return *sync_; }
  const TokenLoader& data() const { return *loader_; }
  const std::optional<ValidationSet>& validation() const { return validation_; }
  const BatchBuilder& builder() const { return *builder_; }
  const std::optional<Tokenizer>& tokenizer() const { return tokenizer_; }
  CheckpointState& state() { return state_; }

 private:
  void open_text();
  void open_data();
  void open_model();
  void load();
  std::optional<CheckpointReader> load_weights_or_initialize();
  CheckpointReader open_checkpoint(const std::string& path);
  void load_moment(const CheckpointReader* reader, Group group, const Tensor& moment);

  Config config_;
  Communicator* host_;
  int64_t micro_batch_size_;
  std::optional<Tokenizer> tokenizer_;
  std::string tokenizer_json_;
  std::unique_ptr<TokenLoader> loader_;
  std::optional<ValidationSet> validation_;
  std::unique_ptr<BatchBuilder> builder_;
  std::unique_ptr<RunDirectory> directory_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Communicator> device_ranks_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  std::unique_ptr<GradientSync> sync_;
  CheckpointState state_;
  std::vector<float> saved_model_, saved_exp_avg_, saved_exp_avg_sq_;  // what is being written
  CheckpointSaver saver_;
};

}  // namespace egmla

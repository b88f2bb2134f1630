#include "train/train_state.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "data/prepared.h"
#include "infer/device.h"
#include "infer/hf_import.h"
#include "infer/trained_model.h"
#include "train/memory_plan.h"

namespace egmla {
namespace {

constexpr const char* kMeasuredChoices = "matmul_plans.txt";

// Floats [offset, offset + elements) of a flat buffer, from or to the host.
View part(const Tensor& flat, const NamedTensor& tensor) {
  return make_view(flat.view().as<float>() + tensor.offset, tensor.shape(), DType::f32);
}

// The micro-batch of a process that has its share of every step's samples.
int64_t micro_batch_of_share(const Config& config, int ranks) {
  const TrainConfig& train = config.train;
  const int64_t T = config.data.sequence_length, sequences = train.batch_tokens / T;
  check_usage(
      sequences % ranks == 0,
      "train.batch_tokens: {} tokens are {} sequences, which {} processes cannot share evenly; the nearest that "
      "fits: {}",
      train.batch_tokens, sequences, ranks, std::max<int64_t>(1, sequences / ranks) * ranks * T);
  const int64_t share = sequences / ranks;
  const auto origin = config.origin.find("train.micro_batch_size");
  if (origin == config.origin.end() || origin->second == "default") return automatic_micro_batch(share, T);
  check_usage(share % train.micro_batch_size == 0,
              "train.micro_batch_size: {} does not divide the {} sequences that each of {} processes has of a step; "
              "change it, or leave it out",
              train.micro_batch_size, share, ranks);
  return train.micro_batch_size;
}

}  // namespace

TrainState::TrainState(const Config& config, Communicator& host)
    : config_(config), host_(&host), micro_batch_size_(micro_batch_of_share(config, host.size())) {
  check_usage(config_.parallel.zero_stage == 0,
              "parallel.zero_stage: {} is not available; every process keeps the whole optimizer state: use 0",
              config_.parallel.zero_stage);
  open_text();
  open_data();
  if (host.is_root()) directory_ = std::make_unique<RunDirectory>(config_);
  open_model();
  if (host.is_root()) load_or_initialize();
  take_from_root();
  if (host.is_root()) directory_->write_config(config_);
}

void TrainState::open_text() {
  int64_t& vocabulary = config_.model.vocab_size;
  if (config_.data.tokenizer.empty()) {
    check_usage(!config_.data.mask_documents,
                "data.mask_documents: needs data.tokenizer, whose end-of-text id marks the borders");
    builder_ = std::make_unique<BatchBuilder>(config_.data.sequence_length, std::nullopt);
    return;
  }
  tokenizer_ = Tokenizer::load(config_.data.tokenizer);
  tokenizer_json_ = tokenizer_->to_json();
  if (vocabulary == 0) vocabulary = tokenizer_->vocab_size();
  check_usage(vocabulary >= tokenizer_->vocab_size(), "model.vocab_size: {} is below the {} ids of {}", vocabulary,
              tokenizer_->vocab_size(), config_.data.tokenizer);
  std::optional<int32_t> border;
  if (config_.data.mask_documents) border = tokenizer_->end_of_text();
  builder_ = std::make_unique<BatchBuilder>(config_.data.sequence_length, border);
}

void TrainState::open_data() {
  const DataConfig& data = config_.data;
  const int64_t T = data.sequence_length, V = config_.model.vocab_size;
  for (const auto* sources : {&data.train, &data.val}) {
    for (const DataSource& source : *sources) {
      if (tokenizer_) check_prepared_with(source.path, tokenizer_json_, data.tokenizer);
    }
  }
  loader_ = std::make_unique<TokenLoader>(data.train, data.order, T, V, static_cast<uint64_t>(config_.run.seed));
  if (!data.val.empty()) validation_.emplace(data.val, T, V);
}

void TrainState::open_model() {
  context_ = open_device(config_.run, host_->rank());
  device_ranks_ = connect_devices(*context_, *host_);
  load_measured_choices(*context_, config_.run.dir + "/" + kMeasuredChoices);
  set_attention_backend(*context_, config_.run.attention_backend);
  const DType dtype = compute_dtype(config_.run.precision, *context_);
  model_ = std::make_unique<Transformer>(config_.model);
  model_->set_recompute(config_.train.recompute);
  ParameterStore& store = model_->parameters();
  context_->set_memory_advice(
      [this, dtype,
       sequences = config_.train.batch_tokens / config_.data.sequence_length / host_->size()](int64_t capacity) {
        return memory_advice(config_, context_->is_cpu(), dtype, micro_batch_size_, sequences, capacity);
      });
  model_->allocate(*context_, dtype);
  const GateConfig& gate = config_.model.attention.gate;
  optimizer_ = std::make_unique<AdamWOptimizer>(store, config_.train.optimizer, gate.lr_scale, gate.weight_decay);
}

void TrainState::load_or_initialize() {
  ParameterStore& store = model_->parameters();
  state_.seed = static_cast<uint64_t>(config_.run.seed);
  const auto newest = newest_valid_checkpoint(directory_->checkpoints());
  if (newest) {
    for (const auto& [path, reason] : newest->passed_over) spdlog::warn("passed over {}: {}", path, reason);
    return resume(CheckpointReader(newest->path), newest->path);
  }
  if (config_.run.init_from.empty()) return store.initialize(state_.seed);
  if (is_hf_directory(config_.run.init_from)) return load_hf_weights(store, config_.model, config_.run.init_from);
  const std::string from = find_checkpoint(config_.run.init_from);
  load_weights(store, CheckpointReader(from), from);
  spdlog::info("weights from {}", from);
}

void TrainState::resume(const CheckpointReader& reader, const std::string& path) {
  check_usage(reader.tokenizer_json() == tokenizer_json_,
              "data.tokenizer: {} differs from the tokenizer in {}; a run keeps its tokenizer",
              config_.data.tokenizer.empty() ? "(none)" : config_.data.tokenizer, path);
  ParameterStore& store = model_->parameters();
  load_weights(store, reader, path);
  std::vector<float> values;
  for (const NamedTensor& tensor : store.tensors()) {
    values.resize(static_cast<size_t>(tensor.elements()));
    for (const auto& [group, flat] :
         {std::pair(Group::exp_avg, &optimizer_->exp_avg()), std::pair(Group::exp_avg_sq, &optimizer_->exp_avg_sq())}) {
      if (!reader.has(group, tensor.path)) continue;  // an imported checkpoint holds weights alone
      reader.read(group, tensor.path, values.data());
      const View to = part(*flat, tensor);
      context_->copy_from_host(to.data, values.data(), to.bytes());
    }
  }
  state_ = reader.state();
  spdlog::info("resuming from {} (step {})", path, state_.step);
}

void TrainState::take_from_root() {
  if (host_->size() == 1) return;
  state_ = host_->from_root(state_);
  ParameterStore& store = model_->parameters();
  for (const Tensor* flat : {&store.master(), &optimizer_->exp_avg(), &optimizer_->exp_avg_sq()})
    ranks().broadcast(flat->view());
  ranks().wait();
  store.refresh_working();
}

void TrainState::save() const {
  const ParameterStore& store = model_->parameters();
  CheckpointContents contents;
  contents.state = state_;
  contents.config_yaml = resolved_yaml(config_, false);
  contents.tokenizer_json = tokenizer_json_;
  for (const NamedTensor& tensor : store.tensors()) {
    contents.model.push_back(
        {tensor.path, tensor.shape(), [&store, &tensor](float* target) { store.read(tensor, target); }});
    const auto moment = [this, &tensor](const Tensor& flat) {
      return [this, &tensor, &flat](float* target) {
        const View from = part(flat, tensor);
        context_->copy_to_host(target, from.data, from.bytes());
      };
    };
    contents.exp_avg.push_back({tensor.path, tensor.shape(), moment(optimizer_->exp_avg())});
    contents.exp_avg_sq.push_back({tensor.path, tensor.shape(), moment(optimizer_->exp_avg_sq())});
  }
  save_measured_choices(*context_, directory_->file(kMeasuredChoices));
  const CheckpointConfig& policy = config_.train.checkpoint;
  write_checkpoint(checkpoint_path(directory_->checkpoints(), state_.step), contents);
  prune_checkpoints(directory_->checkpoints(), policy.keep_last, policy.keep_every);
}

}  // namespace egmla

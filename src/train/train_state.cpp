#include "train/train_state.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>

#include "data/prepared.h"
#include "infer/device.h"
#include "infer/hf_import.h"
#include "infer/trained_model.h"
#include "kernels/elementwise.h"
#include "train/memory_plan.h"
#include "train/spike_guard.h"

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
  open_text();
  open_data();
  if (host.is_root()) directory_ = std::make_unique<RunDirectory>(config_);
  open_model();
  load();
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
  model_->set_fp8(trains_in_fp8(config_.run.precision, *context_));
  ParameterStore& store = model_->parameters();
  context_->set_memory_advice(
      [this, dtype,
       sequences = config_.train.batch_tokens / config_.data.sequence_length / host_->size()](int64_t capacity) {
        return memory_advice(config_, context_->is_cpu(), dtype, micro_batch_size_, sequences, capacity, host_->size());
      });
  std::vector<Bucket> buckets = plan_buckets(store, (config_.parallel.bucket_mb << 20) / int64_t{sizeof(float)});
  model_->allocate(*context_, dtype, parts_to_update(buckets, host_->rank(), config_.parallel.zero_stage));
  const GateConfig& gate = config_.model.attention.gate;
  optimizer_ = std::make_unique<AdamWOptimizer>(store, config_.train.optimizer, gate.lr_scale, gate.weight_decay,
                                                static_cast<uint64_t>(config_.run.seed));
  sync_ = std::make_unique<GradientSync>(store, ranks(), std::move(buckets));
  sync_->attach(*optimizer_);
}

// The root reads; tensors travel whole, and each rank keeps what it updates of them.
void TrainState::load() {
  ParameterStore& store = model_->parameters();
  std::optional<CheckpointReader> resumed;
  if (host_->is_root()) resumed = load_weights_or_initialize();
  state_ = host_->from_root(state_);
  ranks().broadcast(store.image().view());
  ranks().wait();
  store.refresh_working();
  if (!host_->from_root(int{resumed.has_value()})) return;
  const CheckpointReader* reader = resumed ? &*resumed : nullptr;
  load_moment(reader, Group::exp_avg, optimizer_->exp_avg());
  load_moment(reader, Group::exp_avg_sq, optimizer_->exp_avg_sq());
}

bool TrainState::go_back(int64_t batch) {
  saver_.wait();
  sync_->finish_weights();
  CheckpointState wanted = state_;
  const bool possible =
      leave_out(batch, wanted) && host_->is_root() && !list_checkpoints(directory_->checkpoints()).empty();
  if (!host_->from_root(int{possible})) return false;
  load();
  state_.rollbacks = wanted.rollbacks;
  state_.skipped_batches = wanted.skipped_batches;
  return true;
}

// Returns the checkpoint that the run goes on from.
std::optional<CheckpointReader> TrainState::load_weights_or_initialize() {
  ParameterStore& store = model_->parameters();
  state_.seed = static_cast<uint64_t>(config_.run.seed);
  const auto newest = newest_valid_checkpoint(directory_->checkpoints());
  if (newest) {
    for (const auto& [path, reason] : newest->passed_over) spdlog::warn("passed over {}: {}", path, reason);
    return open_checkpoint(newest->path);
  }
  if (config_.run.init_from.empty()) {
    store.initialize(state_.seed);
  } else if (is_hf_directory(config_.run.init_from)) {
    load_hf_weights(store, config_.model, config_.run.init_from);
  } else {
    const std::string from = find_checkpoint(config_.run.init_from);
    load_weights(store, CheckpointReader(from), from);
    spdlog::info("weights from {}", from);
  }
  return std::nullopt;
}

CheckpointReader TrainState::open_checkpoint(const std::string& path) {
  CheckpointReader reader(path);
  check_usage(reader.tokenizer_json() == tokenizer_json_,
              "data.tokenizer: {} differs from the tokenizer in {}; a run keeps its tokenizer",
              config_.data.tokenizer.empty() ? "(none)" : config_.data.tokenizer, path);
  load_weights(model_->parameters(), reader, path);
  state_ = reader.state();
  spdlog::info("resuming from {} (step {})", path, state_.step);
  return reader;
}

void TrainState::load_moment(const CheckpointReader* reader, Group group, const Tensor& moment) {
  const ParameterStore& store = model_->parameters();
  const bool in_place = !store.shared_out() && moment.dtype() == DType::f32;
  const Tensor& whole = in_place ? moment : store.grad();
  launch(*context_, Fill{.out = whole.view(), .value = 0});
  std::vector<float> values;
  for (const NamedTensor& tensor : store.tensors()) {
    if (!reader || !reader->has(group, tensor.path)) continue;  // an imported checkpoint holds weights alone
    values.resize(static_cast<size_t>(tensor.elements()));
    reader->read(group, tensor.path, values.data());
    const View to = part(whole, tensor);
    context_->copy_from_host(to.data, values.data(), to.bytes());
  }
  ranks().broadcast(whole.view());
  ranks().wait();
  if (!in_place) store.keep_own(whole, moment);
}

void TrainState::save() {
  saver_.wait();
  const auto copy_whole = [this](const Tensor& whole, std::vector<float>& target) {
    if (!host_->is_root()) return;
    target.resize(static_cast<size_t>(whole.shape().elements()));
    context_->copy_to_host(target.data(), whole.view().data, whole.view().bytes());
  };
  copy_whole(sync_->collect_master(), saved_model_);
  copy_whole(sync_->collect(optimizer_->exp_avg()), saved_exp_avg_);
  copy_whole(sync_->collect(optimizer_->exp_avg_sq()), saved_exp_avg_sq_);
  if (!host_->is_root()) return;
  CheckpointContents contents;
  contents.state = state_;
  contents.config_yaml = resolved_yaml(config_, false);
  contents.tokenizer_json = tokenizer_json_;
  for (const NamedTensor& tensor : model_->parameters().tensors()) {
    const auto source = [&tensor](const std::vector<float>& whole) {
      return TensorSource{tensor.path, tensor.shape(), [&tensor, &whole](float* target) {
                            std::copy_n(whole.begin() + tensor.offset, tensor.elements(), target);
                          }};
    };
    contents.model.push_back(source(saved_model_));
    contents.exp_avg.push_back(source(saved_exp_avg_));
    contents.exp_avg_sq.push_back(source(saved_exp_avg_sq_));
  }
  save_measured_choices(*context_, directory_->file(kMeasuredChoices));
  saver_.start(
      [contents = std::move(contents), directory = directory_->checkpoints(), policy = config_.train.checkpoint] {
        write_checkpoint(checkpoint_path(directory, contents.state.step), contents);
        prune_checkpoints(directory, policy.keep_last, policy.keep_every);
      });
}

}  // namespace egmla

// One step: micro-batches through forward and backward, gradients summed in place, one clipped AdamW update.
// Samples of step s are [s S, (s + 1) S), S = batch_tokens / T, whatever the micro-batch size; each rank has an equal
// share of them, in order. The root rank alone owns the run directory; all ranks take every decision together.
#include "train/trainer.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "dist/watchdog.h"
#include "dist/weight_check.h"
#include "infer/decoder.h"
#include "infer/evaluator.h"
#include "optim/schedule.h"
#include "train/card.h"
#include "train/gradients.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/run_stats.h"
#include "train/signals.h"
#include "train/spike_guard.h"
#include "train/step_profile.h"
#include "train/tensorboard.h"
#include "train/train_state.h"

namespace egmla {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// log.txt receives what the console shows, for the lifetime of this object.
class RunLog {
 public:
  explicit RunLog(const std::string& path) : sink_(std::make_shared<spdlog::sinks::basic_file_sink_mt>(path)) {
    spdlog::default_logger()->sinks().push_back(sink_);
    spdlog::default_logger()->flush_on(spdlog::level::info);
  }
  RunLog(const RunLog&) = delete;
  RunLog& operator=(const RunLog&) = delete;
  ~RunLog() {
    auto& sinks = spdlog::default_logger()->sinks();
    sinks.erase(std::remove(sinks.begin(), sinks.end(), sink_), sinks.end());
  }

 private:
  spdlog::sink_ptr sink_;
};

// What a run writes down; the root rank's alone.
struct Records {
  Records(const RunDirectory& directory, int64_t resumed_step)
      : log(directory.file("log.txt")),
        metrics(directory.file("metrics.jsonl"), resumed_step),
        tensorboard(directory.file("tensorboard"), resumed_step) {}

  RunLog log;
  MetricsLog metrics;
  TensorboardWriter tensorboard;
};

// A step whose kernels are launched; its scalars are on their way to the host.
struct LaunchedStep {
  int64_t step = 0;
  double lr = 0;
  std::vector<std::unique_ptr<HostCopy>> losses;  // parts of the mean
  std::unique_ptr<HostCopy> grad_norm;
};

std::unique_ptr<HostCopy> read_later(const Tensor& scalar) {
  return scalar.context().copy_to_host_later(scalar.view().data, sizeof(float));
}

double value_of(HostCopy& scalar) {
  return static_cast<double>(*static_cast<const float*>(scalar.wait()));
}

class Trainer {
 public:
  Trainer(const Config& config, Communicator& ranks, Watchdog& watchdog);
  void run();

 private:
  std::vector<Tensor> compute_gradients(int64_t step);
  LaunchedStep launch_step(int64_t step);
  void finish_launched(bool last);
  bool goes_back(int64_t step, double loss);
  bool follows_return(int64_t& step);
  void watch_losses();
  void evaluate_into(MetricsRow& row);
  void write_sample(int64_t step);
  void save();
  void finish_saving();
  void check_weights(int64_t step);
  void watch(const std::string& phase, double seconds, const char* key);
  void report(const MetricsRow& row, bool last);
  [[noreturn]] void explain_non_finite(int64_t step, double loss, double norm);
  int64_t first_sample(int64_t step) { return batch_of_step(step, state_.state()) * sequences_; }
  bool due(int64_t every, int64_t step, bool last) const { return every > 0 && (step % every == 0 || last); }

  Communicator& ranks_;
  Watchdog& watchdog_;
  TrainState state_;
  const TrainConfig& train_;
  const ParallelConfig& parallel_;
  std::optional<Records> records_;
  std::optional<SpikeGuard> spikes_;      // the root's, where train.spike is on
  bool went_back_ = false;                // the state is that of an earlier step again
  std::optional<LaunchedStep> launched_;  // the newest step, while the device may still work on it
  int64_t sequences_;                     // S, of a global step
  int64_t last_step_;                     // of this launch
  bool reads_late_;                       // a step's scalars are read while the device works on the next one
  double flops_per_token_, earlier_time_ = 0, trained_time_ = 0;
  std::optional<double> peak_;
  Clock::time_point step_start_;
  // Destroyed first: from the deadline on the watchdog keeps this thread from leaving before it.
  struct Attached {
    Watchdog* watchdog;
    ~Attached() { watchdog->watch_over(nullptr); }
  } attached_{&watchdog_};
};

Trainer::Trainer(const Config& config, Communicator& ranks, Watchdog& watchdog)
    : ranks_(ranks),
      watchdog_(watchdog),
      state_(config, ranks),
      train_(state_.config().train),
      parallel_(state_.config().parallel),
      sequences_(train_.batch_tokens / state_.config().data.sequence_length),
      last_step_(train_.stop_at_step > 0 ? std::min(train_.stop_at_step, train_.max_steps) : train_.max_steps),
      reads_late_(!state_.context().is_cpu()),
      flops_per_token_(state_.model().flops_per_token(state_.config().data.sequence_length)),
      peak_(peak_flops(state_.context().name(), state_.config().run.peak_tflops)) {
  watchdog_.watch_over(&state_.ranks());
  const bool samples = train_.sample.every > 0 && !train_.sample.prompt.empty();
  check_usage(!samples || state_.tokenizer(), "train.sample: text samples need data.tokenizer");
  if (!ranks_.is_root()) return;
  records_.emplace(state_.directory(), state_.state().step);
  watch_losses();
  const auto rows = read_metrics(state_.directory().file("metrics.jsonl"));
  if (!rows.empty()) earlier_time_ = rows.back().time;
  write_run_stats(state_.directory().file("stats.json"), state_.model(), state_.config().data.sequence_length,
                  state_.context().name());
  const ParameterStore& store = state_.model().parameters();
  spdlog::info("{} on {}{}: {} parameters ({} in gate tables), {} training tokens, {} tokens a step",
               state_.config().run.name, ranks_.size() > 1 ? fmt::format("{} x ", ranks_.size()) : "",
               state_.context().name(), format_count(static_cast<double>(store.elements())),
               format_count(static_cast<double>(store.elements(ParameterGroup::gate_table))),
               format_count(static_cast<double>(state_.data().tokens())), train_.batch_tokens);
}

// Gradients of the mean loss of a step's samples; returns the parts of that loss which are this rank's.
std::vector<Tensor> Trainer::compute_gradients(int64_t step) {
  const int64_t T = state_.config().data.sequence_length, micro = state_.micro_batch_size();
  const int64_t share = sequences_ / ranks_.size(), begin = first_sample(step) + ranks_.rank().number * share;
  std::vector<HostBatch> batches;
  std::vector<int32_t> ids(static_cast<size_t>(T + 1));
  for (int64_t first = 0; first < share; first += micro) {
    HostBatch& batch = batches.emplace_back();
    for (int64_t i = first; i < std::min(share, first + micro); ++i) {
      state_.data().read(begin + i, ids.data());
      state_.builder().append(batch, ids.data(), T + 1);
    }
  }
  return accumulate_gradients(state_.model(), batches, &state_.sync());
}

LaunchedStep Trainer::launch_step(int64_t step) {
  LaunchedStep launched{.step = step,
                        .lr = learning_rate(train_.optimizer, train_.schedule, step, train_.max_steps),
                        .losses = {},
                        .grad_norm = {}};
  for (const Tensor& part : compute_gradients(step)) launched.losses.push_back(read_later(part));
  launched.grad_norm = read_later(state_.optimizer().measure_grad_norm(!train_.skip_nonfinite));
  state_.optimizer().step(launched.lr, step, train_.grad_clip);  // a non-finite norm changes nothing
  return launched;
}

// Waits for the scalars of the launched step and records it.
void Trainer::finish_launched(bool last) {
  if (!launched_) return;
  const LaunchedStep launched = *std::exchange(launched_, std::nullopt);
  double loss = 0;
  for (const auto& part : launched.losses) loss += value_of(*part);
  loss = ranks_.sum(loss);
  const double norm = value_of(*launched.grad_norm);
  went_back_ = goes_back(launched.step, loss);
  if (went_back_) return;
  CheckpointState& state = state_.state();
  state.step = launched.step;
  state.tokens += train_.batch_tokens;
  state.samples = first_sample(launched.step) + sequences_;
  if (!std::isfinite(loss) || !std::isfinite(norm)) {
    if (!train_.skip_nonfinite) explain_non_finite(launched.step, loss, norm);
    ++state.skipped_steps;
    spdlog::warn("step {}: loss {} and gradient norm {} are not finite; skipped ({} so far)", launched.step, loss, norm,
                 state.skipped_steps);
  }
  const double elapsed = seconds_since(step_start_);
  trained_time_ += elapsed;
  MetricsRow row{.step = launched.step, .tokens = state.tokens, .loss = loss, .lr = launched.lr, .grad_norm = norm};
  row.tokens_per_s = static_cast<double>(train_.batch_tokens) / elapsed;
  if (peak_) row.mfu = flops_per_token_ * row.tokens_per_s / (*peak_ * ranks_.size());
  row.time = earlier_time_ + trained_time_;
  report(row, last);
  step_start_ = Clock::now();
}

// The losses up to the present step, as metrics.jsonl has them.
void Trainer::watch_losses() {
  if (!records_ || train_.spike.z <= 0) return;
  spikes_.emplace(train_.spike);
  for (const MetricsRow& row : read_metrics(state_.directory().file("metrics.jsonl"))) spikes_->add(row.loss);
}

// On a spike: the newest checkpoint again, without the batch it came from. The root decides for all.
bool Trainer::goes_back(int64_t step, double loss) {
  if (train_.spike.z <= 0) return false;
  const int64_t batch = batch_of_step(step, state_.state()), rollbacks = state_.state().rollbacks;
  if (!ranks_.from_root(int{spikes_ && spikes_->is_spike(loss)})) {
    if (spikes_) spikes_->add(loss);
    return false;
  }
  const std::string what = fmt::format("step {}: loss {:.4f} is {:.1f} standard deviations above the {} before it",
                                       step, loss, spikes_ ? spikes_->distance(loss) : 0, train_.spike.window);
  if (rollbacks >= train_.spike.max_rollbacks || !state_.go_back(batch)) {
    spdlog::warn(
        "{}; going on: {}", what,
        rollbacks >= train_.spike.max_rollbacks ? "train.spike.max_rollbacks is reached" : "no checkpoint yet");
    if (spikes_) spikes_->add(loss);
    return false;
  }
  spdlog::warn("{}; back to step {} without batch {} (rollback {} of {})", what, state_.state().step, batch,
               rollbacks + 1, train_.spike.max_rollbacks);
  if (records_) {
    records_.reset();
    records_.emplace(state_.directory(), state_.state().step);
  }
  watch_losses();
  return true;
}

// Once after a return: the loop goes on behind the checkpoint's step.
bool Trainer::follows_return(int64_t& step) {
  if (!std::exchange(went_back_, false)) return false;
  step = state_.state().step;
  step_start_ = Clock::now();
  return true;
}

void Trainer::report(const MetricsRow& measured, bool last) {
  MetricsRow row = measured;
  if (row.step == 1 || due(train_.log.every, row.step, last)) {
    const double per_step = static_cast<double>(train_.batch_tokens) / row.tokens_per_s;
    spdlog::info("{}", progress_line({.step = row.step,
                                      .total = train_.max_steps,
                                      .loss = row.loss,
                                      .lr = row.lr,
                                      .grad_norm = row.grad_norm,
                                      .tokens_per_s = row.tokens_per_s,
                                      .mfu = row.mfu,
                                      .seconds_left = per_step * static_cast<double>(last_step_ - row.step)}));
  }
  if (state_.validation() && due(train_.eval.every, row.step, row.step == train_.max_steps)) evaluate_into(row);
  if (!records_) return;
  records_->metrics.append(row);
  std::vector<std::pair<std::string, double>> values = {
      {"loss", row.loss}, {"lr", row.lr}, {"grad_norm", row.grad_norm}, {"tokens_per_s", row.tokens_per_s}};
  if (row.mfu) values.emplace_back("mfu", *row.mfu);
  if (row.val_loss) values.emplace_back("val_loss", *row.val_loss);
  if (row.val_bits_per_byte) values.emplace_back("val_bits_per_byte", *row.val_bits_per_byte);
  records_->tensorboard.scalars(row.step, values);
}

void Trainer::evaluate_into(MetricsRow& row) {
  EvaluationOptions options{
      .micro_batch_size = state_.micro_batch_size(), .batches = train_.eval.batches, .communicator = &ranks_};
  if (state_.tokenizer())
    options.bytes_of = [this](int32_t id) { return static_cast<int64_t>(state_.tokenizer()->bytes_of(id).size()); };
  const Evaluation result = evaluate(state_.model(), *state_.validation(), state_.builder(), options);
  row.val_bits_per_byte = result.bits_per_byte;
  row.val_loss = result.loss;
  spdlog::info("step {}: validation loss {:.4f} (perplexity {:.2f}, {} tokens)", row.step, result.loss,
               result.perplexity, result.tokens);
}

void Trainer::write_sample(int64_t step) {
  constexpr int64_t kSampleTokens = 64;
  const Tokenizer& tokenizer = *state_.tokenizer();
  GenerationOptions options{.max_new_tokens = kSampleTokens, .sampling = {.temperature = 0.8, .top_k = 50}};
  options.sampling.seed = state_.state().seed + static_cast<uint64_t>(step);
  options.end_of_text = tokenizer.end_of_text();
  std::vector<int32_t> ids = generate(state_.model(), tokenizer.encode(train_.sample.prompt), options);
  // A model may have more ids than its tokenizer (vocabularies rounded up); those stand for nothing.
  std::erase_if(ids, [&](int32_t id) { return id >= tokenizer.vocab_size(); });
  const std::string text = train_.sample.prompt + tokenizer.decode(ids);
  state_.directory().append_sample(step, text);
  spdlog::info("step {}: {}", step, text);
}

void Trainer::watch(const std::string& phase, double seconds, const char* key) {
  if (ranks_.size() > 1) watchdog_.enter(fmt::format("rank {}: {}", ranks_.rank().number, phase), seconds, key);
}

// The others wait for the root, so that a slow disk does not count against their next step's deadline.
void Trainer::save() {
  watch(fmt::format("checkpoint of step {}", state_.state().step), parallel_.deadlines.checkpoint,
        "parallel.deadlines.checkpoint");
  state_.save();
  ranks_.barrier();
}

void Trainer::finish_saving() {
  watch(fmt::format("checkpoint of step {}", state_.state().step), parallel_.deadlines.checkpoint,
        "parallel.deadlines.checkpoint");
  state_.finish_saving();
  ranks_.barrier();
}

// Where each rank keeps a part of the master weights, the working copies are what all must have alike.
void Trainer::check_weights(int64_t step) {
  state_.sync().finish_weights();
  const ParameterStore& store = state_.model().parameters();
  check_equal_weights(store.keeps_whole_master() ? store.master() : store.working(), ranks_, step);
}

void Trainer::explain_non_finite(int64_t step, double loss, double norm) {
  const ParameterStore& store = state_.model().parameters();
  std::vector<std::pair<double, std::string>> largest;
  compute_gradients(step);  // the next step may have written its own; the weights are still those of this one
  const std::vector<float> grads = store.grad().to_host<float>();
  for (const NamedTensor& tensor : store.tensors()) {
    double size = 0;
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const double value = std::abs(static_cast<double>(grads[static_cast<size_t>(tensor.offset + i)]));
      size = std::isfinite(value) ? std::max(size, value) : INFINITY;
    }
    largest.emplace_back(size, tensor.path);
  }
  std::sort(largest.rbegin(), largest.rend());
  std::string names;
  for (size_t i = 0; i < std::min<size_t>(3, largest.size()); ++i)
    names += fmt::format("{}{} (largest gradient {:.3g})", i ? ", " : "", largest[i].second, largest[i].first);
  fail(
      "train: step {}: loss {} and gradient norm {} are not finite; its batch begins at {}; largest: {}; lower "
      "train.optimizer.lr or set train.skip_nonfinite",
      step, loss, norm, state_.data().locate(first_sample(step)), names);
}

void Trainer::run() {
  CheckpointState& state = state_.state();
  if (train_.max_steps == 0 && state.step == 0) {
    save();
    return finish_saving();
  }
  if (state.step >= last_step_) {
    spdlog::info("nothing to do: step {} of {} is reached", state.step, last_step_);
    return;
  }
  const StopSignals signals;
  step_start_ = Clock::now();
  for (int64_t step = state.step + 1; step <= last_step_; ++step) {
    watch(fmt::format("step {}", step), parallel_.deadlines.step, "parallel.deadlines.step");
    LaunchedStep launched = with_step_profile(state_.context(), train_, step, [&] { return launch_step(step); });
    finish_launched(false);  // the step before, while the device works on this one
    if (follows_return(step)) continue;
    launched_ = std::move(launched);
    const int signal = ranks_.maximum(StopSignals::received());
    const bool last = step == last_step_ || signal, saves = due(train_.checkpoint.every, step, last) || last;
    const bool sample =
        state_.tokenizer() && !train_.sample.prompt.empty() && due(train_.sample.every, step, step == train_.max_steps);
    const bool compares = due(parallel_.check_every, step, false) && ranks_.size() > 1;
    const bool evaluates = state_.validation() && due(train_.eval.every, step, step == train_.max_steps);
    if (!reads_late_ || saves || sample || compares || evaluates) finish_launched(last);
    if (follows_return(step)) continue;
    state_.raise_save_failure();
    if (compares) check_weights(step);
    if (sample && ranks_.is_root()) write_sample(step);
    if (saves) save();
    if (!launched_) step_start_ = Clock::now();
    if (signal) {
      finish_saving();
      spdlog::info("signal {}: saved step {}; run the same command to go on", signal, step);
      return;
    }
  }
  finish_saving();
  spdlog::info("{} at step {}; checkpoint in {}", last_step_ == train_.max_steps ? "finished" : "stopped", last_step_,
               state_.config().run.dir + "/checkpoints");
}

}  // namespace

void train(const Config& config) {
  const int processes = launched_processes();
  Watchdog watchdog(processes);
  watchdog.enter(fmt::format("start of {} processes", processes), config.parallel.deadlines.start,
                 "parallel.deadlines.start");
  const auto ranks = connect_processes();
  if (!ranks->is_root()) spdlog::set_level(spdlog::level::err);
  Trainer(config, *ranks, watchdog).run();
}

}  // namespace egmla

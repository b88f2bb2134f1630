#include "lab/bench_train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "core/rng.h"
#include "dist/gradient_sync.h"
#include "dist/watchdog.h"
#include "infer/device.h"
#include "io/config_keys.h"
#include "optim/adamw.h"
#include "train/card.h"
#include "train/gradients.h"
#include "train/memory_plan.h"

namespace egmla {
namespace {

constexpr int64_t kProfiledSteps = 3;

std::vector<HostBatch> random_batches(const Config& config, uint64_t seed) {
  const int64_t T = config.data.sequence_length, sequences = config.train.batch_tokens / T;
  const BatchBuilder builder(T, std::nullopt);
  std::vector<HostBatch> batches;
  std::vector<int32_t> ids(static_cast<size_t>(T + 1));
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    if (sequence % config.train.micro_batch_size == 0) batches.emplace_back();
    for (size_t t = 0; t < ids.size(); ++t)
      ids[t] = static_cast<int32_t>(uniform(seed, t, static_cast<uint64_t>(sequence)) *
                                    static_cast<double>(config.model.vocab_size));
    builder.append(batches.back(), ids.data(), T + 1);
  }
  return batches;
}

// A model that trains on one batch again and again, with all the processes of this launch.
class Bench {
 public:
  explicit Bench(const Config& config);
  ~Bench() { watchdog_.watch_over(nullptr); }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  // One optimizer step; returns its loss's parts.
  std::vector<Tensor> step();
  // Median seconds of a step, those of the slowest process.
  double time(int64_t steps);
  // Seconds a step where the host waits for the last one alone.
  double time_running(int64_t steps);
  TrainTiming describe(double seconds);

  Context& context() { return *context_; }
  Communicator& host() { return *host_; }
  GradientSync& sync() { return *sync_; }
  ExchangeTiming exchange();

 private:
  const Config& config_;
  Watchdog watchdog_;
  std::unique_ptr<Communicator> host_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Communicator> device_ranks_;
  DType dtype_ = DType::f32;
  Transformer model_;
  std::unique_ptr<AdamWOptimizer> optimizer_;
  std::unique_ptr<GradientSync> sync_;
  std::vector<HostBatch> batches_;
  int64_t steps_ = 0;
};

Bench::Bench(const Config& config) : config_(config), watchdog_(launched_processes()), model_(config.model) {
  watchdog_.enter("bench train: start", config.parallel.deadlines.start, "parallel.deadlines.start");
  host_ = connect_processes();
  context_ = open_device(config.run, host_->rank());
  device_ranks_ = connect_devices(*context_, *host_);
  Communicator& ranks = device_ranks_ ? *device_ranks_ : *host_;
  watchdog_.watch_over(&ranks);
  set_attention_backend(*context_, config.run.attention_backend);
  dtype_ = compute_dtype(config.run.precision, *context_);
  model_.set_recompute(config.train.recompute);
  model_.set_fp8(trains_in_fp8(config.run.precision, *context_));
  context_->set_memory_advice([this](int64_t capacity) {
    return memory_advice(config_, context_->is_cpu(), dtype_, config_.train.micro_batch_size,
                         config_.train.batch_tokens / config_.data.sequence_length, capacity, host_->size());
  });
  ParameterStore& store = model_.parameters();
  std::vector<Bucket> buckets = plan_buckets(store, (config.parallel.bucket_mb << 20) / int64_t{sizeof(float)});
  model_.allocate(*context_, dtype_, parts_to_update(buckets, ranks.rank(), config.parallel.zero_stage));
  store.initialize(static_cast<uint64_t>(config.run.seed));
  optimizer_ =
      std::make_unique<AdamWOptimizer>(store, config.train.optimizer, 1, 0, static_cast<uint64_t>(config.run.seed));
  sync_ = std::make_unique<GradientSync>(store, ranks, std::move(buckets));
  sync_->attach(*optimizer_);
  batches_ = random_batches(config, static_cast<uint64_t>(config.run.seed + host_->rank().number));
}

std::vector<Tensor> Bench::step() {
  watchdog_.enter("bench train: a step", config_.parallel.deadlines.step, "parallel.deadlines.step");
  std::vector<Tensor> losses = accumulate_gradients(model_, batches_, sync_.get());
  optimizer_->measure_grad_norm();
  optimizer_->step(config_.train.optimizer.lr, ++steps_, config_.train.grad_clip);
  return losses;
}

double Bench::time(int64_t steps) {
  std::vector<double> times;
  for (int64_t i = 0; i < steps; ++i) {
    context_->synchronize();
    host_->barrier();
    const auto start = std::chrono::steady_clock::now();
    step();
    context_->synchronize();
    times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  return host_->maximum(times[times.size() / 2]);
}

double Bench::time_running(int64_t steps) {
  context_->synchronize();
  host_->barrier();
  const auto start = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < steps; ++i) step();
  context_->synchronize();
  const std::chrono::duration<double> all = std::chrono::steady_clock::now() - start;
  return host_->maximum(all.count() / static_cast<double>(steps));
}

TrainTiming Bench::describe(double seconds) {
  TrainTiming out;
  out.gpus = host_->size();
  out.is_root = host_->is_root();
  out.device = context_->name();
  out.dtype = config_.run.precision == Precision::fp8 ? "fp8" : name_of(dtype_);
  out.parameters = model_.parameters().elements();
  out.matmul_parameters = model_.matmul_parameters();
  out.batch = config_.train.micro_batch_size;
  out.sequence_length = config_.data.sequence_length;
  out.accumulation = static_cast<int64_t>(batches_.size());
  out.ms = 1e3 * seconds;
  out.tokens_per_s = static_cast<double>(config_.train.batch_tokens) / seconds;
  const double flops = model_.flops_per_token(config_.data.sequence_length) * out.tokens_per_s;
  out.tflops = flops / 1e12;
  if (const auto peak = peak_flops(context_->name(), config_.run.peak_tflops)) out.mfu = flops / *peak;
  out.peak_gib = static_cast<double>(host_->maximum(context_->memory().peak)) / (1 << 30);
  return out;
}

ExchangeTiming Bench::exchange() {
  const ParameterStore& store = model_.parameters();
  const Tensor& weights = store.working().defined() ? store.working() : store.master();
  return {.zero_stage = config_.parallel.zero_stage,
          .buckets = static_cast<int64_t>(sync_->buckets()),
          .overlapped = sync_->overlapped(),
          .gradient_bytes = static_cast<double>(store.grad().view().bytes()),
          .weight_bytes = store.shared_out() ? static_cast<double>(weights.view().bytes()) : 0.0};
}

}  // namespace

TrainTiming bench_train(const Config& config, int64_t warmup, int64_t steps, bool profile, bool floor) {
  Bench bench(config);
  for (int64_t i = 0; i < warmup; ++i) bench.step();
  const double seconds = bench.time(steps);
  TrainTiming out = bench.describe(seconds);
  out.running_ms = 1e3 * bench.time_running(steps);
  for (const Tensor& part : bench.step()) out.loss += static_cast<double>(part.to_host<float>().front());
  out.loss = bench.host().sum(out.loss);
  Profile times_by_kernel;
  const bool measures_floor = floor && out.gpus == 1;
  if (profile || measures_floor) {
    const ProfileScope scope(bench.context(), times_by_kernel);
    for (int64_t i = 0; i < kProfiledSteps; ++i) bench.step();
  }
  if (profile) out.profile = times_by_kernel.table(kProfiledSteps);
  if (measures_floor) out.floor = measure_floor(bench.context(), times_by_kernel, kProfiledSteps);
  if (out.gpus > 1) {
    out.exchange = bench.exchange();
    bench.sync().set_silent(true);
    out.exchange->silent_ms = 1e3 * bench.time_running(steps);
  }
  return out;
}

std::string train_timing_text(const TrainTiming& t) {
  std::string out =
      fmt::format("{}, {}: {} parameters, B {} T {} x {}\n{:.2f} ms a step, {:.0f} tokens/s, {:.1f} TFLOP/s", t.device,
                  t.dtype, t.parameters, t.batch, t.sequence_length, t.accumulation, t.ms, t.tokens_per_s, t.tflops);
  if (t.mfu) out += fmt::format(", MFU {:.1f}%", 100 * *t.mfu);
  out += fmt::format(", peak {:.2f} GiB, loss {:.3f}\n", t.peak_gib, t.loss);
  out += fmt::format("{:.2f} ms a step where the host runs ahead, as in training\n", t.running_ms);
  if (t.exchange) {
    const ExchangeTiming& e = *t.exchange;
    out += fmt::format(
        "{} processes, {:.0f} tokens/s together, ZeRO {}: {:.2f} ms without exchange, {:.2f} ms exposed; {} of {} "
        "buckets "
        "left during backward\n",
        t.gpus, t.gpus * t.tokens_per_s, e.zero_stage, e.silent_ms, t.exposed_ms(), e.overlapped, e.buckets);
  }
  if (!t.floor) return out + t.profile;
  out += fmt::format("floor {:.2f} ms, the step takes {:.2f} times that\n", t.floor->floor_ms(), t.floor_ratio());
  const auto line = [&](const char* name, const FloorPart& part, const std::string& what) {
    out += fmt::format("  {:<18} {:>10.3f} ms, floor {:>10.3f} ms: {}\n", name, part.ms, part.floor_ms, what);
  };
  line("products", t.floor->products, "each timed alone");
  line("attention", t.floor->attention, "timed alone");
  line("everything else", t.floor->other,
       fmt::format("{:.2f} GB at the {:.0f} GB/s of a copy", t.floor->other_gb, t.floor->copy_gb_per_s));
  return out + t.profile;
}

std::string train_timing_json(const Config& config, const TrainTiming& t) {
  const auto part = [](const FloorPart& p) { return nlohmann::ordered_json{{"ms", p.ms}, {"floor_ms", p.floor_ms}}; };
  nlohmann::ordered_json out = {{"name", config.run.name},
                                {"attn", attention_type_name(config.model.attention.type)},
                                {"device", t.device},
                                {"dtype", t.dtype},
                                {"gpus", t.gpus},
                                {"params", t.parameters},
                                {"matmul_params", t.matmul_parameters},
                                {"batch", t.batch},
                                {"seq", t.sequence_length},
                                {"accumulation", t.accumulation},
                                {"ms", t.ms},
                                {"running_ms", t.running_ms},
                                {"tokens_per_s_per_gpu", t.tokens_per_s},
                                {"tflops", t.tflops},
                                {"peak_gib", t.peak_gib},
                                {"loss", t.loss}};
  if (t.floor) {
    out["floor_ms"] = t.floor->floor_ms();
    out["floor_ratio"] = t.floor_ratio();
    out["products"] = part(t.floor->products);
    out["attention"] = part(t.floor->attention);
    out["other"] = part(t.floor->other);
    out["other_gb"] = t.floor->other_gb;
    out["copy_gb_per_s"] = t.floor->copy_gb_per_s;
  }
  if (t.exchange) {
    out["zero_stage"] = t.exchange->zero_stage;
    out["silent_ms"] = t.exchange->silent_ms;
    out["exposed_ms"] = t.exposed_ms();
    out["gradient_bytes"] = t.exchange->gradient_bytes;
    out["weight_bytes"] = t.exchange->weight_bytes;
    out["buckets"] = t.exchange->buckets;
    out["overlapped"] = t.exchange->overlapped;
  }
  if (t.mfu) out["mfu"] = *t.mfu;
  return out.dump() + "\n";
}

}  // namespace egmla

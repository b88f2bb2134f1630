#include "lab/bench_train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "core/rng.h"
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

// One optimizer step; returns its loss's parts.
std::vector<Tensor> run_step(Transformer& model, AdamWOptimizer& optimizer, const Config& config,
                             const std::vector<HostBatch>& batches, int64_t step) {
  std::vector<Tensor> losses = accumulate_gradients(model, batches);
  optimizer.measure_grad_norm();
  optimizer.step(config.train.optimizer.lr, step, config.train.grad_clip);
  return losses;
}

}  // namespace

TrainTiming bench_train(const Config& config, int64_t warmup, int64_t steps, bool profile) {
  const auto context = open_device(config.run);
  set_attention_backend(*context, config.run.attention_backend);
  const DType dtype = compute_dtype(config.run.precision, *context);
  Transformer model(config.model);
  model.set_recompute(config.train.recompute);
  context->set_memory_advice([&, cpu = context->is_cpu()](int64_t capacity) {
    return memory_advice(config, cpu, dtype, config.train.micro_batch_size,
                         config.train.batch_tokens / config.data.sequence_length, capacity);
  });
  model.allocate(*context, dtype);
  model.parameters().initialize(static_cast<uint64_t>(config.run.seed));
  AdamWOptimizer optimizer(model.parameters(), config.train.optimizer, 1, 0);
  const std::vector<HostBatch> batches = random_batches(config, static_cast<uint64_t>(config.run.seed));
  std::vector<double> times;
  std::vector<Tensor> losses;
  for (int64_t step = 1; step <= warmup + steps; ++step) {
    context->synchronize();
    const auto start = std::chrono::steady_clock::now();
    losses = run_step(model, optimizer, config, batches, step);
    context->synchronize();
    if (step > warmup) times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  const double seconds = times[times.size() / 2], tokens = static_cast<double>(config.train.batch_tokens);

  TrainTiming out;
  out.device = context->name();
  out.dtype = name_of(dtype);
  out.parameters = model.parameters().elements();
  out.matmul_parameters = model.matmul_parameters();
  out.batch = config.train.micro_batch_size;
  out.sequence_length = config.data.sequence_length;
  out.accumulation = static_cast<int64_t>(batches.size());
  out.ms = 1e3 * seconds;
  out.tokens_per_s = tokens / seconds;
  const double flops = model.flops_per_token(config.data.sequence_length) * out.tokens_per_s;
  out.tflops = flops / 1e12;
  if (const auto peak = peak_flops(context->name(), config.run.peak_tflops)) out.mfu = flops / *peak;
  out.peak_gib = static_cast<double>(context->memory().peak) / (1 << 30);
  for (const Tensor& part : losses) out.loss += static_cast<double>(part.to_host<float>().front());
  Profile times_by_kernel;
  {
    const ProfileScope scope(*context, times_by_kernel);
    for (int64_t i = 0; i < kProfiledSteps; ++i) run_step(model, optimizer, config, batches, warmup + steps + 1 + i);
  }
  if (profile) out.profile = times_by_kernel.table(kProfiledSteps);
  out.floor = measure_floor(*context, times_by_kernel, kProfiledSteps);
  return out;
}

std::string train_timing_text(const TrainTiming& t) {
  std::string out =
      fmt::format("{}, {}: {} parameters, B {} T {} x {}\n{:.2f} ms a step, {:.0f} tokens/s, {:.1f} TFLOP/s", t.device,
                  t.dtype, t.parameters, t.batch, t.sequence_length, t.accumulation, t.ms, t.tokens_per_s, t.tflops);
  if (t.mfu) out += fmt::format(", MFU {:.1f}%", 100 * *t.mfu);
  out += fmt::format(", peak {:.2f} GiB, loss {:.3f}\n", t.peak_gib, t.loss);
  out += fmt::format("floor {:.2f} ms, the step takes {:.2f} times that\n", t.floor.floor_ms(), t.floor_ratio());
  const auto line = [&](const char* name, const FloorPart& part, const std::string& what) {
    out += fmt::format("  {:<18} {:>10.3f} ms, floor {:>10.3f} ms: {}\n", name, part.ms, part.floor_ms, what);
  };
  line("products", t.floor.products, "each timed alone");
  line("attention", t.floor.attention, "timed alone");
  line("everything else", t.floor.other,
       fmt::format("{:.2f} GB at the {:.0f} GB/s of a copy", t.floor.other_gb, t.floor.copy_gb_per_s));
  return out + t.profile;
}

std::string train_timing_json(const Config& config, const TrainTiming& t) {
  const auto part = [](const FloorPart& p) { return nlohmann::ordered_json{{"ms", p.ms}, {"floor_ms", p.floor_ms}}; };
  nlohmann::ordered_json out = {{"name", config.run.name},
                                {"attn", attention_type_name(config.model.attention.type)},
                                {"device", t.device},
                                {"dtype", t.dtype},
                                {"gpus", 1},
                                {"params", t.parameters},
                                {"matmul_params", t.matmul_parameters},
                                {"batch", t.batch},
                                {"seq", t.sequence_length},
                                {"accumulation", t.accumulation},
                                {"ms", t.ms},
                                {"tokens_per_s_per_gpu", t.tokens_per_s},
                                {"tflops", t.tflops},
                                {"peak_gib", t.peak_gib},
                                {"loss", t.loss},
                                {"floor_ms", t.floor.floor_ms()},
                                {"floor_ratio", t.floor_ratio()},
                                {"products", part(t.floor.products)},
                                {"attention", part(t.floor.attention)},
                                {"other", part(t.floor.other)},
                                {"other_gb", t.floor.other_gb},
                                {"copy_gb_per_s", t.floor.copy_gb_per_s}};
  if (t.mfu) out["mfu"] = *t.mfu;
  return out.dump() + "\n";
}

}  // namespace egmla

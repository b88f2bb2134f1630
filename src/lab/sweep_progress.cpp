#include "lab/sweep_progress.h"

#include <algorithm>
#include <chrono>
#include <filesystem>

#include "core/check.h"
#include "core/tensor.h"
#include "io/checkpoint.h"
#include "kernels/matmul.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

constexpr double kGpuSpeed = 100e12;      // FLOP/s, of small models on a card for data centres
constexpr double kShareOfProducts = 0.5;  // training's speed relative to large products' on a CPU

// FLOP/s of a product on this machine's CPU, the best of twenty.
double product_speed() {
  constexpr int64_t kSize = 512;
  Context cpu;
  const Tensor a = Tensor::zeros(cpu, {kSize, kSize}, DType::f32), b = Tensor::zeros(cpu, {kSize, kSize}, DType::f32);
  const Tensor out = Tensor::empty(cpu, {kSize, kSize}, DType::f32);
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    const auto start = std::chrono::steady_clock::now();
    launch(cpu, Matmul{.out = out.view(), .a = a.view(), .b = b.view()});
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kSize * kSize * kSize / passed.count());
  }
  return best;
}

bool ended(const PlannedRun& run) {
  const fs::path dir = run.config.run.dir;
  const int64_t steps = run.config.train.max_steps;
  if (!fs::exists(checkpoint_path((dir / "checkpoints").string(), steps))) return false;
  if (!fs::exists(dir / "metrics.jsonl")) return false;
  const auto rows = read_metrics((dir / "metrics.jsonl").string());
  return !rows.empty() && rows.back().step >= steps;
}

}  // namespace

RunStatus status_of(const PlannedRun& run) {
  RunStatus status;
  const std::string own = run.config.run.dir + "/config.yaml";
  if (!fs::exists(own)) return status;
  const auto differences = config_differences(load_config(own, {}), run.config, resumable_keys());
  check_usage(
      differences.empty(),
      "{}: was made under another configuration; give the sweep another dir, or remove that folder; it differs in: {}",
      run.config.run.dir, fmt::join(differences, "; "));
  if (!ended(run)) return status;
  status.state = RunState::finished;
  status.data = load_runs({run.config.run.dir}).front();
  return status;
}

Speed expected_speed(const SweepPlan& plan, const std::vector<RunStatus>& statuses) {
  double flops = 0, seconds = 0;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    if (!statuses[i].data) continue;
    const MetricsRow& last = statuses[i].data->rows.back();
    if (!(last.time > 0)) continue;
    flops += plan.runs[i].size.flops_per_token * static_cast<double>(last.tokens);
    seconds += last.time;
  }
  if (seconds > 0) return {flops / seconds, "by its finished runs"};
  if (gpus_for(plan) > 0) return {kGpuSpeed, "guessed for a GPU"};
  return {product_speed() * kShareOfProducts, "by a product timed on this CPU"};
}

int gpus_for(const SweepPlan& plan) {
#ifdef EGMLA_WITH_CUDA
  const bool wanted = std::any_of(plan.runs.begin(), plan.runs.end(),
                                  [](const PlannedRun& run) { return run.config.run.device != DeviceChoice::cpu; });
  return wanted ? cuda_device_count() : 0;
#else
  static_cast<void>(plan);
  return 0;
#endif
}

}  // namespace egmla

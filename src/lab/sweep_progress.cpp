#include "lab/sweep_progress.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/check.h"
#include "core/files.h"
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

bool ended(const PlannedRun& run, bool recorded_finished) {
  const fs::path dir = run.config.run.dir;
  const int64_t steps = run.config.train.max_steps;
  if (!recorded_finished && !fs::exists(checkpoint_path((dir / "checkpoints").string(), steps))) return false;
  if (!fs::exists(dir / "metrics.jsonl")) return false;
  const auto rows = read_metrics((dir / "metrics.jsonl").string());
  return !rows.empty() && rows.back().step >= steps;
}

// Names of the runs that sweep.json calls finished.
std::set<std::string> recorded_finished_runs(const SweepPlan& plan) {
  std::set<std::string> names;
  const std::string path = plan.dir + "/sweep.json";
  if (!fs::exists(path)) return names;
  const auto record = nlohmann::json::parse(read_file(path), nullptr, false);
  check_usage(record.is_object() && record.contains("runs") && record["runs"].is_array(),
              "{}: damaged; expected the record of a sweep; remove it: runs with checkpoints are not trained again",
              path);
  for (const auto& run : record["runs"]) {
    if (run.is_object() && run.value("state", "") == name_of(RunState::finished)) names.insert(run.value("name", ""));
  }
  return names;
}

}  // namespace

const char* name_of(RunState state) {
  static constexpr std::array<const char*, 3> kNames = {"waiting", "finished", "failed"};
  return kNames[static_cast<size_t>(state)];
}

std::vector<RunStatus> statuses_of(const SweepPlan& plan) {
  const std::set<std::string> finished = recorded_finished_runs(plan);
  std::vector<RunStatus> statuses;
  for (const PlannedRun& run : plan.runs) statuses.push_back(status_of(run, finished.contains(run.name)));
  return statuses;
}

RunStatus status_of(const PlannedRun& run, bool recorded_finished) {
  RunStatus status;
  const std::string own = run.config.run.dir + "/config.yaml";
  if (!fs::exists(own)) return status;
  const auto differences = config_differences(load_config(own, {}), run.config, resumable_keys());
  check_usage(
      differences.empty(),
      "{}: was made under another configuration; give the sweep another dir, or remove that folder; it differs in: {}",
      run.config.run.dir, fmt::join(differences, "; "));
  if (!ended(run, recorded_finished)) return status;
  status.state = RunState::finished;
  status.data = load_runs({run.config.run.dir}).front();
  return status;
}

std::string training_key(const PlannedRun& run) {
  Config config = run.config;
  config.run.name = config.run.dir = "";
  return resolved_yaml(config, false);
}

void adopt(const PlannedRun& run, const PlannedRun& finished) {
  const fs::path from = finished.config.run.dir, to = run.config.run.dir;
  for (const char* name : {"metrics.jsonl", "stats.json", "samples.txt"}) {
    if (fs::exists(from / name)) fs::copy_file(from / name, to / name, fs::copy_options::overwrite_existing);
  }
  if (fs::exists(from / "checkpoints") && !fs::exists(to / "checkpoints"))
    fs::create_directory_symlink(fs::relative(from / "checkpoints", to), to / "checkpoints");
  write_file((to / "config.yaml").string(), resolved_yaml(run.config, false));  // last: it makes this a run
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

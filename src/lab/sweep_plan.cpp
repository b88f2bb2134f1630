#include "lab/sweep_plan.h"

#include <algorithm>
#include <set>

#include "core/check.h"
#include "io/config_values.h"
#include "nn/transformer.h"

namespace egmla {
namespace {

// What a folder's name may hold on any file system, and no shell treats specially.
std::string as_file_name(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    out += plain || c == '.' || c == '_' || c == '+' || c == '-' ? c : '_';
  }
  return out;
}

std::string part_of_name(const Axis& axis, const AxisValue& value) {
  return as_file_name(axis.short_name.empty() ? value.label : axis.short_name + "_" + value.label);
}

// The next combination, the last axis fastest; false after the last one.
bool advance(std::vector<size_t>& choice, const std::vector<Axis>& axes) {
  for (size_t axis = axes.size(); axis-- > 0;) {
    if (++choice[axis] < axes[axis].values.size()) return true;
    choice[axis] = 0;
  }
  return false;
}

PlannedRun run_of(const SweepFile& file, const std::vector<size_t>& choice) {
  PlannedRun run;
  run.overrides = file.overrides;
  for (size_t axis = 0; axis < choice.size(); ++axis) {
    const AxisValue& value = file.axes[axis].values[choice[axis]];
    run.labels.push_back(value.label);
    run.overrides.insert(run.overrides.end(), value.overrides.begin(), value.overrides.end());
    run.name += (axis > 0 ? "-" : "") + part_of_name(file.axes[axis], value);
  }
  if (run.name.empty()) run.name = as_file_name(file.name);
  return run;
}

void add_seeds(const SweepFile& file, const PlannedRun& setting, SweepPlan& plan) {
  const auto add = [&](PlannedRun run, std::vector<std::string> overrides) {
    overrides.push_back("run.name=" + write_value(run.name));
    overrides.push_back("run.dir=" + write_value(plan.dir + "/" + run.name));
    add_overrides(run, plan.base, overrides);
    plan.runs.push_back(std::move(run));
  };
  if (file.seeds.empty()) return add(setting, {});
  for (const int64_t seed : file.seeds) {
    PlannedRun run = setting;
    run.name += fmt::format("-seed_{}", seed);
    add(std::move(run), {fmt::format("run.seed={}", seed)});
  }
}

void check_names(const std::string& file, const SweepPlan& plan) {
  check_usage(!plan.runs.empty(), "{}: every combination is skipped; relax the rules under skip", file);
  std::set<std::string> names;
  for (const PlannedRun& run : plan.runs) {
    check_usage(names.insert(run.name).second, "{}: two runs are called {}; use labels that differ", file, run.name);
  }
}

}  // namespace

ModelSize model_size(const Config& config) {
  check_usage(config.model.vocab_size > 0,
              "model.vocab_size: a sweep's plan opens no tokenizer; give the size, for example model.vocab_size=4096");
  const Transformer model(config.model);
  const ParameterStore& store = model.parameters();
  return {.parameters = store.elements(),
          .gate_tables = store.elements(ParameterGroup::gate_table),
          .cache_elements = model.cache_elements(),
          .flops_per_token = model.flops_per_token(config.data.sequence_length)};
}

void add_overrides(PlannedRun& run, const std::string& base, const std::vector<std::string>& overrides) {
  run.overrides.insert(run.overrides.end(), overrides.begin(), overrides.end());
  run.config = load_config(base, run.overrides);
  run.size = model_size(run.config);
}

bool matches(const AxisRule& rule, const std::vector<std::string>& axes, const std::vector<std::string>& labels) {
  return std::all_of(rule.begin(), rule.end(), [&](const auto& item) {
    const auto axis = static_cast<size_t>(std::find(axes.begin(), axes.end(), item.first) - axes.begin());
    return std::find(item.second.begin(), item.second.end(), labels[axis]) != item.second.end();
  });
}

SweepPlan plan_sweep(const std::string& path) {
  const SweepFile file = read_sweep_file(path);
  SweepPlan plan{.name = file.name, .dir = file.dir, .base = file.base, .axes = {}, .runs = {}, .notes = {}};
  for (const Axis& axis : file.axes) plan.axes.push_back(axis.name);
  std::vector<size_t> choice(file.axes.size());
  do {
    const PlannedRun setting = run_of(file, choice);
    const bool skip = std::any_of(file.skip.begin(), file.skip.end(),
                                  [&](const AxisRule& rule) { return matches(rule, plan.axes, setting.labels); });
    if (skip) {
      ++plan.skipped;
    } else {
      add_seeds(file, setting, plan);
    }
  } while (advance(choice, file.axes));
  check_names(path, plan);
  hold_equal(file, plan);
  return plan;
}

// A checkpoint holds weights and both moments in f32; a row of metrics.jsonl is about 250 bytes, TensorBoard's as much.
int64_t disk_bytes(const PlannedRun& run) {
  constexpr int64_t kStepBytes = 500, kFixedBytes = 1 << 20;
  const TrainConfig& train = run.config.train;
  const CheckpointConfig& policy = train.checkpoint;
  const auto times = [&](int64_t every) { return every > 0 ? train.max_steps / every : 0; };
  const int64_t written = std::max<int64_t>(1, times(policy.every));
  const int64_t kept = std::min(written, policy.keep_last + times(policy.keep_every));
  return kept * run.size.parameters * 12 + train.max_steps * kStepBytes + kFixedBytes;
}

}  // namespace egmla

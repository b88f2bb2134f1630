#include "lab/report_data.h"

#include <spdlog/spdlog.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>

#include "core/check.h"
#include "core/files.h"
#include "io/config.h"
#include "train/progress.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

constexpr size_t kSampleBytes = 4000;
const std::string kUnknown = "\u2013";

std::string read_if_there(const fs::path& path) {
  return fs::is_regular_file(path) ? read_file(path.string()) : std::string();
}

void flatten(const YAML::Node& node, const std::string& key, std::map<std::string, std::string>& out) {
  if (node.IsMap()) {
    for (const auto& item : node) {
      const auto name = item.first.as<std::string>();
      flatten(item.second, key.empty() ? name : key + "." + name, out);
    }
    return;
  }
  YAML::Emitter emitter;
  emitter.SetSeqFormat(YAML::Flow);
  emitter.SetMapFormat(YAML::Flow);
  emitter << node;
  out[key] = emitter.c_str();
}

// A report shows runs, it does not judge configurations: what is no YAML has no keys.
std::map<std::string, std::string> flat_config(const std::string& yaml) {
  std::map<std::string, std::string> out;
  try {
    const YAML::Node root = YAML::Load(yaml);
    if (root.IsMap()) flatten(root, "", out);
  } catch (const YAML::Exception&) {
    out.clear();
  }
  return out;
}

// A run of a version that did not know a key yet did what is the key's default.
void add_defaults(std::map<std::string, std::string>& config) {
  static const std::map<std::string, std::string> defaults = flat_config(resolved_yaml(Config{}, false));
  if (!config.empty()) config.insert(defaults.begin(), defaults.end());
}

std::optional<double> stat(const nlohmann::json& stats, const char* key) {
  if (!stats.is_object() || !stats.contains(key) || !stats[key].is_number()) return std::nullopt;
  return stats[key].get<double>();
}

std::string text_stat(const nlohmann::json& stats, const char* key) {
  return stats.is_object() && stats.contains(key) && stats[key].is_string() ? stats[key].get<std::string>() : "";
}

// The last lines, from a line's beginning.
std::string tail_of(const std::string& text) {
  if (text.size() <= kSampleBytes) return text;
  const size_t line = text.find('\n', text.size() - kSampleBytes);
  return line == std::string::npos ? text.substr(text.size() - kSampleBytes) : text.substr(line + 1);
}

void read_benefit(const fs::path& path, RunData& run) {
  const auto file = nlohmann::json::parse(read_if_there(path), nullptr, false);
  if (!file.is_object() || !file.contains("by_count")) return;
  run.benefit_over = fs::path(file.value("other", "")).parent_path().parent_path().filename().string();
  for (const auto& bin : file["by_count"]) {
    run.benefit.push_back({.from = bin.value("seen_from", int64_t{0}),
                           .tokens = bin.value("tokens", int64_t{0}),
                           .loss = bin.value("loss", 0.0),
                           .other = bin.value("other", 0.0),
                           .error = bin["standard_error"].is_number() ? bin["standard_error"].get<double>() : 0.0});
  }
}

RunData load_run(const std::string& dir) {
  RunData run;
  run.dir = dir;
  const fs::path metrics = fs::path(dir) / "metrics.jsonl";
  check_usage(fs::is_regular_file(metrics), "{}: no metrics.jsonl there; expected a run directory such as runs/NAME",
              dir);
  run.rows = read_metrics(metrics.string());
  check_usage(!run.rows.empty(), "{}: holds no step yet; train first", metrics.string());
  run.config_yaml = read_if_there(fs::path(dir) / "config.yaml");
  run.config = flat_config(run.config_yaml);
  run.samples = tail_of(read_if_there(fs::path(dir) / "samples.txt"));
  const auto stats = nlohmann::json::parse(read_if_there(fs::path(dir) / "stats.json"), nullptr, false);
  run.parameters = stat(stats, "parameters");
  run.gate_tables = stat(stats, "gate_tables");
  run.cache_elements = stat(stats, "cache_elements");
  run.flops_per_token = stat(stats, "flops_per_token");
  run.unigram_entropy = stat(stats, "val_unigram_entropy_nats");
  run.hardware = text_stat(stats, "hardware");
  run.commit = text_stat(stats, "commit");
  read_benefit(fs::path(dir) / "comparison.json", run);
  const auto named = run.config.find("run.name");
  run.name = named != run.config.end() && !named->second.empty()
                 ? named->second
                 : fs::absolute(dir).lexically_normal().filename().string();
  add_defaults(run.config);
  return run;
}

bool holds_steps(const std::string& dir) {
  const fs::path metrics = fs::path(dir) / "metrics.jsonl";
  return fs::is_regular_file(metrics) && fs::file_size(metrics) > 0;
}

// Runs that share a name are told apart by their directories.
void make_names_unique(std::vector<RunData>& runs) {
  std::map<std::string, int> uses;
  for (const RunData& run : runs) ++uses[run.name];
  for (RunData& run : runs) {
    if (uses[run.name] > 1) run.name = run.dir;
  }
}

std::optional<double> median(std::vector<double> values) {
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  if (values.empty()) return std::nullopt;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string or_unknown(const std::optional<double>& value, const char* format) {
  return value && std::isfinite(*value) ? fmt::format(fmt::runtime(format), *value) : kUnknown;
}

std::string count_or_unknown(const std::optional<double>& value) {
  return value ? format_count(*value) : kUnknown;
}

// Removes columns in which no run has a value.
SummaryTable without_empty_columns(const SummaryTable& table) {
  SummaryTable out;
  out.rows.resize(table.rows.size());
  for (size_t column = 0; column < table.headings.size(); ++column) {
    const auto unknown = [column](const auto& row) { return row[column] == kUnknown; };
    if (std::all_of(table.rows.begin(), table.rows.end(), unknown)) continue;
    out.headings.push_back(table.headings[column]);
    for (size_t row = 0; row < table.rows.size(); ++row) out.rows[row].push_back(table.rows[row][column]);
  }
  return out;
}

}  // namespace

std::optional<double> RunData::final_train_loss() const {
  double sum = 0.0, count = 0.0;
  for (size_t i = rows.size() - std::max<size_t>(1, rows.size() / 50); i < rows.size(); ++i) {
    if (!std::isfinite(rows[i].loss)) continue;
    sum += rows[i].loss;
    ++count;
  }
  return count > 0.0 ? std::optional(sum / count) : std::nullopt;
}

std::optional<double> RunData::final_val_loss() const {
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    if (row->val_loss) return row->val_loss;
  }
  return std::nullopt;
}

std::optional<double> RunData::final_bits_per_byte() const {
  for (auto row = rows.rbegin(); row != rows.rend(); ++row) {
    if (row->val_bits_per_byte) return row->val_bits_per_byte;
  }
  return std::nullopt;
}

double RunData::final_loss() const {
  const auto validation = final_val_loss();
  return validation ? *validation : final_train_loss().value_or(std::numeric_limits<double>::infinity());
}

double RunData::median_tokens_per_s() const {
  std::vector<double> values;
  for (const MetricsRow& row : rows) values.push_back(row.tokens_per_s);
  return median(std::move(values)).value_or(std::numeric_limits<double>::quiet_NaN());
}

std::optional<double> RunData::median_mfu() const {
  std::vector<double> values;
  for (const MetricsRow& row : rows) {
    if (row.mfu) values.push_back(*row.mfu);
  }
  return median(std::move(values));
}

std::vector<RunData> load_runs(const std::vector<std::string>& run_dirs) {
  check_usage(!run_dirs.empty(), "report: no run given; expected one or more run directories");
  std::vector<RunData> runs;
  const bool any = std::any_of(run_dirs.begin(), run_dirs.end(), holds_steps);
  for (const std::string& dir : run_dirs) {
    if (!any || holds_steps(dir) || !fs::exists(dir)) {
      runs.push_back(load_run(dir));
    } else if (fs::is_directory(dir)) {
      spdlog::warn("{}: holds no step of a run; passed over", dir);
    }
  }
  make_names_unique(runs);
  std::stable_sort(runs.begin(), runs.end(),
                   [](const RunData& a, const RunData& b) { return a.final_loss() < b.final_loss(); });
  const std::vector<RunSetting> settings = settings_of(runs);
  for (size_t rank = 0; rank < settings.size(); ++rank) {
    for (size_t place : settings[rank].runs) runs[place].setting = rank;
  }
  std::stable_sort(runs.begin(), runs.end(), [](const RunData& a, const RunData& b) { return a.setting < b.setting; });
  return runs;
}

std::vector<std::string> differing_keys(const std::vector<RunData>& runs) {
  std::set<std::string> keys;
  for (const RunData& run : runs) {
    for (const auto& item : run.config) keys.insert(item.first);
  }
  std::vector<std::string> out;
  for (const std::string& key : keys) {
    if (key == "run.name" || key == "run.dir") continue;
    std::set<std::string> values;
    for (const RunData& run : runs) {
      const auto found = run.config.find(key);
      values.insert(found == run.config.end() ? kUnknown : found->second);
    }
    if (values.size() > 1) out.push_back(key);
  }
  return out;
}

std::optional<double> common_unigram_entropy(const std::vector<RunData>& runs) {
  const auto first = runs.front().unigram_entropy;
  if (!first) return std::nullopt;
  for (const RunData& run : runs) {
    if (!run.unigram_entropy || std::abs(*run.unigram_entropy - *first) > 1e-6) return std::nullopt;
  }
  return first;
}

SummaryTable summary_table(const std::vector<RunData>& runs) {
  SummaryTable table{{"Run", "Parameters", "Gate tables", "Cache per token", "Steps", "Tokens", "Training loss",
                      "Validation loss", "Bits per byte", "Below unigram", "Tokens/s", "MFU", "Time"},
                     {}};
  for (const RunData& run : runs) {
    const auto validation = run.final_val_loss();
    const auto below =
        validation && run.unigram_entropy ? std::optional(*run.unigram_entropy - *validation) : std::nullopt;
    auto mfu = run.median_mfu();
    if (mfu) *mfu *= 100.0;
    const MetricsRow& last = run.rows.back();
    table.rows.push_back({run.name, count_or_unknown(run.parameters), count_or_unknown(run.gate_tables),
                          or_unknown(run.cache_elements, "{:.0f}"), std::to_string(last.step),
                          format_count(static_cast<double>(last.tokens)), or_unknown(run.final_train_loss(), "{:.4f}"),
                          or_unknown(validation, "{:.4f}"), or_unknown(run.final_bits_per_byte(), "{:.4f}"),
                          or_unknown(below, "{:.2f}"), format_count(run.median_tokens_per_s()),
                          or_unknown(mfu, "{:.1f}%"), format_duration(last.time)});
  }
  return without_empty_columns(table);
}

// One row for each setting; its seeds are no difference.
SummaryTable difference_table(const std::vector<RunData>& runs) {
  const std::vector<RunSetting> settings = settings_of(runs);
  std::vector<std::string> keys = differing_keys(runs);
  if (settings.size() < runs.size()) std::erase(keys, "run.seed");
  SummaryTable table{{settings.size() < runs.size() ? "Setting" : "Run"}, {}};
  table.headings.insert(table.headings.end(), keys.begin(), keys.end());
  for (const RunSetting& setting : settings) {
    std::vector<std::string> row = {setting.name};
    for (const std::string& key : keys) {
      const auto& config = runs[setting.runs.front()].config;
      const auto found = config.find(key);
      row.push_back(found == config.end() || found->second == "~" ? kUnknown : found->second);
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

SummaryTable hardware_table(const std::vector<RunData>& runs) {
  SummaryTable table{{"Run", "Hardware", "Commit"}, {}};
  const auto known = [](const std::string& text) { return text.empty() ? kUnknown : text; };
  for (const RunData& run : runs) table.rows.push_back({run.name, known(run.hardware), known(run.commit)});
  const auto same = [&](const auto& row) { return row[1] == table.rows[0][1] && row[2] == table.rows[0][2]; };
  if (runs.size() > 1 && std::all_of(table.rows.begin(), table.rows.end(), same)) {
    table.rows.resize(1);
    table.rows[0][0] = fmt::format("all {}", runs.size());
  }
  return without_empty_columns(table);
}

std::string summary_sentence(const std::vector<RunData>& runs) {
  const RunData& best = *std::min_element(
      runs.begin(), runs.end(), [](const RunData& a, const RunData& b) { return a.final_loss() < b.final_loss(); });
  const auto validation = best.final_val_loss();
  if (!std::isfinite(best.final_loss())) return "No run has a finite loss.";
  std::string out = runs.size() > 1 ? fmt::format("Best of {} runs is {}: its ", runs.size(), best.name) : "The ";
  out +=
      fmt::format("{} loss ends at {:.3f} nats per token after {} tokens and {}",
                  validation ? "validation" : "training", best.final_loss(),
                  format_count(static_cast<double>(best.rows.back().tokens)), format_duration(best.rows.back().time));
  if (validation && best.unigram_entropy) {
    const double below = *best.unigram_entropy - *validation;
    out += fmt::format(", {:.2f} nats {} the unigram entropy of the validation text ({:.2f})", std::abs(below),
                       below >= 0.0 ? "below" : "above", *best.unigram_entropy);
  }
  return out + ".";
}

}  // namespace egmla

// Which runs differ by their seeds alone, and what the mean over them is.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "lab/report_data.h"
#include "train/progress.h"

namespace egmla {
namespace {

// What two runs of one setting have in common; a run without a configuration is a setting of its own.
std::string identity(const RunData& run) {
  if (run.config.empty()) return run.dir;
  std::string out = std::to_string(run.rows.back().tokens);
  for (const auto& [key, value] : run.config) {
    if (key != "run.name" && key != "run.dir" && key != "run.seed") out += fmt::format("\n{}: {}", key, value);
  }
  return out;
}

std::string seed_of(const RunData& run) {
  const auto found = run.config.find("run.seed");
  return found == run.config.end() ? "" : found->second;
}

// "egmla_kv64" of "egmla_kv64-seed_1" and "egmla_kv64-seed_2"; the first run's name where they have no beginning in
// common.
std::string common_name(const std::vector<RunData>& runs, const std::vector<size_t>& places) {
  std::string name = runs[places.front()].name;
  if (places.size() == 1) return name;
  for (size_t place : places) {
    const std::string& other = runs[place].name;
    const auto ends = std::mismatch(name.begin(), name.end(), other.begin(), other.end());
    name.erase(ends.first, name.end());
  }
  const auto trim = [&] {
    while (!name.empty() && (name.back() == '_' || name.back() == '-' || name.back() == '/')) name.pop_back();
  };
  trim();
  if (name.ends_with("seed")) name.resize(name.size() - 4);
  trim();
  return name.empty() ? runs[places.front()].name : name;
}

void set_loss(RunSetting& setting, const std::vector<RunData>& runs) {
  std::set<std::string> seeds;
  std::vector<double> losses;
  for (size_t place : setting.runs) {
    if (seeds.insert(seed_of(runs[place])).second) losses.push_back(runs[place].final_loss());
  }
  setting.seeds = losses.size();
  const auto n = static_cast<double>(losses.size());
  for (double loss : losses) setting.loss += loss / n;
  if (losses.size() < 2) return;
  double squares = 0.0;
  for (double loss : losses) squares += (loss - setting.loss) * (loss - setting.loss);
  setting.spread = std::sqrt(squares / (n - 1.0));
}

// Settings of one name are told apart by what they were trained on.
void make_names_unique(std::vector<RunSetting>& settings, const std::vector<RunData>& runs) {
  std::map<std::string, int> uses;
  for (const RunSetting& setting : settings) ++uses[setting.name];
  for (RunSetting& setting : settings) {
    if (uses[setting.name] == 1) continue;
    setting.name += ", " + format_count(static_cast<double>(runs[setting.runs.front()].rows.back().tokens)) + " tokens";
  }
}

}  // namespace

std::vector<RunSetting> settings_of(const std::vector<RunData>& runs) {
  std::map<std::string, size_t> places;
  std::vector<RunSetting> settings;
  for (size_t place = 0; place < runs.size(); ++place) {
    const auto [found, added] = places.emplace(identity(runs[place]), settings.size());
    if (added) settings.emplace_back();
    settings[found->second].runs.push_back(place);
  }
  for (RunSetting& setting : settings) {
    setting.name = common_name(runs, setting.runs);
    set_loss(setting, runs);
  }
  make_names_unique(settings, runs);
  std::stable_sort(settings.begin(), settings.end(),
                   [](const RunSetting& a, const RunSetting& b) { return a.loss < b.loss; });
  return settings;
}

SummaryTable settings_table(const std::vector<RunData>& runs) {
  const std::vector<RunSetting> settings = settings_of(runs);
  SummaryTable table{
      {"Setting", "Seeds", "Parameters", "Gate tables", "Cache per token", "Tokens", "Final loss", "Spread over seeds"},
      {}};
  if (settings.size() == runs.size()) return table;
  const auto count = [](const std::optional<double>& value) { return value ? format_count(*value) : "\u2013"; };
  for (const RunSetting& setting : settings) {
    const RunData& run = runs[setting.runs.front()];
    table.rows.push_back({setting.name, std::to_string(setting.seeds), count(run.parameters), count(run.gate_tables),
                          run.cache_elements ? fmt::format("{:.0f}", *run.cache_elements) : "\u2013",
                          format_count(static_cast<double>(run.rows.back().tokens)),
                          fmt::format("{:.4f}", setting.loss),
                          setting.spread ? fmt::format("{:.4f}", *setting.spread) : "\u2013"});
  }
  return table;
}

}  // namespace egmla

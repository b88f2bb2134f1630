#include "lab/sweep_table.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/files.h"
#include "train/progress.h"

namespace egmla {
namespace {

using Json = nlohmann::ordered_json;

struct Spread {
  std::vector<double> values;

  double mean() const {
    double sum = 0;
    for (const double value : values) sum += value;
    return sum / static_cast<double>(values.size());
  }
  // Sample standard deviation; of a single value nothing is known.
  std::optional<double> deviation() const {
    if (values.size() < 2) return std::nullopt;
    double sum = 0;
    for (const double value : values) sum += (value - mean()) * (value - mean());
    return std::sqrt(sum / static_cast<double>(values.size() - 1));
  }
};

// The runs of one setting: its seeds.
struct Setting {
  const PlannedRun* run = nullptr;
  int64_t seeds = 0;
  Spread validation{}, bits_per_byte{}, training{}, tokens_per_s{}, seconds{};
};

std::vector<Setting> settings_of(const SweepPlan& plan, const std::vector<RunStatus>& statuses) {
  std::vector<Setting> out;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const PlannedRun& run = plan.runs[i];
    if (out.empty() || out.back().run->labels != run.labels) out.push_back({.run = &run});
    Setting& setting = out.back();
    ++setting.seeds;
    if (!statuses[i].data) continue;
    const auto add = [](Spread& spread, std::optional<double> value) {
      if (value && std::isfinite(*value)) spread.values.push_back(*value);
    };
    const RunData& data = *statuses[i].data;
    add(setting.validation, data.final_val_loss());
    add(setting.bits_per_byte, data.final_bits_per_byte());
    add(setting.training, data.final_train_loss());
    add(setting.tokens_per_s, data.median_tokens_per_s());
    add(setting.seconds, data.rows.back().time);
  }
  return out;
}

// A cell as text for people and for programs.
struct Cell {
  std::string shown, exact;
};

Cell text_cell(const std::string& text) {
  return {text, text};
}

Cell count_cell(int64_t value) {
  return {format_count(static_cast<double>(value)), std::to_string(value)};
}

Cell real_cell(std::optional<double> value, const char* format) {
  if (!value) return {};
  return {fmt::format(fmt::runtime(format), *value), fmt::format("{}", *value)};
}

void add_spread(std::vector<Cell>& row, const Spread& spread) {
  const bool known = !spread.values.empty();
  row.push_back(real_cell(known ? std::optional(spread.mean()) : std::nullopt, "{:.4f}"));
  row.push_back(real_cell(spread.deviation(), "{:.4f}"));
}

const std::vector<std::string> kMeasures = {
    "finished",   "parameters",    "gate_tables", "cache_elements", "flops_per_token", "tokens", "val_loss",
    "val_spread", "bits_per_byte", "train_loss",  "train_spread",   "tokens_per_s",    "seconds"};

std::vector<Cell> row_of(const Setting& setting) {
  const PlannedRun& run = *setting.run;
  std::vector<Cell> row;
  for (const std::string& label : run.labels) row.push_back(text_cell(label));
  row.push_back(text_cell(fmt::format("{}/{}", setting.training.values.size(), setting.seeds)));
  row.push_back(count_cell(run.size.parameters));
  row.push_back(count_cell(run.size.gate_tables));
  row.push_back(text_cell(std::to_string(run.size.cache_elements)));
  row.push_back({format_count(run.size.flops_per_token), fmt::format("{}", run.size.flops_per_token)});
  row.push_back(count_cell(run.tokens()));
  add_spread(row, setting.validation);
  const Spread& bits = setting.bits_per_byte;
  row.push_back(real_cell(bits.values.empty() ? std::nullopt : std::optional(bits.mean()), "{:.4f}"));
  add_spread(row, setting.training);
  for (const Spread* spread : {&setting.tokens_per_s, &setting.seconds}) {
    if (spread->values.empty()) {
      row.push_back({});
      continue;
    }
    const double mean = spread->mean();
    row.push_back({spread == &setting.seconds ? format_duration(mean) : format_count(mean), fmt::format("{}", mean)});
  }
  return row;
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? std::string("\"\"") : std::string(1, c);
  return out + "\"";
}

std::string markdown_field(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

using Rows = std::vector<std::vector<Cell>>;

std::string csv_of(const std::vector<std::string>& headings, const Rows& rows) {
  std::string out;
  for (size_t i = 0; i < headings.size(); ++i) out += (i > 0 ? "," : "") + csv_field(headings[i]);
  out += "\n";
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) out += (i > 0 ? "," : "") + csv_field(row[i].exact);
    out += "\n";
  }
  return out;
}

std::string markdown_of(const std::vector<std::string>& headings, const Rows& rows, size_t axes) {
  std::string out = "|", rule = "|";
  for (size_t i = 0; i < headings.size(); ++i) {
    out += " " + markdown_field(headings[i]) + " |";
    rule += i < axes ? "---|" : "---:|";
  }
  out += "\n" + rule + "\n";
  for (const auto& row : rows) {
    out += "|";
    for (const Cell& cell : row) out += " " + markdown_field(cell.shown) + " |";
    out += "\n";
  }
  return out;
}

Json json_of(const Spread& spread) {
  if (spread.values.empty()) return nullptr;
  const auto deviation = spread.deviation();
  const auto [low, high] = std::minmax_element(spread.values.begin(), spread.values.end());
  return {{"mean", spread.mean()},
          {"standard_deviation", deviation ? Json(*deviation) : Json(nullptr)},
          {"min", *low},
          {"max", *high},
          {"values", spread.values}};
}

Json json_of(const SweepPlan& plan, const std::vector<Setting>& settings) {
  Json list = Json::array();
  for (const Setting& setting : settings) {
    Json values = Json::object();
    for (size_t axis = 0; axis < plan.axes.size(); ++axis) values[plan.axes[axis]] = setting.run->labels[axis];
    const ModelSize& size = setting.run->size;
    list.push_back({{"values", values},
                    {"seeds", setting.seeds},
                    {"finished", setting.training.values.size()},
                    {"parameters", size.parameters},
                    {"gate_tables", size.gate_tables},
                    {"cache_elements", size.cache_elements},
                    {"flops_per_token", size.flops_per_token},
                    {"tokens", setting.run->tokens()},
                    {"val_loss", json_of(setting.validation)},
                    {"bits_per_byte", json_of(setting.bits_per_byte)},
                    {"train_loss", json_of(setting.training)},
                    {"tokens_per_s", json_of(setting.tokens_per_s)},
                    {"seconds", json_of(setting.seconds)}});
  }
  return {{"sweep", plan.name}, {"notes", plan.notes}, {"settings", list}};
}

std::string dump(const Json& json) {
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

std::string plan_text(const SweepPlan& plan, const std::vector<RunStatus>& statuses, const Speed& speed, int at_once) {
  size_t width = 3;
  for (const PlannedRun& run : plan.runs) width = std::max(width, run.name.size());
  std::string out = fmt::format("{:<{}}  {:>10} {:>11} {:>11} {:>6} {:>12} {:>8} {:>8} {:>9}\n", "run", width,
                                "parameters", "gate tables", "F", "cache", "FLOPs/token", "tokens", "time", "disk");
  const auto megabytes = [](int64_t bytes) { return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6); };
  int64_t tokens = 0, disk = 0;
  double seconds = 0;
  size_t finished = 0;
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const PlannedRun& run = plan.runs[i];
    const double time = run.flops() / speed.flops_per_second;
    const bool done = statuses[i].state == RunState::finished;
    out += fmt::format("{:<{}}  {:>10} {:>11} {:>11} {:>6} {:>12} {:>8} {:>8} {:>9}\n", run.name, width,
                       format_count(static_cast<double>(run.size.parameters)),
                       format_count(static_cast<double>(run.size.gate_tables)), run.config.model.intermediate_size,
                       run.size.cache_elements, format_count(run.size.flops_per_token),
                       format_count(static_cast<double>(run.tokens())), done ? "finished" : format_duration(time),
                       megabytes(disk_bytes(run)));
    finished += done ? 1 : 0;
    tokens += done ? 0 : run.tokens();
    seconds += done ? 0 : time;
    disk += done ? 0 : disk_bytes(run);
  }
  for (const std::string& note : plan.notes) out += "held equal  " + note + "\n";
  out += fmt::format("{}: {} runs in {}, {} skipped by rules, {} finished\n", plan.name, plan.runs.size(), plan.dir,
                     plan.skipped, finished);
  out += fmt::format("to do: {} tokens, about {} at {} FLOP/s {}{}, {} of disk\n",
                     format_count(static_cast<double>(tokens)), format_duration(seconds / at_once),
                     format_count(speed.flops_per_second), speed.source,
                     at_once > 1 ? fmt::format(", {} runs at a time", at_once) : "", megabytes(disk));
  return out;
}

std::string write_sweep_table(const SweepPlan& plan, const std::vector<RunStatus>& statuses) {
  const std::vector<Setting> settings = settings_of(plan, statuses);
  std::vector<std::string> headings = plan.axes;
  headings.insert(headings.end(), kMeasures.begin(), kMeasures.end());
  Rows rows;
  for (const Setting& setting : settings) rows.push_back(row_of(setting));
  const std::string markdown = markdown_of(headings, rows, plan.axes.size());
  write_file(plan.dir + "/table.csv", csv_of(headings, rows));
  write_file(plan.dir + "/table.md", markdown);
  write_file(plan.dir + "/table.json", dump(json_of(plan, settings)));
  return markdown;
}

}  // namespace egmla

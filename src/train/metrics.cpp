#include "train/metrics.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/check.h"
#include "core/files.h"

namespace egmla {
namespace {

using Json = nlohmann::ordered_json;

Json number(double value) {
  return std::isfinite(value) ? Json(value) : Json(nullptr);
}

double number_at(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number() ? found->get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::optional<double> optional_at(const Json& object, const char* key) {
  const double value = number_at(object, key);
  return std::isfinite(value) ? std::optional(value) : std::nullopt;
}

// Nothing when the line is no object with an integer step, as a line torn by a crash.
std::optional<MetricsRow> parse_row(std::string_view line) {
  const Json object = Json::parse(line, nullptr, false);
  if (!object.is_object() || !object.contains("step") || !object["step"].is_number_integer()) return std::nullopt;
  const auto tokens = object.find("tokens");
  return MetricsRow{.step = object["step"].get<int64_t>(),
                    .tokens = tokens != object.end() && tokens->is_number_integer() ? tokens->get<int64_t>() : 0,
                    .loss = number_at(object, "loss"),
                    .lr = number_at(object, "lr"),
                    .grad_norm = number_at(object, "grad_norm"),
                    .tokens_per_s = number_at(object, "tokens_per_s"),
                    .mfu = optional_at(object, "mfu"),
                    .time = number_at(object, "time"),
                    .val_loss = optional_at(object, "val_loss"),
                    .val_bits_per_byte = optional_at(object, "val_bits_per_byte")};
}

struct Line {
  std::string_view text;
  MetricsRow row;
};

// The views point into `text`.
std::vector<Line> parse_lines(std::string_view text, const std::string& path) {
  std::vector<Line> lines;
  for (size_t begin = 0, number_of_line = 1; begin < text.size(); ++number_of_line) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.empty()) continue;
    const auto row = parse_row(line);
    if (!row && begin >= text.size()) break;  // torn
    check_usage(row.has_value(), "{}:{}: no metrics row: '{}'; expected a JSON object with a step; remove the line",
                path, number_of_line, line.substr(0, 60));
    lines.push_back({line, *row});
  }
  return lines;
}

}  // namespace

std::string metrics_json(const MetricsRow& row) {
  Json object;
  object["step"] = row.step;
  object["tokens"] = row.tokens;
  object["loss"] = number(row.loss);
  object["lr"] = number(row.lr);
  object["grad_norm"] = number(row.grad_norm);
  object["tokens_per_s"] = number(row.tokens_per_s);
  object["mfu"] = row.mfu ? number(*row.mfu) : Json(nullptr);
  object["time"] = number(row.time);
  if (row.val_loss) object["val_loss"] = number(*row.val_loss);
  if (row.val_bits_per_byte) object["val_bits_per_byte"] = number(*row.val_bits_per_byte);
  return object.dump();
}

MetricsLog::MetricsLog(const std::string& path, int64_t resumed_step) : path_(path) {
  if (std::filesystem::exists(path)) {
    const std::string before = read_file(path);
    std::string kept;
    for (const Line& line : parse_lines(before, path)) {
      if (line.row.step <= resumed_step) kept += std::string(line.text) + "\n";
    }
    if (kept != before) write_file(path, kept);
  }
  errno = 0;
  file_.open(path, std::ios::binary | std::ios::app);
  check(file_.good(), "{}: cannot be opened for appending: {}; check the run directory", path, system_error_text());
}

void MetricsLog::append(const MetricsRow& row) {
  errno = 0;
  file_ << metrics_json(row) + "\n" << std::flush;
  check(file_.good(), "{}: writing failed: {}; free space there", path_, system_error_text());
}

std::vector<MetricsRow> read_metrics(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<MetricsRow> rows;
  for (const Line& line : parse_lines(text, path)) rows.push_back(line.row);
  return rows;
}

}  // namespace egmla

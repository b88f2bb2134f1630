#include "infer/prompts.h"

#include <nlohmann/json.hpp>

#include "core/check.h"
#include "data/byte_source.h"

namespace egmla {
namespace {

using Json = nlohmann::json;

bool holds_prompt(const Json& row) {
  return row.is_object() && row.contains("prompt") && row["prompt"].is_string();
}

}  // namespace

std::vector<Prompt> read_prompts(const std::string& path) {
  ByteSource source(path);
  LineReader lines(source);
  bool jsonl = path.ends_with(".jsonl") || path.ends_with(".jsonl.gz") || path.ends_with(".jsonl.zst");
  std::vector<Prompt> prompts;
  int64_t number = 0;
  for (std::string_view line; lines.next(line);) {
    ++number;
    while (line.ends_with('\n') || line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    const std::string place = fmt::format("{}:{}", path == "-" ? "standard input" : path, number);
    const Json row = jsonl || (prompts.empty() && line.front() == '{') ? Json::parse(line, nullptr, false) : Json();
    jsonl = jsonl || holds_prompt(row);
    check_usage(!jsonl || holds_prompt(row), "{}: found {}; expected a JSON object with a string \"prompt\"", place,
                Json(line).dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 60));
    prompts.push_back({jsonl ? row["prompt"].get<std::string>() : std::string(line), place});
  }
  check_usage(!prompts.empty(), "{}: holds no prompt; write one a line", path);
  return prompts;
}

}  // namespace egmla

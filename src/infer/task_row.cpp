#include "infer/task_row.h"

#include <algorithm>
#include <charconv>

#include "core/check.h"
#include "text/unicode.h"

namespace egmla {
namespace {

constexpr size_t kShown = 60;  // bytes of a value in a message

// As JSON writes it: one line, whatever the bytes are.
std::string shown(const Json& value) {
  return value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, kShown);
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

}  // namespace

TaskRow::TaskRow(std::string_view line, std::string place)
    : json_(Json::parse(line, nullptr, false)), place_(std::move(place)) {
  check_usage(json_.is_object(), "{}: found {}; expected a JSON object a line", place_, shown(stripped(line)));
}

std::string TaskRow::field_names() const {
  std::string names;
  for (const auto& [name, unused] : json_.items()) names += (names.empty() ? "" : ", ") + name;
  return names.substr(0, 2 * kShown);
}

void TaskRow::require(bool ok, const std::string& field, std::string_view expected) const {
  if (ok) return;
  fail_usage("{}: \"{}\" is {}; expected {}", place_, field, has(field) ? shown(json_[field]) : "nothing", expected);
}

const Json& TaskRow::value(const std::string& field) const {
  require(has(field), field, "a value");
  return json_[field];
}

std::string TaskRow::text(const std::string& field) const {
  require(has(field) && json_[field].is_string(), field, "a string");
  return json_[field].get<std::string>();
}

std::vector<std::string> TaskRow::texts(const std::string& field) const {
  const Json& list = value(field);
  const bool fits = list.is_array() && !list.empty() &&
                    std::all_of(list.begin(), list.end(), [](const Json& each) { return each.is_string(); });
  require(fits, field, "a list of strings");
  return list.get<std::vector<std::string>>();
}

TaskRow TaskRow::inner(const std::string& field) const {
  require(has(field) && json_[field].is_object(), field, "an object");
  return {json_[field], place_};
}

std::vector<TaskRow> TaskRow::rows(const std::string& field) const {
  const Json& list = value(field);
  const bool fits = list.is_array() && !list.empty() &&
                    std::all_of(list.begin(), list.end(), [](const Json& each) { return each.is_object(); });
  require(fits, field, "a list of objects");
  std::vector<TaskRow> out;
  for (const Json& each : list) out.push_back({each, place_});
  return out;
}

size_t TaskRow::index(const std::string& field, int64_t first, size_t count) const {
  const Json& found = has(field) ? json_[field] : Json();
  int64_t number = first - 1;
  if (found.is_number_integer()) number = found.get<int64_t>();
  if (found.is_string()) {
    const auto& digits = found.get_ref<const std::string&>();
    const auto end = digits.data() + digits.size();
    if (std::from_chars(digits.data(), end, number).ptr != end) number = first - 1;
  }
  const int64_t last = first + static_cast<int64_t>(count) - 1;
  require(number >= first && number <= last, field, fmt::format("a number from {} to {}", first, last));
  return static_cast<size_t>(number - first);
}

int64_t character_count(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char byte) { return (static_cast<uint8_t>(byte) & 0xc0) != 0x80; });
}

bool begins_with_space(std::string_view text) {
  return !text.empty() && char_at(text, 0).kind == CharClass::space;
}

bool ends_with_space(std::string_view text) {
  return trailing_space(text) > 0;
}

size_t trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const Char last = char_before(text, end);
    if (last.kind != CharClass::space) break;
    end -= last.bytes;
  }
  return text.size() - end;
}

std::string stripped(std::string_view text) {
  text.remove_suffix(trailing_space(text));
  while (begins_with_space(text)) text.remove_prefix(char_at(text, 0).bytes);
  return std::string(text);
}

std::string capitalized(std::string text) {
  for (size_t i = 0; i < text.size(); ++i) {
    char& c = text[i];
    if (i == 0 && c >= 'a' && c <= 'z') c = static_cast<char>(c - 'a' + 'A');
    if (i > 0 && c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return text;
}

std::string without_wikihow_marks(std::string_view text) {
  std::string out = stripped(text);
  replace_all(out, " [title]", ". ");
  for (size_t open = out.find('['); open != std::string::npos; open = out.find('[', open)) {
    const size_t end = out.find_first_of("]\n", open);
    if (end == std::string::npos) break;
    // A mark stays on its line.
    if (out[end] == ']') {
      out.erase(open, end + 1 - open);
    } else {
      open = end;
    }
  }
  replace_all(out, "  ", " ");
  return out;
}

}  // namespace egmla

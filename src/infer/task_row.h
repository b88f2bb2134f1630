// A row of a task's JSONL file: fields by name, each with an error that names file, line and field; and the text
// operations of the public benchmarks.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace egmla {

using Json = nlohmann::json;

class TaskRow {
 public:
  // `place` is "FILE:LINE".
  TaskRow(std::string_view line, std::string place);

  const std::string& place() const { return place_; }
  bool has(const std::string& field) const { return json_.contains(field); }
  void set(const std::string& field, const std::string& text) { json_[field] = text; }
  std::string field_names() const;

  // The field as it stands; the others want a string, strings, an object, objects.
  const Json& value(const std::string& field) const;
  std::string text(const std::string& field) const;
  std::vector<std::string> texts(const std::string& field) const;
  TaskRow inner(const std::string& field) const;
  std::vector<TaskRow> rows(const std::string& field) const;
  // A number, or a string that holds one, in [first, first + count), counted from 0.
  size_t index(const std::string& field, int64_t first, size_t count) const;

  // Raises the error that shows the field and what it should be.
  void require(bool ok, const std::string& field, std::string_view expected) const;

 private:
  TaskRow(Json json, std::string place) : json_(std::move(json)), place_(std::move(place)) {}

  Json json_;
  std::string place_;
};

// Code points.
int64_t character_count(std::string_view text);
bool begins_with_space(std::string_view text);
bool ends_with_space(std::string_view text);
// Bytes of the white space that ends a text.
size_t trailing_space(std::string_view text);
// Without white space at both ends.
std::string stripped(std::string_view text);
// The first letter a capital, the others small: ASCII letters alone.
std::string capitalized(std::string text);
// HellaSwag's preparation: " [title]" ends a sentence, other [marks] go, double spaces become single.
std::string without_wikihow_marks(std::string_view text);

}  // namespace egmla

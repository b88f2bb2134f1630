// Reading and writing one configuration value of each type. Reading is strict: a quoted number is no number, yes is no
// boolean, 1e6 is an integer because it is integral. Writing gives one line of YAML that reads back to the same value.
#pragma once

#include <yaml-cpp/yaml.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "data/data_config.h"

namespace egmla {

// The values a number may take; the ends count unless they are open.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_open = false, high_open = false;

  bool contains(double x) const { return (low_open ? x > low : x >= low) && (high_open ? x < high : x <= high); }
  std::string text() const;  // " >= 1", " in [0, 1)" or nothing
};

constexpr double kUnbounded = std::numeric_limits<double>::infinity();
constexpr Range kAny{};
constexpr Range kPositive{.low = 0, .low_open = true};
constexpr Range kFraction{.low = 0, .high = 1};

constexpr Range at_least(double low) {
  return {.low = low};
}

// The names of an enumeration's values, in the order that messages list them.
template <class E>
using EnumNames = std::vector<std::pair<E, const char*>>;

// What a reader expects, in words; nothing when the value was taken over.
using Mismatch = std::optional<std::string>;

Mismatch read_value(const YAML::Node& node, bool& out);
Mismatch read_value(const YAML::Node& node, std::string& out);
Mismatch read_value(const YAML::Node& node, int64_t& out, const Range& range);
Mismatch read_value(const YAML::Node& node, double& out, const Range& range);
Mismatch read_value(const YAML::Node& node, std::array<double, 2>& out, const Range& range);
Mismatch read_value(const YAML::Node& node, std::vector<DataSource>& out);

std::string write_value(bool value);
std::string write_value(const std::string& value);
std::string write_value(int64_t value);
std::string write_value(double value);
std::string write_value(const std::array<double, 2>& value);
std::string write_value(const std::vector<DataSource>& value);

// The types in words, for messages and the reference.
std::string type_name(bool);
std::string type_name(const std::string&);
std::string type_name(int64_t, const Range& range);
std::string type_name(double, const Range& range);
std::string type_name(const std::array<double, 2>&, const Range& range);
std::string type_name(const std::vector<DataSource>&);

template <class E>
std::string type_name(const EnumNames<E>& names) {
  std::string text;
  for (const auto& [unused, name] : names) text += (text.empty() ? "one of " : ", ") + std::string(name);
  return text;
}

template <class E>
Mismatch read_value(const YAML::Node& node, E& out, const EnumNames<E>& names) {
  for (const auto& [value, name] : names) {
    if (node.IsScalar() && node.Scalar() == name) {
      out = value;
      return std::nullopt;
    }
  }
  return type_name(names);
}

template <class E>
std::string write_value(E value, const EnumNames<E>& names) {
  for (const auto& [candidate, name] : names) {
    if (candidate == value) return write_value(std::string(name));
  }
  return "null";
}

// A value that may be absent; YAML's null stands for that and never reaches the reader.
template <class T, class... Limits>
Mismatch read_value(const YAML::Node& node, std::optional<T>& out, const Limits&... limits) {
  T value{};
  Mismatch mismatch = read_value(node, value, limits...);
  if (mismatch) return *mismatch + " or null";
  out = value;
  return std::nullopt;
}

template <class T>
std::string write_value(const std::optional<T>& value) {
  return value ? write_value(*value) : "null";
}

template <class T, class... Limits>
std::string type_name(const std::optional<T>&, const Limits&... limits) {
  return type_name(T{}, limits...) + " or null";
}

// A value found in the input, for messages: 'text', a list, a mapping.
std::string found_text(const YAML::Node& node);

}  // namespace egmla

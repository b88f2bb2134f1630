#include "io/config_values.h"

#include <algorithm>
#include <charconv>
#include <string_view>

#include "core/check.h"

namespace egmla {
namespace {

// yaml-cpp tags a quoted scalar "!".
bool is_plain(const YAML::Node& node) {
  return node.IsScalar() && node.Tag() != "!" && node.Tag() != "tag:yaml.org,2002:str";
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

// YAML 1.2's decimal numbers: [-+]? (digits [. digits] | . digits) ([eE] [-+]? digits)?
bool is_decimal(std::string_view text) {
  size_t i = 0;
  const auto sign = [&] { i += i < text.size() && (text[i] == '-' || text[i] == '+') ? 1 : 0; };
  const auto digits = [&] {
    const size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return i - begin;
  };
  sign();
  size_t mantissa = digits();
  if (i < text.size() && text[i] == '.') {
    ++i;
    mantissa += digits();
  }
  if (mantissa == 0) return false;
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    sign();
    if (digits() == 0) return false;
  }
  return i == text.size();
}

std::optional<double> parse_real(const YAML::Node& node) {
  if (!is_plain(node) || !is_decimal(node.Scalar())) return std::nullopt;
  std::string_view text = node.Scalar();
  if (text.front() == '+') text.remove_prefix(1);
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::optional<int64_t> parse_integer(const YAML::Node& node) {
  const std::optional<double> real = parse_real(node);
  if (!real) return std::nullopt;
  std::string_view text = node.Scalar();
  if (text.front() == '+') text.remove_prefix(1);
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size()) return value;
  // 1e6 and 2.0: through double, which is exact to 2^53.
  constexpr double kExact = 9007199254740992.0;
  if (std::floor(*real) != *real || std::abs(*real) > kExact) return std::nullopt;
  return static_cast<int64_t>(*real);
}

// What other YAML readers also take as text when it stands unquoted, inside lists too.
bool is_plain_text(const std::string& text) {
  constexpr std::array<std::string_view, 10> kWords = {"true", "false", "yes", "no", "on",
                                                       "off",  "null",  "y",   "n",  "nan"};
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; };
  const bool path = text.starts_with("/") || text.starts_with("./") || text.starts_with("../");
  if (text.empty() || (!letter(text.front()) && !path)) return false;
  const auto allowed = [&](char c) { return letter(c) || is_digit(c) || std::string_view("./-*").find(c) < 4; };
  if (!std::all_of(text.begin(), text.end(), allowed)) return false;
  std::string lower = text;
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return std::find(kWords.begin(), kWords.end(), lower) == kWords.end();
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += {'\\', c};
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  return out + "\"";
}

Mismatch read_source(const YAML::Node& node, DataSource& out) {
  if (node.IsScalar()) return read_value(node, out.path);
  if (!node.IsMap()) return "each element to be a path or {path: TEXT, weight: REAL}";
  std::vector<std::string> seen;
  for (const auto& item : node) {
    const std::string name = item.first.IsScalar() ? item.first.Scalar() : "";
    if (name != "path" && name != "weight") return "only the keys path and weight in an element";
    if (std::find(seen.begin(), seen.end(), name) != seen.end()) return "the key " + name + " once in an element";
    seen.push_back(name);
    const Mismatch mismatch =
        name == "path" ? read_value(item.second, out.path) : read_value(item.second, out.weight, kPositive);
    if (mismatch) return name + " to be " + *mismatch;
  }
  return std::nullopt;
}

}  // namespace

std::string Range::text() const {
  const bool below = std::isfinite(low), above = std::isfinite(high);
  if (below && above) return fmt::format(" in {}{}, {}{}", low_open ? '(' : '[', low, high, high_open ? ')' : ']');
  if (below) return fmt::format(" {} {}", low_open ? ">" : ">=", low);
  return "";
}

std::string found_text(const YAML::Node& node) {
  constexpr size_t kLongest = 60;
  if (node.IsMap()) return "a mapping";
  if (node.IsSequence()) return "a list";
  if (!node.IsScalar()) return "nothing";
  const std::string& text = node.Scalar();
  std::string shown = text.size() > kLongest ? text.substr(0, kLongest) + "..." : text;
  std::replace(shown.begin(), shown.end(), '\n', ' ');
  return fmt::format("'{0}{1}{0}'", node.Tag() == "!" ? "\"" : "", shown);
}

Mismatch read_value(const YAML::Node& node, bool& out) {
  if (!is_plain(node) || (node.Scalar() != "true" && node.Scalar() != "false")) return type_name(out);
  out = node.Scalar() == "true";
  return std::nullopt;
}

// Any scalar is text: a name such as 7 needs no quotes.
Mismatch read_value(const YAML::Node& node, std::string& out) {
  if (!node.IsScalar()) return type_name(out);
  out = node.Scalar();
  return std::nullopt;
}

Mismatch read_value(const YAML::Node& node, int64_t& out, const Range& range) {
  const auto value = parse_integer(node);
  if (!value || !range.contains(static_cast<double>(*value))) return type_name(out, range);
  out = *value;
  return std::nullopt;
}

Mismatch read_value(const YAML::Node& node, double& out, const Range& range) {
  const auto value = parse_real(node);
  if (!value || !range.contains(*value)) return type_name(out, range);
  out = *value;
  return std::nullopt;
}

Mismatch read_value(const YAML::Node& node, std::array<double, 2>& out, const Range& range) {
  std::array<double, 2> values{};
  bool ok = node.IsSequence() && node.size() == values.size();
  for (size_t i = 0; ok && i < values.size(); ++i) ok = !read_value(node[i], values[i], range);
  if (!ok) return type_name(out, range);
  out = values;
  return std::nullopt;
}

Mismatch read_value(const YAML::Node& node, std::vector<DataSource>& out) {
  std::vector<DataSource> sources;
  if (node.IsScalar()) {
    if (node.Scalar().empty()) return type_name(out);
    sources.push_back({.path = node.Scalar()});
  } else if (node.IsSequence()) {
    for (const auto& item : node) {
      if (Mismatch mismatch = read_source(item, sources.emplace_back())) return mismatch;
      if (sources.back().path.empty()) return "each element to have a path";
    }
  } else {
    return type_name(out);
  }
  out = std::move(sources);
  return std::nullopt;
}

std::string write_value(bool value) {
  return value ? "true" : "false";
}

std::string write_value(const std::string& value) {
  if (value.empty()) return "null";
  return is_plain_text(value) ? value : quoted(value);
}

std::string write_value(int64_t value) {
  return std::to_string(value);
}

// 1.0e-06 and not 1e-06, which YAML 1.1 readers take for text.
std::string write_value(double value) {
  std::string text = fmt::format("{}", value);
  const size_t exponent = text.find('e');
  if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
  return text;
}

std::string write_value(const std::array<double, 2>& value) {
  return fmt::format("[{}, {}]", write_value(value[0]), write_value(value[1]));
}

std::string write_value(const std::vector<DataSource>& value) {
  std::string out;
  for (const DataSource& source : value) {
    out += out.empty() ? "[" : ", ";
    const std::string path = write_value(source.path);
    out += source.weight == 1.0 ? path : fmt::format("{{path: {}, weight: {}}}", path, write_value(source.weight));
  }
  return out.empty() ? "[]" : out + "]";
}

std::string type_name(bool) {
  return "true or false";
}

std::string type_name(const std::string&) {
  return "text";
}

std::string type_name(int64_t, const Range& range) {
  return "an integer" + range.text();
}

std::string type_name(double, const Range& range) {
  return "a number" + range.text();
}

std::string type_name(const std::array<double, 2>&, const Range& range) {
  return "a list of two numbers" + range.text();
}

std::string type_name(const std::vector<DataSource>&) {
  return "a path, or a list of paths and {path: TEXT, weight: NUMBER}";
}

}  // namespace egmla

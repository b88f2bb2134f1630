#include "text/unicode.h"

#include <algorithm>
#include <vector>

namespace egmla {
namespace {

constexpr uint32_t kCodes = 0x110000;

std::vector<CharClass> make_classes() {
  std::vector<CharClass> classes(kCodes, CharClass::other);
  const auto mark = [&](std::span<const CodeRange> ranges, CharClass kind) {
    for (const CodeRange& range : ranges) std::fill(&classes[range.first], &classes[range.last] + 1, kind);
  };
  mark(letter_ranges(), CharClass::letter);
  mark(number_ranges(), CharClass::number);
  mark(space_ranges(), CharClass::space);
  return classes;
}

CharClass class_of(uint32_t code) {
  static const std::vector<CharClass> classes = make_classes();
  return classes[code];
}

// Length of the well-formed sequence (Unicode's table 3-7) at the front of `text`, its code point in `code`; 0: none.
uint8_t well_formed(std::string_view text, uint32_t& code) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  const uint8_t bytes = lead < 0x80 ? 1 : lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (bytes == 0 || text.size() < bytes) return 0;
  code = bytes == 1 ? lead : lead & (0x7Fu >> bytes);
  for (size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
    code = (code << 6) | (byte(i) & 0x3Fu);
  }
  const bool overlong = (bytes == 3 && code < 0x800) || (bytes == 4 && code < 0x10000);
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  return overlong || surrogate || code >= kCodes ? 0 : bytes;
}

}  // namespace

Char char_at(std::string_view text, size_t begin) {
  uint32_t code = 0;
  const uint8_t bytes = well_formed(text.substr(begin), code);
  if (bytes == 0) return {static_cast<uint8_t>(text[begin]), 1, CharClass::other};
  return {code, bytes, class_of(code)};
}

Char char_before(std::string_view text, size_t end) {
  for (size_t bytes = 1; bytes <= std::min(kLongestChar, end); ++bytes) {
    uint32_t code = 0;
    if (well_formed(text.substr(end - bytes, bytes), code) == bytes) {
      return {code, static_cast<uint8_t>(bytes), class_of(code)};
    }
  }
  return {static_cast<uint8_t>(text[end - 1]), 1, CharClass::other};
}

void append_utf8(std::string& text, uint32_t code) {
  const auto tail = [&](uint32_t shift) { text += static_cast<char>(0x80u | ((code >> shift) & 0x3Fu)); };
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else if (code < 0x800) {
    text += static_cast<char>(0xC0u | (code >> 6));
    tail(0);
  } else if (code < 0x10000) {
    text += static_cast<char>(0xE0u | (code >> 12));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0u | (code >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace egmla

// What GPT-2's pattern asks of a character: letter (\p{L}), number (\p{N}), white space (\s), or other.
// A byte that belongs to no valid UTF-8 sequence is one character of class other, so any bytes can be read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace egmla {

enum class CharClass : uint8_t { other, letter, number, space };

struct CodeRange {
  uint32_t first, last;
};

// Sorted and disjoint; Unicode 16.0 (unicode_tables.cpp).
std::span<const CodeRange> letter_ranges();
std::span<const CodeRange> number_ranges();
std::span<const CodeRange> space_ranges();

constexpr size_t kLongestChar = 4;  // bytes

// A character as it stands in a text.
struct Char {
  uint32_t code;  // code point; of an invalid byte, the byte itself
  uint8_t bytes;  // 1..4
  CharClass kind;
};

// The character that begins at `begin` < text.size().
Char char_at(std::string_view text, size_t begin);

// The character that ends at `end` > 0, where a reader from the front also sees one end.
Char char_before(std::string_view text, size_t end);

// Appends a code point as UTF-8.
void append_utf8(std::string& text, uint32_t code);

}  // namespace egmla

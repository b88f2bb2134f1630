#include "text/pretokenizer.h"

#include <array>

#include "text/unicode.h"

namespace egmla {
namespace {

constexpr std::array<std::string_view, 7> kContractions = {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"};

// End of the run of `kind` that holds the character at `begin`.
size_t run_end(std::string_view text, size_t begin, CharClass kind) {
  size_t end = begin;
  while (end < text.size()) {
    const Char next = char_at(text, end);
    if (next.kind != kind) break;
    end += next.bytes;
  }
  return end;
}

}  // namespace

size_t piece_end(std::string_view text, size_t begin) {
  const Char first = char_at(text, begin);
  if (first.code == '\'') {
    for (const std::string_view contraction : kContractions) {
      if (text.substr(begin).starts_with(contraction)) return begin + contraction.size();
    }
  }
  if (first.kind != CharClass::space) return run_end(text, begin, first.kind);
  const size_t next = begin + first.bytes;
  if (first.code == ' ' && next < text.size()) {
    const CharClass kind = char_at(text, next).kind;
    if (kind != CharClass::space) return run_end(text, next, kind);
  }
  const size_t end = run_end(text, begin, CharClass::space);
  if (end == text.size()) return end;
  // \s+(?!\S): the last white space of a run stays for the word after it, unless it is the whole run.
  const size_t shorter = end - char_before(text, end).bytes;
  return shorter > begin ? shorter : end;
}

bool always_breaks(std::string_view text, size_t at) {
  if ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) return false;  // perhaps inside a character
  const Char before = char_before(text, at);
  if (before.kind == CharClass::space || before.code == '\'') return false;
  return before.kind != char_at(text, at).kind;
}

size_t last_break(std::string_view text) {
  size_t at = text.size() > kLongestChar ? text.size() - kLongestChar : 0;
  while (at > 0 && !always_breaks(text, at)) --at;
  return at;
}

}  // namespace egmla

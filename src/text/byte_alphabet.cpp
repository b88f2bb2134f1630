#include "text/byte_alphabet.h"

#include <array>

#include "text/unicode.h"

namespace egmla {
namespace {

constexpr uint32_t kMoved = 256;  // code points from here on stand for bytes that do not print

constexpr bool prints(uint32_t byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

struct Alphabet {
  std::array<uint32_t, 256> code_of{};
  std::array<int, kMoved + 68> byte_of{};  // -1: not in the alphabet

  constexpr Alphabet() {
    byte_of.fill(-1);
    uint32_t moved = kMoved;
    for (uint32_t byte = 0; byte < 256; ++byte) {
      code_of[byte] = prints(byte) ? byte : moved++;
      byte_of[code_of[byte]] = static_cast<int>(byte);
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

uint32_t alphabet_code(uint8_t byte) {
  return kAlphabet.code_of[byte];
}

std::string to_alphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) append_utf8(text, alphabet_code(static_cast<uint8_t>(byte)));
  return text;
}

std::optional<std::string> from_alphabet(std::string_view text) {
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const Char next = char_at(text, at);
    if (next.code >= kAlphabet.byte_of.size() || kAlphabet.byte_of[next.code] < 0) return std::nullopt;
    if (next.bytes == 1 && next.code >= 0x80) return std::nullopt;  // not UTF-8
    bytes += static_cast<char>(kAlphabet.byte_of[next.code]);
    at += next.bytes;
  }
  return bytes;
}

}  // namespace egmla

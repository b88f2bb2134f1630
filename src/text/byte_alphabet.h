// The 256 printable characters that stand for bytes in byte-level vocabularies and merges: the printable ones of
// Latin-1 for themselves, the other 68 bytes as U+0100, U+0101, ... in order (a space is U+0120).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace egmla {

// The character that stands for a byte, as a code point.
uint32_t alphabet_code(uint8_t byte);

// Bytes written in the alphabet, UTF-8.
std::string to_alphabet(std::string_view bytes);

// The bytes that `text` stands for; nothing when it has a character outside the alphabet.
std::optional<std::string> from_alphabet(std::string_view text);

}  // namespace egmla

// GPT-2's pre-tokenisation, the pieces inside which byte pairs merge:
//   's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
// Every byte falls into exactly one piece.
#pragma once

#include <cstddef>
#include <string_view>

namespace egmla {

// End of the piece that begins at `begin` < text.size().
size_t piece_end(std::string_view text, size_t begin);

// Whether the text can be cut at `at` (0 < at < text.size()) without changing any piece, whatever follows the
// character at `at`, which must be whole.
// True only between characters of two classes, the first neither white space nor an apostrophe.
bool always_breaks(std::string_view text, size_t at);

// The last place where a text that goes on can be cut so; 0 when there is none.
size_t last_break(std::string_view text);

}  // namespace egmla

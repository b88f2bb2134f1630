// Learns a byte-level BPE vocabulary: the most frequent pair of neighbours inside GPT-2's pieces becomes a token, again
// and again; among equally frequent pairs the one of smaller ids. Pair counts are kept up, not counted anew.
// Ids as Hugging Face's trainer gives them: 0 <|endoftext|>, 1 to 256 the bytes in the alphabet's order, then merges.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "text/text_hash.h"
#include "text/tokenizer.h"

namespace egmla {

class BpeTrainer {
 public:
  static constexpr int64_t kSmallestVocabulary = 257;

  // Counts the pieces of the next part of a document.
  void add(std::string_view text);
  // What follows is another document.
  void end_document();

  // A vocabulary of at most `vocab_size` tokens: smaller when no pair is left that occurs twice.
  Tokenizer train(int64_t vocab_size) const;

 private:
  static constexpr size_t kBlock = 1 << 20;

  void count(std::string_view text);

  std::unordered_map<std::string, int64_t, TextHash, std::equal_to<>> counts_;  // by piece
  std::string pending_;                                                         // not counted yet
  size_t enough_ = kBlock;  // pending bytes worth looking for a break
};

}  // namespace egmla

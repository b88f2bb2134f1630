// Documents to token ids, block by block on several threads; ids come out in the order of the text.
// Blocks end where the tokenizer's ids do not depend on what follows, so they are those of whole documents.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace egmla {

class BlockEncoder {
 public:
  static constexpr size_t kBlock = 1 << 20;  // bytes

  using Output = std::function<void(std::span<const int32_t>)>;  // called on the caller's thread

  // Special tokens inside the text are read as plain text; each document is ended by the end-of-text id.
  BlockEncoder(const Tokenizer& tokenizer, int threads, Output output, size_t block = kBlock);

  // The next part of the current document.
  void add(std::string_view text);
  void end_document();
  // Encodes and passes on all text so far. Only between documents.
  void flush();

 private:
  struct Block {
    std::string text;
    std::vector<size_t> ends;  // of documents, in `text`
  };

  void start(size_t size);
  void pass_on_oldest();

  const Tokenizer& tokenizer_;
  const int32_t end_of_text_;
  const size_t threads_;
  const Output output_;
  const size_t block_size_;
  Block open_;                                          // gathered, not started
  size_t enough_;                                       // bytes of open_ worth looking for a cut
  std::deque<std::future<std::vector<int32_t>>> work_;  // in order
};

}  // namespace egmla

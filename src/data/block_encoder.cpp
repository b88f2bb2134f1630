#include "data/block_encoder.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace egmla {

BlockEncoder::BlockEncoder(const Tokenizer& tokenizer, int threads, Output output, size_t block)
    : tokenizer_(tokenizer),
      end_of_text_(tokenizer.end_of_text()),
      threads_(static_cast<size_t>(std::max(threads, 1))),
      output_(std::move(output)),
      block_size_(block),
      enough_(block) {}

void BlockEncoder::add(std::string_view text) {
  open_.text += text;
  if (open_.text.size() < enough_) return;
  const size_t begun = open_.ends.empty() ? 0 : open_.ends.back();  // where the open document begins
  const size_t cut = begun + tokenizer_.last_cut(std::string_view(open_.text).substr(begun));
  if (cut > 0) start(cut);
  enough_ = cut > 0 ? open_.text.size() + block_size_ : 2 * enough_;
}

void BlockEncoder::end_document() {
  open_.ends.push_back(open_.text.size());
  if (open_.text.size() < enough_) return;
  start(open_.text.size());
  enough_ = block_size_;
}

void BlockEncoder::flush() {
  check(open_.text.empty() || (!open_.ends.empty() && open_.ends.back() == open_.text.size()),
        "block encoder: flushed inside a document");
  if (!open_.text.empty()) start(open_.text.size());
  enough_ = block_size_;
  while (!work_.empty()) pass_on_oldest();
}

// Hands the first `size` bytes to a thread; they hold every document end so far.
void BlockEncoder::start(size_t size) {
  if (work_.size() == threads_) pass_on_oldest();
  Block block{open_.text.substr(0, size), std::exchange(open_.ends, {})};
  open_.text.erase(0, size);
  work_.push_back(std::async(std::launch::async, [this, block = std::move(block)] {
    std::vector<int32_t> ids;
    const auto encode = [&](size_t begin, size_t end) {
      const auto part = tokenizer_.encode(std::string_view(block.text).substr(begin, end - begin), false);
      ids.insert(ids.end(), part.begin(), part.end());
    };
    size_t begin = 0;
    for (const size_t end : block.ends) {
      encode(begin, end);
      ids.push_back(end_of_text_);
      begin = end;
    }
    encode(begin, block.text.size());
    return ids;
  }));
}

void BlockEncoder::pass_on_oldest() {
  const std::vector<int32_t> ids = work_.front().get();
  work_.pop_front();
  output_(ids);
}

}  // namespace egmla

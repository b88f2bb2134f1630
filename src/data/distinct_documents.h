// Documents gathered whole, each with a hash of its bytes, for what must know a document before it passes it on:
// leaving out those that came before, or choosing by content.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_set>

#include "data/documents.h"

namespace egmla {

// 128 bits: two documents of a corpus that share them are the same. Equal on every machine.
struct DocumentHash {
  uint64_t high = 0, low = 0;

  bool operator==(const DocumentHash&) const = default;
  // In [0, 1), as good as drawn at random.
  double fraction() const { return static_cast<double>(high >> 11) * 0x1.0p-53; }
};

DocumentHash document_hash(std::string_view text);

class DistinctDocuments {
 public:
  using Output = std::function<void(std::string_view text, const DocumentHash& hash)>;

  // With `deduplicate` a document comes out once, at its first place.
  DistinctDocuments(bool deduplicate, Output output) : deduplicate_(deduplicate), output_(std::move(output)) {}

  void add(std::string_view text) { open_ += text; }
  void end_document();

  int64_t documents_left_out() const { return documents_; }
  int64_t bytes_left_out() const { return bytes_; }

 private:
  struct Low {
    size_t operator()(const DocumentHash& hash) const { return static_cast<size_t>(hash.low); }
  };

  bool deduplicate_;
  Output output_;
  std::string open_;
  std::unordered_set<DocumentHash, Low> seen_;
  int64_t documents_ = 0, bytes_ = 0;
};

}  // namespace egmla

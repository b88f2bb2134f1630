#include "data/distinct_documents.h"

#include <bit>
#include <cstring>

namespace egmla {
namespace {

static_assert(std::endian::native == std::endian::little, "hashes are of little-endian words");

// Mixes 64 bits so that each depends on each (the finaliser of MurmurHash3 and SplitMix64).
uint64_t mixed(uint64_t x, uint64_t a, uint64_t b) {
  x = (x ^ (x >> 30)) * a;
  x = (x ^ (x >> 27)) * b;
  return x ^ (x >> 31);
}

}  // namespace

DocumentHash document_hash(std::string_view text) {
  DocumentHash hash{.high = text.size(), .low = ~uint64_t{text.size()}};
  for (size_t at = 0; at < text.size(); at += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, text.data() + at, std::min(sizeof word, text.size() - at));
    hash.high = mixed(hash.high + word + 0x9e3779b97f4a7c15u, 0xbf58476d1ce4e5b9u, 0x94d049bb133111ebu);
    hash.low = mixed(hash.low ^ word, 0xff51afd7ed558ccdu, 0xc4ceb9fe1a85ec53u) + 0x9e3779b97f4a7c15u;
  }
  return hash;
}

void DistinctDocuments::end_document() {
  const DocumentHash hash = document_hash(open_);
  if (deduplicate_ && !seen_.insert(hash).second) {
    ++documents_;
    bytes_ += static_cast<int64_t>(open_.size());
  } else {
    output_(open_, hash);
  }
  open_.clear();
}

}  // namespace egmla

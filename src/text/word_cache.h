// Ids of words met before, shared by threads. Words repeat by Zipf's law, so it fills once and is never emptied.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/text_hash.h"

namespace egmla {

class WordCache {
 public:
  static constexpr size_t kLongestWord = 64;  // bytes

  // Appends the word's ids when it is known.
  bool append(std::string_view word, std::vector<int32_t>& ids) {
    Part& part = part_of(word);
    const std::lock_guard lock(part.mutex);
    const auto found = part.words.find(word);
    if (found == part.words.end()) return false;
    ids.insert(ids.end(), found->second.begin(), found->second.end());
    return true;
  }

  void insert(std::string_view word, std::span<const int32_t> ids) {
    Part& part = part_of(word);
    const std::lock_guard lock(part.mutex);
    if (part.words.size() < kWordsInPart) part.words.try_emplace(std::string(word), ids.begin(), ids.end());
  }

 private:
  static constexpr size_t kParts = 256;
  static constexpr size_t kWordsInPart = 1024;

  struct Part {
    std::mutex mutex;
    std::unordered_map<std::string, std::vector<int32_t>, TextHash, std::equal_to<>> words;
  };

  // The upper bits, since the map inside a part goes by the lower ones.
  Part& part_of(std::string_view word) { return parts_[TextHash()(word) >> 56]; }

  std::array<Part, kParts> parts_;
};

}  // namespace egmla

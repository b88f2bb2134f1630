#include "data/shard_stats.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "data/shards.h"

namespace egmla {

double unigram_entropy_nats(std::span<const int64_t> counts) {
  const auto total = static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
  double entropy = 0.0;
  for (const int64_t count : counts) {
    const double p = static_cast<double>(count) / total;
    if (count > 0) entropy -= p * std::log(p);
  }
  return entropy;
}

ShardStats shard_stats(const std::vector<std::string>& paths, int32_t end_of_text) {
  constexpr int64_t kLargestVocabulary = 1 << 24;
  std::vector<int64_t> counts;
  ShardStats stats;
  for (const std::string& path : paths) {
    const Shard shard(path);
    stats.tokens += shard.size();
    for (int64_t i = 0; i < shard.size(); ++i) {
      const auto id = static_cast<uint32_t>(shard[i]);
      if (id >= counts.size()) {
        check_usage(id < kLargestVocabulary, "{}: token {} has the id {}; expected less than {}", path, i, id,
                    kLargestVocabulary);
        counts.resize(id + 1);
      }
      ++counts[id];
    }
  }
  const auto end = static_cast<size_t>(end_of_text);
  if (end_of_text >= 0 && end < counts.size()) stats.documents = counts[end];
  stats.distinct = std::count_if(counts.begin(), counts.end(), [](int64_t count) { return count > 0; });
  stats.entropy_nats = unigram_entropy_nats(counts);
  return stats;
}

}  // namespace egmla

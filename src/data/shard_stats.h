// What token shards hold, by counting every id.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace egmla {

struct ShardStats {
  int64_t tokens = 0;
  int64_t documents = 0;      // end-of-text ids; 0 when that id is unknown
  int64_t distinct = 0;       // ids that occur
  double entropy_nats = 0.0;  // of the unigram distribution: the loss of a model that knows frequencies alone
};

// -sum p ln p with p = count / sum of counts; 0 for no tokens.
double unigram_entropy_nats(std::span<const int64_t> counts);

// Statistics of the shards together. end_of_text: -1 when unknown.
ShardStats shard_stats(const std::vector<std::string>& paths, int32_t end_of_text);

}  // namespace egmla

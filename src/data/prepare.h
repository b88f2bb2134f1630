// Text files to a directory of token shards: train_000000.bin ..., val_000000.bin ..., tokenizer.json, and meta.json,
// which is written last. Until then a mark stands beside the shards, and readers refuse them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/documents.h"
#include "data/shards.h"

namespace egmla {

// Which documents are kept for validation: the last ones, or those whose content's hash says so, which are spread over
// all of the input and stay the same when documents join.
enum class ValSplit : uint8_t { last, hash };

struct PrepareOptions {
  std::vector<std::string> inputs;  // "-": standard input
  DocumentFormat format;
  std::string tokenizer;      // file or directory
  std::string out;            // directory
  double val_fraction = 0.0;  // of the documents; ValSplit::last: of the lines when that is less than one document
  ValSplit val_split = ValSplit::last;
  bool deduplicate = false;  // leave out documents that are byte for byte like one before
  int64_t shard_tokens = ShardWriter::kShardTokens;
  int threads = 0;     // 0: one for each core
  bool force = false;  // replace what an earlier preparation left in `out`
};

struct SplitSummary {
  int64_t tokens = 0, documents = 0, bytes = 0;  // bytes of text
  std::vector<std::string> shards;
};

struct PrepareSummary {
  SplitSummary train, val;
  int64_t duplicates = 0, duplicate_bytes = 0;  // documents left out
};

PrepareSummary prepare_data(const PrepareOptions& options);

}  // namespace egmla

// The `data` section of a configuration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace egmla {

enum class DataOrder : uint8_t { shuffled, sequential };

// Shards named by a path or glob, drawn with a probability proportional to weight (by tokens of training, not by size).
struct DataSource {
  std::string path;
  double weight = 1.0;
};

struct DataConfig {
  std::vector<DataSource> train;
  std::vector<DataSource> val;
  std::string tokenizer;        // file; empty: token ids in, no text out
  int64_t sequence_length = 0;  // T
  DataOrder order = DataOrder::shuffled;
  bool mask_documents = false;
};

}  // namespace egmla

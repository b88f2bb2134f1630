// A folder with shards of random ids and the configuration of a small EG-MLA, for tests of whole runs; removed at the
// end.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace egmla::test {

class RunFolder : public testing::Test {
 protected:
  static constexpr int64_t kVocabulary = 61;

  void SetUp() override;
  void TearDown() override;

  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  std::string checkpoint(const std::string& run, int64_t step) const;
  // NAME_000000.bin with ids drawn uniformly from `seed`.
  void write_shard(const std::string& name, int64_t tokens, uint64_t seed) const;
  // NAME with the model, the data of this folder, and `train`: the YAML of the train section and what follows it.
  void write_config(const std::string& name, const std::string& train) const;

  std::string folder_;
};

}  // namespace egmla::test

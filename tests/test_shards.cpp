// Token shards: llm.c's layout byte for byte, damage that is noticed, splitting, and the statistics.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numeric>

#include "core/check.h"
#include "core/files.h"
#include "data/shard_stats.h"
#include "data/shards.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

class ShardsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = (fs::temp_directory_path() / fmt::format("egmla_shards_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  // A shard of the ids; its path.
  std::string write(const Ids& ids, int64_t vocab_size) const {
    ShardWriter writer(directory_, "train", vocab_size);
    writer.append(ids);
    return directory_ + "/" + writer.finish().at(0);
  }

  std::string directory_;
};

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string shard_bytes(std::vector<int32_t> header, const std::string& ids) {
  header.resize(256);
  return bytes_of(header) + ids;
}

Ids all_of(const Shard& shard) {
  Ids ids(static_cast<size_t>(shard.size()));
  shard.read(0, shard.size(), ids.data());
  return ids;
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    return error.what();
  }
  return "no error";
}

void expect_message(const std::function<void()>& action, const std::string& expected) {
  const std::string found = message_of(action);
  EXPECT_NE(found.find(expected), std::string::npos) << found;
}

TEST_F(ShardsTest, LayoutIsThatOfLlmC) {
  const std::string narrow = write({5, 65535, 0}, 65536);
  EXPECT_EQ(read_file(narrow), shard_bytes({20240520, 1, 3}, bytes_of(std::vector<uint16_t>{5, 65535, 0})));
  EXPECT_EQ(all_of(Shard(narrow)), (Ids{5, 65535, 0}));
  const std::string wide = write({5, 128000, 65536}, 65537);
  EXPECT_EQ(read_file(wide), shard_bytes({20240801, 7, 3}, bytes_of(std::vector<uint32_t>{5, 128000, 65536})));
  EXPECT_EQ(all_of(Shard(wide)), (Ids{5, 128000, 65536}));
}

TEST_F(ShardsTest, DamageIsNamed) {
  const std::string path = directory_ + "/bad.bin";
  const std::string good = shard_bytes({20240520, 1, 4}, bytes_of(std::vector<uint16_t>{1, 2, 3, 4}));
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "truncated shard: 0 bytes; its header alone takes 1024"},
      {good.substr(0, 1000), "truncated shard: 1000 bytes"},
      {good.substr(0, good.size() - 1), "truncated shard: 1031 bytes; 4 tokens take 1032"},
      {good + "x", "trailing bytes: 1033 bytes; 4 tokens take 1032"},
      {shard_bytes({20240521, 1, 0}, ""), "its magic number is 20240521; expected 20240520 or 20240801"},
      {shard_bytes({20240520, 7, 0}, ""), "shard version 7; expected 1"},
      {shard_bytes({20240801, 1, 0}, ""), "shard version 1; expected 7"},
      {shard_bytes({20240520, 1, -4}, ""), "its header counts -4 tokens"},
  };
  for (const auto& [bytes, expected] : cases) {
    write_file(path, bytes);
    expect_message([&] { Shard{path}; }, path + ": ");
    expect_message([&] { Shard{path}; }, expected);
  }
  expect_message([&] { Shard{directory_ + "/none.bin"}; }, "missing shard");
  expect_message([&] { Shard{directory_}; }, "not a regular file");
}

TEST_F(ShardsTest, ReadsInsideAlone) {
  const Shard shard(write({10, 11, 12, 13}, 100));
  Ids ids(2);
  shard.read(1, 2, ids.data());
  EXPECT_EQ(ids, (Ids{11, 12}));
  EXPECT_EQ(shard[3], 13);
  EXPECT_THROW(shard.read(3, 2, ids.data()), Error);
  EXPECT_THROW(shard.read(-1, 2, ids.data()), Error);
}

TEST_F(ShardsTest, IdsAreHeldAgainstTheVocabulary) {
  const Shard narrow(write({1, 2, 99, 100}, 101));
  narrow.check_ids(101);
  narrow.check_ids(100, 3);
  expect_message([&] { narrow.check_ids(100); }, "token 3 has the id 100; the vocabulary ends at 99");
  const Shard wide(write({1, -1}, 1 << 20));  // 2^32 - 1 in the file
  expect_message([&] { wide.check_ids(1 << 20); }, "token 1 has the id 4294967295");
}

TEST_F(ShardsTest, SplitsAtTheLargestSize) {
  Ids ids(25);
  std::iota(ids.begin(), ids.end(), 0);
  ShardWriter writer(directory_, "val", 100, 10);
  writer.append(std::span(ids).first(13));
  writer.append(std::span(ids).subspan(13));
  EXPECT_EQ(writer.finish(), (std::vector<std::string>{"val_000000.bin", "val_000001.bin", "val_000002.bin"}));
  EXPECT_EQ(writer.tokens(), 25);
  Ids found;
  for (const std::string& path : expand_glob(directory_ + "/val_*.bin")) {
    const Ids part = all_of(Shard(path));
    EXPECT_LE(part.size(), 10u);
    found.insert(found.end(), part.begin(), part.end());
  }
  EXPECT_EQ(found, ids);
}

TEST_F(ShardsTest, UnfinishedShardsLeaveNothing) {
  {
    ShardWriter writer(directory_, "train", 100);
    writer.append(Ids{1, 2, 3});
    EXPECT_FALSE(fs::is_empty(directory_));
  }
  EXPECT_TRUE(fs::is_empty(directory_));
  EXPECT_TRUE(ShardWriter(directory_, "train", 100).finish().empty());
  expect_message([&] { expand_glob(directory_ + "/train_*.bin"); }, "missing shard: nothing matches");
}

TEST_F(ShardsTest, StatisticsCountEveryId) {
  const std::string path = write({0, 1, 1, 1, 0, 2, 2, 0}, 3);
  const ShardStats stats = shard_stats({path, path}, 0);
  EXPECT_EQ(stats.tokens, 16);
  EXPECT_EQ(stats.documents, 6);
  EXPECT_EQ(stats.distinct, 3);
  EXPECT_NEAR(stats.entropy_nats, -(0.75 * std::log(0.375) + 0.25 * std::log(0.25)), 1e-12);
  EXPECT_EQ(shard_stats({path}, -1).documents, 0);
  EXPECT_NEAR(unigram_entropy_nats(std::vector<int64_t>(50, 7)), std::log(50.0), 1e-12);
  EXPECT_EQ(unigram_entropy_nats(std::vector<int64_t>{}), 0.0);
}

}  // namespace
}  // namespace egmla

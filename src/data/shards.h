// Token shards in llm.c's layout: 256 int32 {magic, version, tokens, 0 ...}, then the ids, little-endian.
//   {20240520, 1, n} uint16 ids;  {20240801, 7, n} uint32 ids, for vocabularies over 65536
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/files.h"

namespace egmla {

// One shard, mapped into memory and checked against its length.
class Shard {
 public:
  // Beside shards whose preparation runs or was cut short: they are refused.
  static constexpr const char* kUnfinishedMark = ".preparing";

  explicit Shard(const std::string& path);

  const std::string& path() const { return path_; }
  // Tokens.
  int64_t size() const { return size_; }
  int32_t operator[](int64_t i) const {
    return wide_ ? static_cast<const int32_t*>(ids_)[i] : static_cast<const uint16_t*>(ids_)[i];
  }
  // Copies tokens [begin, begin + count), which must lie inside.
  void read(int64_t begin, int64_t count, int32_t* out) const;
  // A usage error when one of the first `tokens` ids is outside the vocabulary. Default: the first MiB.
  void check_ids(int64_t vocab_size, int64_t tokens) const;
  void check_ids(int64_t vocab_size) const { check_ids(vocab_size, (1 << 20) / (wide_ ? 4 : 2)); }

 private:
  struct Unmap {
    size_t bytes;
    void operator()(void* map) const;
  };

  std::string path_;
  std::unique_ptr<void, Unmap> map_;  // the whole file
  const void* ids_ = nullptr;
  int64_t size_ = 0;
  bool wide_ = false;  // uint32
};

// Whether a file begins as a token shard does, or is named like one (.bin).
bool is_shard(const std::string& path);

// Files that match, sorted; a usage error ("missing shard") when there is none.
std::vector<std::string> expand_glob(const std::string& pattern);

// Writes DIRECTORY/NAME_000000.bin, NAME_000001.bin, ... of at most shard_tokens each. A file takes its name when it is
// complete and on the disk.
class ShardWriter {
 public:
  static constexpr int64_t kShardTokens = 100'000'000;

  ShardWriter(std::string directory, std::string name, int64_t vocab_size, int64_t shard_tokens = kShardTokens);

  void append(std::span<const int32_t> ids);
  // Completes the last shard; names of all files, without the directory.
  std::vector<std::string> finish();
  int64_t tokens() const { return tokens_; }

 private:
  void open();
  void close();
  void write(const void* data, size_t bytes);

  std::string directory_, name_;
  bool wide_;
  int64_t shard_tokens_;
  int64_t tokens_ = 0;    // in all shards
  int64_t in_shard_ = 0;  // in the open one
  std::unique_ptr<PendingFile> pending_;
  std::ofstream file_;
  std::vector<std::string> names_;
};

}  // namespace egmla

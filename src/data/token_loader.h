// Training samples as a pure function of (seed, sample number): nothing to save but a counter, and N ranks or a resumed
// run see the same samples in the same steps.
//   A source is its shards as one stream; its sample j is tokens [j T, j T + T], T + 1 ids, the last only a target.
//   sequential: sample i of the run is sample i mod N.  shuffled: each epoch is a seeded permutation, and sources are
//   drawn by weight: every block of kMixtureBlock samples holds each source's exact share, in a seeded order.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "data/data_config.h"
#include "data/shards.h"

namespace egmla {

// The shards of one source, or ids in memory, as one stream of ids.
class TokenStream {
 public:
  // `pattern` is a path or glob; raises a usage error for no match, a bad shard, or ids outside the vocabulary.
  TokenStream(const std::string& pattern, int64_t vocab_size);
  // `name` stands in messages.
  TokenStream(std::string name, std::vector<int32_t> ids, int64_t vocab_size);

  const std::string& name() const { return name_; }
  int64_t size() const { return offsets_.back(); }
  // Copies ids [begin, begin + count) across shard borders and checks them; an error names the shard and position.
  void read(int64_t begin, int64_t count, int32_t* out) const;
  // "FILE:POSITION" of a token.
  std::string locate(int64_t token) const;

 private:
  std::string name_;
  std::vector<Shard> shards_;
  std::vector<int32_t> ids_;      // where there are no shards
  std::vector<int64_t> offsets_;  // first token of each shard; total at the end
  int64_t vocab_size_;
};

class TokenLoader {
 public:
  static constexpr int64_t kMixtureBlock = 4096;

  TokenLoader(const std::vector<DataSource>& sources, DataOrder order, int64_t sequence_length, int64_t vocab_size,
              uint64_t seed);

  // Samples in one pass over all sources.
  int64_t samples_per_epoch() const;
  int64_t tokens() const;
  // The T + 1 ids of global sample i.
  void read(int64_t sample, int32_t* out) const;
  // Where global sample i begins, for messages.
  std::string locate(int64_t sample) const;

 private:
  struct Place {
    size_t source = 0;
    int64_t sample = 0;  // of that source
  };
  Place place(int64_t sample) const;
  Place mixed(int64_t sample) const;
  int64_t samples(size_t source) const { return (streams_[source].size() - 1) / sequence_length_; }

  std::vector<TokenStream> streams_;
  std::vector<int64_t> shares_;  // samples of each source in a mixture block
  DataOrder order_;
  int64_t sequence_length_;
  uint64_t seed_;
};

// Every token of validation data once, front to back, in windows of up to T + 1 ids that begin every `stride` tokens.
// A token counts in the first window that reaches it, so all but a stream's first T have at least T - stride tokens
// before them. The last window of a stream may be shorter.
class ValidationSet {
 public:
  ValidationSet(const std::vector<DataSource>& sources, int64_t sequence_length, int64_t vocab_size);
  // 1 <= stride <= sequence_length.
  ValidationSet(std::vector<TokenStream> streams, int64_t sequence_length, int64_t stride);

  int64_t sequences() const;
  struct Window {
    int64_t count = 0;          // ids
    int64_t first_counted = 0;  // targets before it were counted in the window before
  };
  // Writes the ids of window i to `out`, up to T + 1.
  Window read(int64_t sequence, int32_t* out) const;

 private:
  int64_t windows(const TokenStream& stream) const;

  std::vector<TokenStream> streams_;
  int64_t sequence_length_;
  int64_t stride_;
};

}  // namespace egmla

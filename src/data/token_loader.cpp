#include "data/token_loader.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/check.h"
#include "data/permutation.h"

namespace egmla {
namespace {

constexpr uint64_t kMixtureStream = 0x6d697874;  // keeps the mixture's draws apart from the sources'

std::vector<TokenStream> open_all(const std::vector<DataSource>& sources, int64_t vocab_size) {
  std::vector<TokenStream> streams;
  for (const DataSource& source : sources) streams.emplace_back(source.path, vocab_size);
  return streams;
}

}  // namespace

TokenStream::TokenStream(const std::string& pattern, int64_t vocab_size)
    : name_(pattern), offsets_{0}, vocab_size_(vocab_size) {
  for (const std::string& path : expand_glob(pattern)) {
    shards_.emplace_back(path);
    shards_.back().check_ids(vocab_size);
    offsets_.push_back(offsets_.back() + shards_.back().size());
  }
}

TokenStream::TokenStream(std::string name, std::vector<int32_t> ids, int64_t vocab_size)
    : name_(std::move(name)), ids_(std::move(ids)), offsets_{0, std::ssize(ids_)}, vocab_size_(vocab_size) {}

void TokenStream::read(int64_t begin, int64_t count, int32_t* out) const {
  if (shards_.empty()) std::copy_n(ids_.begin() + begin, count, out);
  size_t shard = static_cast<size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), begin) - offsets_.begin()) - 1;
  for (int64_t done = 0; !shards_.empty() && done < count; ++shard) {
    const int64_t from = begin + done - offsets_[shard];
    const int64_t part = std::min(count - done, shards_[shard].size() - from);
    shards_[shard].read(from, part, out + done);
    done += part;
  }
  for (int64_t i = 0; i < count; ++i) {
    if (out[i] < 0 || out[i] >= vocab_size_)
      fail_usage(
          "{}: id {} is outside the vocabulary of {}; prepare the data with this model's tokenizer or raise "
          "model.vocab_size",
          locate(begin + i), out[i], vocab_size_);
  }
}

std::string TokenStream::locate(int64_t token) const {
  if (shards_.empty()) return fmt::format("{}: token {}", name_, token);
  const size_t shard =
      static_cast<size_t>(std::upper_bound(offsets_.begin(), offsets_.end(), token) - offsets_.begin()) - 1;
  return fmt::format("{}: token {}", shards_[shard].path(), token - offsets_[shard]);
}

TokenLoader::TokenLoader(const std::vector<DataSource>& sources, DataOrder order, int64_t sequence_length,
                         int64_t vocab_size, uint64_t seed)
    : order_(order), sequence_length_(sequence_length), seed_(seed) {
  for (const DataSource& source : sources) {
    streams_.emplace_back(source.path, vocab_size);
    check_usage(streams_.back().size() > sequence_length,
                "data.train: {} holds {} tokens; a sample needs data.sequence_length + 1 = {}", source.path,
                streams_.back().size(), sequence_length + 1);
  }
  check_usage(order == DataOrder::shuffled || sources.size() == 1,
              "data.order: sequential reads one source as one stream, found {} sources", sources.size());
  double total = 0, before = 0;
  for (const DataSource& source : sources) total += source.weight;
  for (const DataSource& source : sources) {
    // Rounding the running sum makes the shares add up to the block.
    const auto border = [&](double weight) {
      return std::llround(weight / total * static_cast<double>(kMixtureBlock));
    };
    shares_.push_back(border(before + source.weight) - border(before));
    before += source.weight;
    check_usage(shares_.back() > 0, "data.train: the weight of {} is below 1/{} of all", source.path, kMixtureBlock);
  }
}

int64_t TokenLoader::samples_per_epoch() const {
  int64_t sum = 0;
  for (size_t s = 0; s < streams_.size(); ++s) sum += samples(s);
  return sum;
}

int64_t TokenLoader::tokens() const {
  int64_t sum = 0;
  for (const TokenStream& stream : streams_) sum += stream.size();
  return sum;
}

TokenLoader::Place TokenLoader::mixed(int64_t sample) const {
  if (streams_.size() == 1) return {0, sample};
  const int64_t block = sample / kMixtureBlock;
  int64_t slot =
      Permutation(kMixtureBlock, seed_ ^ kMixtureStream, static_cast<uint64_t>(block))[sample % kMixtureBlock];
  size_t source = 0;
  while (slot >= shares_[source]) slot -= shares_[source++];
  return {source, block * shares_[source] + slot};
}

TokenLoader::Place TokenLoader::place(int64_t sample) const {
  Place drawn = mixed(sample);
  const int64_t count = samples(drawn.source), epoch = drawn.sample / count, position = drawn.sample % count;
  if (order_ == DataOrder::sequential) return {drawn.source, position};
  const uint64_t stream = (static_cast<uint64_t>(drawn.source) << 48) | static_cast<uint64_t>(epoch);
  return {drawn.source, Permutation(count, seed_, stream)[position]};
}

void TokenLoader::read(int64_t sample, int32_t* out) const {
  const Place at = place(sample);
  streams_[at.source].read(at.sample * sequence_length_, sequence_length_ + 1, out);
}

std::string TokenLoader::locate(int64_t sample) const {
  const Place at = place(sample);
  return streams_[at.source].locate(at.sample * sequence_length_);
}

ValidationSet::ValidationSet(const std::vector<DataSource>& sources, int64_t sequence_length, int64_t vocab_size)
    : ValidationSet(open_all(sources, vocab_size), sequence_length, sequence_length) {}

ValidationSet::ValidationSet(std::vector<TokenStream> streams, int64_t sequence_length, int64_t stride)
    : streams_(std::move(streams)), sequence_length_(sequence_length), stride_(stride) {
  check_usage(stride >= 1 && stride <= sequence_length, "stride: {}; expected 1 to data.sequence_length, which is {}",
              stride, sequence_length);
  for (const TokenStream& stream : streams_)
    check_usage(stream.size() > 1, "data.val: {} holds {} tokens; at least 2 are needed", stream.name(), stream.size());
}

int64_t ValidationSet::windows(const TokenStream& stream) const {
  const int64_t targets = stream.size() - 1, behind_first = std::max<int64_t>(0, targets - sequence_length_);
  return 1 + (behind_first + stride_ - 1) / stride_;
}

int64_t ValidationSet::sequences() const {
  int64_t sum = 0;
  for (const TokenStream& stream : streams_) sum += windows(stream);
  return sum;
}

ValidationSet::Window ValidationSet::read(int64_t sequence, int32_t* out) const {
  size_t source = 0;
  while (sequence >= windows(streams_[source])) sequence -= windows(streams_[source++]);
  const int64_t begin = sequence * stride_;
  const int64_t count = std::min(sequence_length_ + 1, streams_[source].size() - begin);
  streams_[source].read(begin, count, out);
  return {.count = count, .first_counted = sequence == 0 ? 0 : sequence_length_ - stride_};
}

}  // namespace egmla

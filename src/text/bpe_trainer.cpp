#include "text/bpe_trainer.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

#include "core/check.h"
#include "text/byte_alphabet.h"
#include "text/pretokenizer.h"

namespace egmla {
namespace {

using Pair = std::pair<int32_t, int32_t>;

struct PairHash {
  size_t operator()(const Pair& pair) const {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32 | static_cast<uint32_t>(pair.second);
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 16);
  }
};

struct Word {
  std::vector<int32_t> ids;
  int64_t count;
};

struct PairUse {
  int64_t count = 0;
  std::vector<int32_t> words;  // where the pair may stand; some are stale or named twice
};

struct Candidate {
  int64_t count;
  Pair pair;
  // The order of a queue whose top is the most frequent pair, the smallest among equals.
  bool operator<(const Candidate& other) const {
    return count != other.count ? count < other.count : pair > other.pair;
  }
};

// The words as they stand after the merges so far, and the pairs in them.
class PairTable {
 public:
  explicit PairTable(std::vector<Word> words) : words_(std::move(words)) {
    for (size_t w = 0; w < words_.size(); ++w) {
      const auto& ids = words_[w].ids;
      for (size_t i = 0; i + 1 < ids.size(); ++i) change({ids[i], ids[i + 1]}, w, words_[w].count);
    }
    for (const auto& [pair, use] : uses_) queue_.push({use.count, pair});
  }

  // The most frequent pair; false when none occurs `least` times.
  bool pop(int64_t least, Pair& best) {
    while (!queue_.empty()) {
      const Candidate top = queue_.top();
      queue_.pop();
      const auto found = uses_.find(top.pair);
      if (found == uses_.end() || found->second.count != top.count) continue;  // its new count was queued too
      if (top.count < least) return false;
      best = top.pair;
      return true;
    }
    return false;
  }

  // Replaces the pair by `id` in every word.
  void merge(const Pair& pair, int32_t id) {
    const std::vector<int32_t> places = std::move(uses_.at(pair).words);
    changed_.clear();
    for (const int32_t place : places) merge_in_word(static_cast<size_t>(place), pair, id);
    std::sort(changed_.begin(), changed_.end());
    changed_.erase(std::unique(changed_.begin(), changed_.end()), changed_.end());
    for (const Pair& each : changed_) {
      const auto found = uses_.find(each);
      if (found->second.count > 0) {
        queue_.push({found->second.count, each});
      } else {
        uses_.erase(found);
      }
    }
  }

 private:
  void change(const Pair& pair, size_t word, int64_t count) {
    PairUse& use = uses_[pair];
    use.count += count;
    const auto place = static_cast<int32_t>(word);
    if (count > 0 && (use.words.empty() || use.words.back() != place)) use.words.push_back(place);
  }

  void merge_in_word(size_t w, const Pair& pair, int32_t id) {
    auto& ids = words_[w].ids;
    std::vector<int32_t> merged;
    for (size_t i = 0; i < ids.size(); ++i) {
      const bool hit = i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
      merged.push_back(hit ? id : ids[i]);
      i += hit;
    }
    if (merged.size() == ids.size()) return;
    const auto count_pairs = [&](const std::vector<int32_t>& symbols, int64_t count) {
      for (size_t i = 0; i + 1 < symbols.size(); ++i) {
        change({symbols[i], symbols[i + 1]}, w, count);
        changed_.emplace_back(symbols[i], symbols[i + 1]);
      }
    };
    count_pairs(ids, -words_[w].count);
    count_pairs(merged, words_[w].count);
    ids = std::move(merged);
  }

  std::vector<Word> words_;
  std::unordered_map<Pair, PairUse, PairHash> uses_;
  std::priority_queue<Candidate> queue_;
  std::vector<Pair> changed_;  // by the current merge
};

// <|endoftext|>, then the 256 bytes in the order of the characters that stand for them.
TokenizerModel first_tokens() {
  TokenizerModel model;
  model.tokens.emplace_back(Tokenizer::kEndOfText);
  model.added.push_back({.id = 0, .text = Tokenizer::kEndOfText});
  std::array<uint8_t, 256> bytes{};
  std::iota(bytes.begin(), bytes.end(), uint8_t{0});
  std::sort(bytes.begin(), bytes.end(), [](uint8_t a, uint8_t b) { return alphabet_code(a) < alphabet_code(b); });
  for (const uint8_t byte : bytes) {
    model.byte_ids[byte] = static_cast<int32_t>(model.tokens.size());
    model.tokens.emplace_back(1, static_cast<char>(byte));
  }
  return model;
}

}  // namespace

void BpeTrainer::add(std::string_view text) {
  pending_ += text;
  if (pending_.size() < enough_) return;
  const size_t cut = last_break(pending_);
  count(std::string_view(pending_).substr(0, cut));
  pending_.erase(0, cut);
  enough_ = cut > 0 ? pending_.size() + kBlock : 2 * enough_;
}

void BpeTrainer::end_document() {
  count(pending_);
  pending_.clear();
  enough_ = kBlock;
}

void BpeTrainer::count(std::string_view text) {
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = piece_end(text, begin);
    const std::string_view piece = text.substr(begin, end - begin);
    const auto found = counts_.find(piece);
    if (found != counts_.end()) {
      ++found->second;
    } else {
      counts_.emplace(piece, 1);
    }
    begin = end;
  }
}

Tokenizer BpeTrainer::train(int64_t vocab_size) const {
  check_usage(vocab_size >= kSmallestVocabulary,
              "tokenizer train: vocabulary of {}; expected at least {}: {} and 256 bytes", vocab_size,
              kSmallestVocabulary, Tokenizer::kEndOfText);
  TokenizerModel model = first_tokens();
  std::unordered_map<std::string, int32_t> id_of;
  for (size_t id = 1; id < model.tokens.size(); ++id) id_of.emplace(model.tokens[id], static_cast<int32_t>(id));
  std::vector<Word> words;
  for (const auto& [piece, count] : counts_) {
    Word word{{}, count};
    for (const char byte : piece) word.ids.push_back(model.byte_ids[static_cast<uint8_t>(byte)]);
    words.push_back(std::move(word));
  }
  PairTable pairs(std::move(words));
  Pair best;
  while (static_cast<int64_t>(model.tokens.size()) < vocab_size && pairs.pop(2, best)) {
    std::string bytes = model.tokens[static_cast<size_t>(best.first)] + model.tokens[static_cast<size_t>(best.second)];
    // The same bytes may come about by another merge; they stay one token.
    const auto [entry, is_new] = id_of.emplace(bytes, static_cast<int32_t>(model.tokens.size()));
    if (is_new) model.tokens.push_back(std::move(bytes));
    model.merges.push_back({best.first, best.second, entry->second});
    pairs.merge(best, entry->second);
  }
  return Tokenizer(std::move(model));
}

}  // namespace egmla

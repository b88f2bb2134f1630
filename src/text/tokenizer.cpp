#include "text/tokenizer.h"

#include <algorithm>
#include <limits>

#include "core/check.h"
#include "text/pretokenizer.h"
#include "text/unicode.h"
#include "text/word_cache.h"

namespace egmla {
namespace {

struct Symbol {
  int32_t id;              // -1: merged into its left neighbour
  int32_t previous, next;  // -1: none
};

struct Candidate {
  int32_t rank, at, result;
  // The order of a heap whose front is the lowest rank, leftmost.
  bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
};

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

}  // namespace

// What one call of encode() writes to.
struct Tokenizer::Scratch {
  std::vector<int32_t> ids;  // the result
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

Tokenizer::Tokenizer(TokenizerModel model) : model_(std::move(model)), cache_(std::make_shared<WordCache>()) {
  rules_.reserve(model_.merges.size());
  for (size_t rank = 0; rank < model_.merges.size(); ++rank) {
    const Merge& merge = model_.merges[rank];
    rules_.insert_or_assign(pair_key(merge.left, merge.right), Rule{static_cast<int32_t>(rank), merge.result});
  }
  const auto found = std::find(model_.tokens.begin(), model_.tokens.end(), kEndOfText);
  if (found != model_.tokens.end()) end_of_text_ = static_cast<int32_t>(found - model_.tokens.begin());
  index_added();
}

void Tokenizer::index_added() {
  for (const bool normalized : {false, true}) {
    AddedIndex index;
    bool any = false;
    for (size_t i = 0; i < model_.added.size(); ++i) {
      const AddedToken& token = model_.added[i];
      longest_added_ = std::max(longest_added_, token.text.size());
      if (token.normalized != normalized) continue;
      index[static_cast<uint8_t>(token.text[0])].push_back(i);
      any = true;
    }
    for (auto& entries : index) {
      std::stable_sort(entries.begin(), entries.end(),
                       [&](size_t a, size_t b) { return model_.added[a].text.size() > model_.added[b].text.size(); });
    }
    if (any) stages_.push_back(std::move(index));
  }
}

int32_t Tokenizer::end_of_text() const {
  check_usage(end_of_text_ >= 0, "tokenizer: it has no {} token; documents cannot be ended; add it to added_tokens",
              kEndOfText);
  return end_of_text_;
}

std::string_view Tokenizer::bytes_of(int32_t id) const {
  check_usage(id >= 0 && id < vocab_size(),
              "tokenizer: token id {}; expected 0 to {}; was the data made with another tokenizer?", id,
              vocab_size() - 1);
  return model_.tokens[static_cast<size_t>(id)];
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text += bytes_of(id);
  return text;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  check_usage(text.size() <= std::numeric_limits<int32_t>::max(), "tokenizer: text of {} bytes; expected at most 2 GiB",
              text.size());
  Scratch scratch;
  encode_from_stage(text, 0, special, scratch);
  return std::move(scratch.ids);
}

void Tokenizer::encode_from_stage(std::string_view text, size_t stage, bool special, Scratch& scratch) const {
  if (stage == stages_.size()) return encode_plain(text, scratch);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* found = nullptr;
    for (const size_t i : stages_[stage][static_cast<uint8_t>(text[at])]) {
      const AddedToken& token = model_.added[i];
      if ((token.special && !special) || !text.substr(at).starts_with(token.text)) continue;
      found = &token;
      break;
    }
    if (found == nullptr) {
      ++at;
      continue;
    }
    encode_from_stage(text.substr(begin, at - begin), stage + 1, special, scratch);
    scratch.ids.push_back(found->id);
    begin = at += found->text.size();
  }
  encode_from_stage(text.substr(begin), stage + 1, special, scratch);
}

void Tokenizer::encode_plain(std::string_view text, Scratch& scratch) const {
  if (text.empty()) return;
  std::string prefixed;
  if (model_.add_prefix_space && text[0] != ' ') text = prefixed.append(" ").append(text);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = piece_end(text, begin);
    const std::string_view piece = text.substr(begin, end - begin);
    begin = end;
    if (piece.size() > WordCache::kLongestWord) {
      merge_piece(piece, scratch);
    } else if (!cache_->append(piece, scratch.ids)) {
      const size_t before = scratch.ids.size();
      merge_piece(piece, scratch);
      cache_->insert(piece, std::span(scratch.ids).subspan(before));
    }
  }
}

const Tokenizer::Rule* Tokenizer::rule(int32_t left, int32_t right) const {
  const auto found = rules_.find(pair_key(left, right));
  return found == rules_.end() ? nullptr : &found->second;
}

// A heap of candidates over a linked list: O(n log n) also for a piece of a million bytes.
void Tokenizer::merge_piece(std::string_view piece, Scratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  const auto count = static_cast<int32_t>(piece.size());
  for (int32_t i = 0; i < count; ++i) {
    const auto byte = static_cast<uint8_t>(piece[static_cast<size_t>(i)]);
    symbols.push_back({model_.byte_ids[byte], i - 1, i + 1 < count ? i + 1 : -1});
  }
  const auto symbol = [&](int32_t i) -> Symbol& { return symbols[static_cast<size_t>(i)]; };
  const auto propose = [&](int32_t at) {
    if (at < 0 || symbol(at).next < 0) return;
    const Rule* found = rule(symbol(at).id, symbol(symbol(at).next).id);
    if (found == nullptr) return;
    heap.push_back({found->rank, at, found->result});
    std::push_heap(heap.begin(), heap.end());
  };
  for (int32_t i = 0; i < count; ++i) propose(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = symbol(best.at);
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = symbol(left.next);
    const Rule* current = rule(left.id, right.id);  // an earlier merge may have changed either side
    if (current == nullptr || current->result != best.result) continue;
    left.id = best.result;
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) symbol(left.next).previous = best.at;
    propose(left.previous);
    propose(best.at);
  }
  for (const Symbol& each : symbols) {
    if (each.id >= 0) scratch.ids.push_back(each.id);
  }
}

size_t Tokenizer::last_cut(std::string_view text) const {
  const size_t margin = std::max(kLongestChar, longest_added_);
  const auto inside_added = [&](size_t at) {
    return std::any_of(model_.added.begin(), model_.added.end(), [&](const AddedToken& token) {
      const size_t reach = std::min(at, token.text.size() - 1);
      const std::string_view around = text.substr(at - reach, reach + token.text.size() - 1);
      return around.find(token.text) != std::string_view::npos;
    });
  };
  for (size_t at = text.size() > margin ? text.size() - margin : 0; at > 0; --at) {
    if (model_.add_prefix_space && text[at] != ' ') continue;  // the second part would get a space of its own
    if (always_breaks(text, at) && !inside_added(at)) return at;
  }
  return 0;
}

}  // namespace egmla

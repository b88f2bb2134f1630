// Byte-level BPE, as Hugging Face's `tokenizers` encodes: added tokens are found first (longest at the leftmost place),
// the text between them is cut by GPT-2's pattern, and inside a piece the merge of lowest rank, leftmost, goes first.
// Any bytes can be encoded, and decode(encode(text)) == text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace egmla {

class WordCache;

// A token found in the text before anything else.
struct AddedToken {
  int32_t id = 0;
  std::string text;
  bool special = true;        // control text: encode(text, false) reads it as plain text
  bool normalized = false;    // sought only after those that are not
  bool in_vocabulary = true;  // the model's vocabulary lists it too
};

// Two neighbours that become one token. The rank of a merge is its place in the list.
struct Merge {
  int32_t left, right, result;
};

// All that a tokenizer consists of.
struct TokenizerModel {
  std::vector<std::string> tokens;      // bytes by id; empty: no token has this id
  std::array<int32_t, 256> byte_ids{};  // token of each single byte
  std::vector<Merge> merges;
  std::vector<AddedToken> added;
  bool add_prefix_space = false;
};

class Tokenizer {
 public:
  static constexpr const char* kEndOfText = "<|endoftext|>";

  explicit Tokenizer(TokenizerModel model);

  // A tokenizer.json, GPT-2's encoder.json or the vocab.bpe beside it, or a directory that holds one of the two kinds.
  static Tokenizer load(const std::string& path);
  // The text of a tokenizer.json; `name` stands in messages.
  static Tokenizer from_json(const std::string& text, const std::string& name);
  // The texts of encoder.json and vocab.bpe.
  static Tokenizer from_gpt2(const std::string& encoder, const std::string& merges, const std::string& name);
  // A tokenizer.json; equal for equal tokenizers.
  std::string to_json() const;

  // One more than the largest id.
  int64_t vocab_size() const { return static_cast<int64_t>(model_.tokens.size()); }
  // Id of <|endoftext|>; an error when there is none.
  int32_t end_of_text() const;

  // Ids of a text. special: whether special tokens such as <|endoftext|> are recognised. Safe to call from many
  // threads.
  std::vector<int32_t> encode(std::string_view text, bool special = true) const;
  std::string decode(std::span<const int32_t> ids) const;
  // The bytes of one token.
  std::string_view bytes_of(int32_t id) const;
  // How many bytes of a document a token stands for: none for the end of text.
  int64_t text_bytes(int32_t id) const { return id == end_of_text_ ? 0 : std::ssize(bytes_of(id)); }

  // The last place where the text can be cut so that encoding the two parts gives the ids of the whole, whatever text
  // follows; 0 when there is none.
  size_t last_cut(std::string_view text) const;

 private:
  struct Rule {
    int32_t rank, result;
  };
  // Positions in model_.added by first byte, longest text first.
  using AddedIndex = std::array<std::vector<size_t>, 256>;
  struct Scratch;

  void index_added();
  void encode_from_stage(std::string_view text, size_t stage, bool special, Scratch& scratch) const;
  void encode_plain(std::string_view text, Scratch& scratch) const;
  void merge_piece(std::string_view piece, Scratch& scratch) const;
  const Rule* rule(int32_t left, int32_t right) const;

  TokenizerModel model_;
  std::unordered_map<uint64_t, Rule> rules_;  // by (left, right)
  std::vector<AddedIndex> stages_;            // sought one after the other
  size_t longest_added_ = 0;
  int32_t end_of_text_ = -1;
  std::shared_ptr<WordCache> cache_;
};

}  // namespace egmla

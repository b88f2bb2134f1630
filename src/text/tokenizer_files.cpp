// The two file formats of a Tokenizer: Hugging Face's tokenizer.json and GPT-2's encoder.json with vocab.bpe.
// Features that would change the ids and are unknown here are refused, so a tokenizer that loads encodes as its source
// does.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "core/check.h"
#include "core/files.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using IdOf = std::unordered_map<std::string, int32_t>;

constexpr int64_t kLargestId = (1 << 24) - 1;

// The value at a dotted key; null where it is absent.
const Json& value_at(const Json& root, const std::string& key) {
  static const Json absent;
  const Json* value = &root;
  for (size_t begin = 0; begin <= key.size();) {
    const size_t end = std::min(key.find('.', begin), key.size());
    if (!value->is_object()) return absent;
    const auto found = value->find(key.substr(begin, end - begin));
    if (found == value->end()) return absent;
    value = &*found;
    begin = end + 1;
  }
  return *value;
}

// The key must be absent, null or one of the values given.
void expect(const Json& root, const std::string& name, const std::string& key, const std::vector<Json>& allowed) {
  const Json& value = value_at(root, key);
  if (value.is_null()) return;
  std::string words = "null";
  for (const Json& each : allowed) {
    if (value == each) return;
    words = each.dump() + " or " + words;
  }
  fail_usage("{}: {}: found {}; egmla reads byte-level BPE with {} here", name, key, value.dump().substr(0, 80), words);
}

// Refuses what would make the ids differ from those of the `tokenizers` package.
void expect_supported(const Json& root, const std::string& name) {
  check_usage(root.is_object() && value_at(root, "model").is_object(),
              "{}: it has no model; expected a Hugging Face tokenizer.json", name);
  expect(root, name, "model.type", {"BPE"});
  expect(root, name, "model.dropout", {0.0});
  expect(root, name, "model.unk_token", {});
  expect(root, name, "model.continuing_subword_prefix", {""});
  expect(root, name, "model.end_of_word_suffix", {""});
  expect(root, name, "model.byte_fallback", {false});
  expect(root, name, "model.ignore_merges", {false});
  expect(root, name, "normalizer", {});
  expect(root, name, "truncation", {});
  expect(root, name, "padding", {});
  check_usage(value_at(root, "pre_tokenizer.type") == "ByteLevel", "{}: pre_tokenizer: found {}; egmla reads {}", name,
              value_at(root, "pre_tokenizer").dump().substr(0, 80), R"({"type": "ByteLevel"} with its own pattern)");
  expect(root, name, "pre_tokenizer.use_regex", {true});
  for (const std::string key : {"post_processor", "decoder"}) {
    if (value_at(root, key).is_null()) continue;
    check_usage(value_at(root, key + ".type") == "ByteLevel", "{}: {}: found {}; egmla reads {} or null", name, key,
                value_at(root, key).dump().substr(0, 80), R"({"type": "ByteLevel"})");
  }
}

// The id of a token that stands in `place` of the file.
int32_t read_id(const Json& id, const std::string& token, const std::string& name, const std::string& place) {
  check_usage(id.is_number_integer() && id >= 0 && id <= kLargestId, "{}: {}: {} has the id {}; expected 0 to {}", name,
              place, Json(token).dump(), id.dump().substr(0, 80), kLargestId);
  return id.get<int32_t>();
}

IdOf read_vocabulary(const Json& vocabulary, const std::string& name, const std::string& key) {
  check_usage(vocabulary.is_object(), "{}: {} must map tokens to ids; found {}", name, key, vocabulary.type_name());
  IdOf id_of;
  for (const auto& [token, id] : vocabulary.items()) {
    id_of.emplace(token, read_id(id, token, name, key));
  }
  return id_of;
}

// Fills tokens and byte_ids from the vocabulary and the added tokens.
void place_tokens(TokenizerModel& model, const IdOf& id_of, const std::string& name) {
  std::unordered_set<std::string_view> added;
  for (const AddedToken& token : model.added) added.insert(token.text);
  const auto place = [&](int32_t id, const std::string& bytes) {
    const auto index = static_cast<size_t>(id);
    if (index >= model.tokens.size()) model.tokens.resize(index + 1);
    check_usage(model.tokens[index].empty(), "{}: two tokens have the id {}", name, id);
    model.tokens[index] = bytes;
  };
  for (const auto& [key, id] : id_of) {
    if (added.contains(key)) continue;
    const auto bytes = from_alphabet(key);
    check_usage(bytes.has_value(), "{}: the token {} has a character that stands for no byte; expected byte-level BPE",
                name, Json(key).dump());
    place(id, *bytes);
  }
  for (const AddedToken& token : model.added) place(token.id, token.text);
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = id_of.find(to_alphabet(std::string(1, static_cast<char>(byte))));
    check_usage(found != id_of.end(), "{}: the vocabulary has no token for the byte 0x{:02X}; expected all 256", name,
                byte);
    model.byte_ids[static_cast<size_t>(byte)] = found->second;
  }
}

void add_merge(TokenizerModel& model, const IdOf& id_of, const std::string& name, const std::string& left,
               const std::string& right) {
  const auto id = [&](const std::string& token) {
    const auto found = id_of.find(token);
    check_usage(found != id_of.end(), "{}: merge {} ({} {}) needs the token {}, which is not in the vocabulary", name,
                model.merges.size(), left, right, token);
    return found->second;
  };
  model.merges.push_back({id(left), id(right), id(left + right)});
}

void add_merge_line(TokenizerModel& model, const IdOf& id_of, const std::string& name, const std::string& line) {
  const size_t space = line.find(' ');
  check_usage(space != std::string::npos && line.find(' ', space + 1) == std::string::npos,
              "{}: merge {} is \"{}\"; expected two tokens with one space between", name, model.merges.size(), line);
  add_merge(model, id_of, name, line.substr(0, space), line.substr(space + 1));
}

AddedToken read_added(const Json& entry, const IdOf& id_of, const std::string& name) {
  AddedToken token;
  token.text = entry.at("content").get<std::string>();
  check_usage(!token.text.empty(), "{}: added_tokens: one is empty", name);
  token.id = read_id(entry.at("id"), token.text, name, "added_tokens");
  token.special = entry.value("special", false);
  token.normalized = entry.value("normalized", !token.special);
  for (const char* const key : {"single_word", "lstrip", "rstrip"}) {
    check_usage(!entry.value(key, false), "{}: added_tokens: {} has {}: true; egmla reads only false", name, token.text,
                key);
  }
  const auto found = id_of.find(token.text);
  token.in_vocabulary = found != id_of.end();
  check_usage(!token.in_vocabulary || found->second == token.id,
              "{}: added_tokens: {} has the id {}, but {} in the vocabulary; expected one", name, token.text, token.id,
              token.in_vocabulary ? found->second : -1);
  return token;
}

TokenizerModel read_model(const Json& root, const std::string& name) {
  expect_supported(root, name);
  TokenizerModel model;
  const IdOf id_of = read_vocabulary(value_at(root, "model.vocab"), name, "model.vocab");
  const Json& added = value_at(root, "added_tokens");
  for (const Json& entry : added) model.added.push_back(read_added(entry, id_of, name));
  place_tokens(model, id_of, name);
  for (const Json& merge : root.at("model").at("merges")) {
    if (merge.is_string()) {
      add_merge_line(model, id_of, name, merge.get<std::string>());
    } else {
      add_merge(model, id_of, name, merge.at(0).get<std::string>(), merge.at(1).get<std::string>());
    }
  }
  const Json& prefix = value_at(root, "pre_tokenizer.add_prefix_space");
  model.add_prefix_space = prefix.is_null() || prefix.get<bool>();  // true where absent, as in `tokenizers`
  return model;
}

TokenizerModel read_gpt2_model(const std::string& encoder, const std::string& merges, const std::string& name) {
  TokenizerModel model;
  const IdOf id_of = read_vocabulary(Json::parse(encoder), name, "vocabulary");
  const auto end = id_of.find(Tokenizer::kEndOfText);
  if (end != id_of.end()) model.added.push_back({.id = end->second, .text = end->first});
  place_tokens(model, id_of, name);
  for (size_t begin = 0; begin < merges.size();) {
    const size_t line_end = std::min(merges.find('\n', begin), merges.size());
    std::string line = merges.substr(begin, line_end - begin);
    const bool version = begin == 0 && line.starts_with("#version");
    begin = line_end + 1;
    if (line.ends_with('\r')) line.pop_back();
    if (!version && !line.empty()) add_merge_line(model, id_of, name, line);
  }
  return model;
}

// What reads JSON throws its own exceptions; their words follow the file's name.
template <class F>
Tokenizer with_json_errors(const std::string& name, F&& read) {
  try {
    return Tokenizer(read());
  } catch (const Json::exception& error) {
    fail_usage("{}: not a tokenizer that egmla reads: {}", name, error.what());
  }
}

}  // namespace

Tokenizer Tokenizer::from_json(const std::string& text, const std::string& name) {
  return with_json_errors(name, [&] { return read_model(Json::parse(text), name); });
}

Tokenizer Tokenizer::from_gpt2(const std::string& encoder, const std::string& merges, const std::string& name) {
  return with_json_errors(name, [&] { return read_gpt2_model(encoder, merges, name); });
}

Tokenizer Tokenizer::load(const std::string& path) {
  std::error_code unreadable;  // read_file() says why
  const bool is_directory = fs::is_directory(path, unreadable);
  const fs::path directory = is_directory ? fs::path(path) : fs::path(path).parent_path();
  const std::string file = is_directory ? "" : fs::path(path).filename().string();
  if (is_directory && fs::exists(directory / "tokenizer.json")) return load((directory / "tokenizer.json").string());
  const fs::path encoder = directory / "encoder.json", merges = directory / "vocab.bpe";
  if (file == "encoder.json" || file == "vocab.bpe" || (is_directory && fs::exists(encoder))) {
    return from_gpt2(read_file(encoder.string()), read_file(merges.string()), encoder.string());
  }
  check_usage(!is_directory, "{}: holds no tokenizer; expected tokenizer.json, or encoder.json with vocab.bpe", path);
  return from_json(read_file(path), path);
}

std::string Tokenizer::to_json() const {
  using Ordered = nlohmann::ordered_json;
  std::vector<std::string> keys;
  for (const std::string& bytes : model_.tokens) keys.push_back(to_alphabet(bytes));
  Ordered added = Ordered::array();
  for (const AddedToken& token : model_.added) {
    keys[static_cast<size_t>(token.id)] = token.in_vocabulary ? token.text : "";
    added.push_back({{"id", token.id},
                     {"content", token.text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", token.normalized},
                     {"special", token.special}});
  }
  // Written by hand in id order: an ordered map would search all keys at each insertion.
  std::string vocabulary;
  for (size_t id = 0; id < keys.size(); ++id) {
    if (keys[id].empty()) continue;
    vocabulary += fmt::format("{}\n      {}: {}", vocabulary.empty() ? "" : ",", Json(keys[id]).dump(), id);
  }
  std::string merges;
  for (const Merge& merge : model_.merges) {
    const std::string& left = keys[static_cast<size_t>(merge.left)];
    const std::string& right = keys[static_cast<size_t>(merge.right)];
    merges += fmt::format("{}\n      {}", merges.empty() ? "" : ",", Json(left + " " + right).dump());
  }
  const Ordered byte_level = {{"type", "ByteLevel"},
                              {"add_prefix_space", model_.add_prefix_space},
                              {"trim_offsets", true},
                              {"use_regex", true}};
  const std::string level = byte_level.dump();
  return fmt::format(
      "{{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": {},\n"
      "  \"normalizer\": null,\n  \"pre_tokenizer\": {},\n  \"post_processor\": {},\n  \"decoder\": {},\n"
      "  \"model\": {{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
      "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
      "    \"byte_fallback\": false,\n    \"ignore_merges\": false,\n    \"vocab\": {{{}\n    }},\n"
      "    \"merges\": [{}\n    ]\n  }}\n}}\n",
      added.dump(), level, level, level, vocabulary, merges);
}

}  // namespace egmla

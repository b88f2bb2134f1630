// The tokenizer against GPT-2's known ids, its properties on arbitrary bytes, its refusals; the trainer against a
// slow one that counts all pairs anew.
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "core/check.h"
#include "text/bpe_trainer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace egmla {
namespace {

using Ids = std::vector<int32_t>;
using Json = nlohmann::json;

const std::string kGpt2 = std::string(EGMLA_SOURCE_DIR) + "/tests/data/gpt2";

const Tokenizer& gpt2() {
  static const Tokenizer tokenizer = Tokenizer::load(kGpt2);
  return tokenizer;
}

// Words, contractions, white space of all kinds, digits, several scripts, added tokens, and bytes that are not UTF-8.
std::string random_text(std::mt19937& random, int pieces) {
  static const std::vector<std::string> kPieces = {"the",
                                                   " the",
                                                   " ",
                                                   "  ",
                                                   "\n",
                                                   "\r\n",
                                                   "\t",
                                                   "'s",
                                                   "'ll",
                                                   "'",
                                                   "\"",
                                                   "2026",
                                                   "\u00b2",
                                                   "\u00a0",
                                                   "\u3000",
                                                   "\u00e9",
                                                   "\u6771\u4eac",
                                                   "\u0301",
                                                   "!?",
                                                   "a",
                                                   "S",
                                                   "<|endoftext|>",
                                                   "<|",
                                                   "    ",
                                                   "\U0001F469\u200d",
                                                   "\xff",
                                                   "\xe2\x82",
                                                   "\xc0\x80"};
  std::string text;
  for (int i = 0; i < pieces; ++i) {
    const uint32_t choice = random() % (kPieces.size() + 4);
    text += choice < kPieces.size() ? kPieces[choice] : std::string(1, static_cast<char>(random()));
  }
  return text;
}

Json small_json() {
  BpeTrainer trainer;
  trainer.add("low low low lower lowest newer newest wider  low's");
  trainer.end_document();
  return Json::parse(trainer.train(280).to_json());
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

TEST(Pretokenizer, CutsAsGpt2sPatternDoes) {
  const std::vector<std::vector<std::string>> cases = {
      {"Hello", " world"},
      {"It", "'s", " we", "'ll", "'", "LL"},
      {"''", "s", " '", "s"},
      {"a", "  ", " b", "   "},
      {"a", " ", "\n", "b", "\n\n"},
      {" ", "\t", "x", "12", "ab", "\u00bd", "!?", " !"},
      {"\u3000", "\u6771\u4eac", "\u00a0", "e", "\u0301", "\u3000"},
      {"a", "\xff\xe2\x82", "b", " \xc0"},
  };
  for (const auto& pieces : cases) {
    std::string text;
    for (const std::string& piece : pieces) text += piece;
    std::vector<std::string> found;
    for (size_t begin = 0; begin < text.size();) {
      const size_t end = piece_end(text, begin);
      found.push_back(text.substr(begin, end - begin));
      begin = end;
    }
    EXPECT_EQ(found, pieces);
  }
}

TEST(Unicode, ReadersFromBothEndsSeeTheSameCharacters) {
  std::mt19937 random(1);
  for (int round = 0; round < 2000; ++round) {
    const std::string text = random_text(random, 12);
    for (size_t at = 0; at < text.size();) {
      const Char next = char_at(text, at);
      at += next.bytes;
      const Char last = char_before(text, at);
      ASSERT_EQ(last.code, next.code);
      ASSERT_EQ(last.bytes, next.bytes);
      ASSERT_EQ(last.kind, next.kind);
    }
  }
}

// Expected ids: the `tokenizers` package with the same two files.
TEST(Tokenizer, EncodesAsGpt2) {
  const std::vector<std::pair<std::string, Ids>> cases = {
      {"Hello world", {15496, 995}},
      {"  It's  we'll\r\n\n\tx\u00b2\u00bd 12345 don\u2019t",
       {220, 632, 338, 220, 356, 1183, 201, 628, 197, 87, 31185, 23141, 17031, 2231, 836, 447, 247, 83}},
      {"na\u00efve \u6771\u4eac\u30bf\u30ef\u30fc \U0001f469\u200d\U0001f680 e\u0301\u00a0\u3000!",
       {2616, 38776, 10545, 251, 109, 12859, 105, 23376, 25589, 6312, 50169, 102,
        447,  235,   8582,  248, 222, 304,   136, 223,   1849,  5099, 222,   0}},
      {"a<|endoftext|> b", {64, 50256, 275}},
      {"", {}},
  };
  for (const auto& [text, ids] : cases) {
    EXPECT_EQ(gpt2().encode(text), ids) << text;
    EXPECT_EQ(gpt2().decode(ids), text);
  }
  EXPECT_EQ(gpt2().vocab_size(), 50257);
  EXPECT_EQ(gpt2().end_of_text(), 50256);
  EXPECT_EQ(gpt2().bytes_of(995), " world");
  EXPECT_EQ(gpt2().encode("<|endoftext|>", false).size(), 7u);
  EXPECT_EQ(Tokenizer::load(kGpt2 + "/vocab.bpe").encode("Hello world"), (Ids{15496, 995}));
}

TEST(Tokenizer, AnyBytesComeBack) {
  std::mt19937 random(2);
  const Tokenizer small = Tokenizer::from_json(small_json().dump(), "small");
  for (int round = 0; round < 500; ++round) {
    const std::string text = random_text(random, 60);
    for (const Tokenizer* tokenizer : {&gpt2(), &small}) {
      for (const bool special : {true, false}) ASSERT_EQ(tokenizer->decode(tokenizer->encode(text, special)), text);
    }
  }
}

TEST(Tokenizer, CutsChangeNoId) {
  std::mt19937 random(3);
  Json with_added = Json::parse(gpt2().to_json());
  int32_t id = 50257;
  for (const std::string text : {"  ", "    ", "the the", "\n<|"}) {
    with_added["added_tokens"].push_back(
        {{"id", id++}, {"content", text}, {"special", false}, {"normalized", id % 2 == 0}});
  }
  Json with_prefix = Json::parse(gpt2().to_json());
  with_prefix["pre_tokenizer"]["add_prefix_space"] = true;
  for (const Json& json : {Json::parse(gpt2().to_json()), with_added, with_prefix}) {
    const Tokenizer tokenizer = Tokenizer::from_json(json.dump(), "cut");
    int cuts = 0;
    for (int round = 0; round < 1000; ++round) {
      const std::string text = random_text(random, 30);
      const size_t seen = text.size() / 2;  // the cut is chosen without what follows
      const size_t cut = tokenizer.last_cut(std::string_view(text).substr(0, seen));
      if (cut == 0) continue;
      ++cuts;
      Ids parts = tokenizer.encode(text.substr(0, cut));
      const Ids rest = tokenizer.encode(text.substr(cut));
      parts.insert(parts.end(), rest.begin(), rest.end());
      ASSERT_EQ(parts, tokenizer.encode(text)) << Json(text).dump(-1, ' ', true, Json::error_handler_t::replace);
    }
    EXPECT_GT(cuts, 300);
  }
}

TEST(Tokenizer, AddedTokensGoLongestFirstAndPlainOnesBeforeNormalized) {
  Json json = small_json();
  json["added_tokens"] = {{{"id", 300}, {"content", "<a>"}, {"special", true}},
                          {{"id", 301}, {"content", "<a><b>"}, {"special", true}},
                          {{"id", 302}, {"content", "x<a"}, {"special", false}, {"normalized", true}}};
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump(), "added");
  EXPECT_EQ(tokenizer.encode("<a><b><a>"), (Ids{301, 300}));
  EXPECT_EQ(tokenizer.encode("x<a>").back(), 300);
  EXPECT_EQ(tokenizer.encode("x<a").back(), 302);
  EXPECT_EQ(tokenizer.encode("x<a>", false).front(), 302);
  EXPECT_EQ(tokenizer.vocab_size(), 303);
  EXPECT_EQ(Tokenizer::from_json(tokenizer.to_json(), "again").to_json(), tokenizer.to_json());
}

TEST(Tokenizer, JsonKeepsEverything) {
  const std::string json = gpt2().to_json();
  const Tokenizer again = Tokenizer::from_json(json, "gpt2");
  EXPECT_EQ(again.to_json(), json);
  std::mt19937 random(4);
  const std::string text = random_text(random, 2000);
  EXPECT_EQ(again.encode(text), gpt2().encode(text));
  Json pairs = Json::parse(json);  // merges as lists, as newer files have them
  for (Json& merge : pairs["model"]["merges"]) {
    const auto line = merge.get<std::string>();
    merge = {line.substr(0, line.find(' ')), line.substr(line.find(' ') + 1)};
  }
  EXPECT_EQ(Tokenizer::from_json(pairs.dump(), "pairs").to_json(), json);
}

TEST(Tokenizer, LongPiecesTakeNoQuadraticTime) {
  for (const char c : {'a', ' ', '='}) {
    const std::string text(300'000, c);
    EXPECT_EQ(gpt2().decode(gpt2().encode(text)), text);
  }
}

TEST(Tokenizer, ManyThreadsEncodeAlike) {
  std::mt19937 random(5);
  const std::string text = random_text(random, 20000);
  const Tokenizer tokenizer = Tokenizer::from_json(small_json().dump(), "small");
  std::vector<Ids> found(4);
  std::vector<std::thread> threads;
  for (Ids& ids : found) threads.emplace_back([&] { ids = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  const Ids expected = Tokenizer::from_json(small_json().dump(), "small").encode(text);
  for (const Ids& ids : found) EXPECT_EQ(ids, expected);
}

TEST(Tokenizer, RefusesWhatItDoesNotImplement) {
  const std::vector<std::tuple<std::string, Json, std::string>> cases = {
      {"/model/type", "WordPiece", "file.json: model.type: found \"WordPiece\""},
      {"/model/dropout", 0.1, "file.json: model.dropout: found 0.1"},
      {"/model/unk_token", "<unk>", "file.json: model.unk_token"},
      {"/model/byte_fallback", true, "file.json: model.byte_fallback"},
      {"/model/ignore_merges", true, "file.json: model.ignore_merges"},
      {"/model/end_of_word_suffix", "</w>", "file.json: model.end_of_word_suffix"},
      {"/model/vocab", 3, "file.json: model.vocab must map tokens to ids"},
      {"/model/vocab/a", -1, "file.json: model.vocab: \"a\" has the id -1"},
      {"/model/vocab/a", 5000000000, "file.json: model.vocab: \"a\" has the id 5000000000"},
      {"/model/vocab/a", 7, "two tokens have the id 7"},
      {"/model/vocab/a", 0, "two tokens have the id 0"},
      {"/added_tokens/1", {{"id", 7}, {"content", "<a>"}}, "two tokens have the id 7"},
      {"/added_tokens/1", {{"id", 0}, {"content", "<a>"}}, "two tokens have the id 0"},
      {"/model/vocab/\u6771", 400, "stands for no byte"},
      {"/model/merges/0", "zz qq", "merge 0 (zz qq) needs the token zz"},
      {"/model/merges/0", "zz", "merge 0 is \"zz\"; expected two tokens"},
      {"/normalizer", {{"type", "NFC"}}, "file.json: normalizer: found {\"type\":\"NFC\"}"},
      {"/pre_tokenizer", nullptr, "file.json: pre_tokenizer: found null"},
      {"/pre_tokenizer/type", "Whitespace", "file.json: pre_tokenizer: found"},
      {"/pre_tokenizer/use_regex", false, "file.json: pre_tokenizer.use_regex: found false"},
      {"/post_processor/type", "TemplateProcessing", "file.json: post_processor"},
      {"/decoder/type", "Metaspace", "file.json: decoder"},
      {"/added_tokens/0/lstrip", true, "<|endoftext|> has lstrip: true"},
      {"/added_tokens/0/id", 9, "<|endoftext|> has the id 9, but 0 in the vocabulary"},
      {"/added_tokens/0/id", 1e114, "file.json: added_tokens: \"<|endoftext|>\" has the id 1e+114"},
      {"/added_tokens/0/content", 9, "file.json: not a tokenizer that egmla reads"},
  };
  for (const auto& [pointer, value, expected] : cases) {
    Json json = small_json();
    json[Json::json_pointer(pointer)] = value;
    const std::string found = message_of([&] { Tokenizer::from_json(json.dump(), "file.json"); });
    EXPECT_NE(found.find(expected), std::string::npos) << pointer << ": " << found;
    EXPECT_EQ(found.find('\n'), std::string::npos);
  }
  Json json = small_json();
  json["model"]["vocab"].erase("\u0120");
  json["model"]["merges"] = Json::array();
  EXPECT_NE(message_of([&] { Tokenizer::from_json(json.dump(), "f"); }).find("the byte 0x20"), std::string::npos);
  EXPECT_NE(message_of([] { Tokenizer::from_json("{\"model\": ", "f"); }).find("f: not a"), std::string::npos);
  EXPECT_NE(message_of([] { Tokenizer::load("/nowhere/tokenizer.json"); }).find("cannot be read"), std::string::npos);
  EXPECT_NE(message_of([] { Tokenizer::load(EGMLA_SOURCE_DIR); }).find("holds no tokenizer"), std::string::npos);
}

TEST(Tokenizer, NamesMissingIds) {
  Json json = small_json();
  json["added_tokens"] = Json::array();
  json["model"]["vocab"].erase("<|endoftext|>");
  const Tokenizer tokenizer = Tokenizer::from_json(json.dump(), "f");
  EXPECT_NE(message_of([&] { tokenizer.end_of_text(); }).find("no <|endoftext|> token"), std::string::npos);
  EXPECT_NE(message_of([&] { tokenizer.bytes_of(-1); }).find("token id -1"), std::string::npos);
  const auto beyond = static_cast<int32_t>(tokenizer.vocab_size());
  EXPECT_NE(message_of([&] { tokenizer.decode(Ids{beyond}); }).find(fmt::format("expected 0 to {}", beyond - 1)),
            std::string::npos);
}

// The vocabulary learned by counting all pairs anew for each merge.
std::vector<std::string> slow_vocabulary(const std::string& text, const Tokenizer& bytes, size_t size) {
  std::vector<std::string> tokens;
  for (int32_t id = 0; id < 257; ++id) tokens.emplace_back(bytes.bytes_of(id));
  std::vector<Ids> words;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = piece_end(text, begin);
    words.emplace_back();
    for (size_t i = begin; i < end; ++i) words.back().push_back(bytes.encode(text.substr(i, 1))[0]);
    begin = end;
  }
  while (tokens.size() < size) {
    std::map<std::pair<int32_t, int32_t>, int64_t> counts;
    for (const Ids& word : words) {
      for (size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    }
    std::pair<int32_t, int32_t> best;
    int64_t most = 1;
    for (const auto& [pair, count] : counts) {
      if (count > most) std::tie(best, most) = std::tie(pair, count);
    }
    if (most < 2) break;
    const std::string joined = tokens[static_cast<size_t>(best.first)] + tokens[static_cast<size_t>(best.second)];
    const auto known = std::find(tokens.begin(), tokens.end(), joined);
    const auto id = static_cast<int32_t>(known - tokens.begin());
    if (known == tokens.end()) tokens.push_back(joined);
    for (Ids& word : words) {
      Ids merged;
      for (size_t i = 0; i < word.size(); ++i) {
        const bool hit = i + 1 < word.size() && word[i] == best.first && word[i + 1] == best.second;
        merged.push_back(hit ? id : word[i]);
        i += hit;
      }
      word = merged;
    }
  }
  return tokens;
}

TEST(BpeTrainer, LearnsWhatCountingAnewLearns) {
  const Tokenizer bytes = BpeTrainer().train(257);
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    std::string text;
    for (int i = 0; i < 400; ++i) text += "aaab bc ' "[random() % 10];
    BpeTrainer trainer;
    trainer.add(text);
    trainer.end_document();
    const Tokenizer tokenizer = trainer.train(300);
    const auto expected = slow_vocabulary(text, bytes, 300);
    ASSERT_EQ(tokenizer.vocab_size(), static_cast<int64_t>(expected.size()));
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
      ASSERT_EQ(tokenizer.bytes_of(id), expected[static_cast<size_t>(id)]) << "seed " << seed;
    }
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(BpeTrainer, PartsOfADocumentCountAsTheWhole) {
  std::mt19937 random(6);
  const std::string text = random_text(random, 700'000);  // more than the trainer gathers before it cuts
  BpeTrainer whole, parts;
  whole.add(text);
  whole.end_document();
  for (size_t begin = 0; begin < text.size(); begin += 9973) parts.add(std::string_view(text).substr(begin, 9973));
  parts.end_document();
  EXPECT_EQ(parts.train(400).to_json(), whole.train(400).to_json());
  EXPECT_NE(message_of([] { BpeTrainer().train(256); }).find("vocabulary of 256; expected at least 257"),
            std::string::npos);
}

}  // namespace
}  // namespace egmla

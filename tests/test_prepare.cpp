// From text to shards: ids equal those of whole documents however the text is cut, packed and split.
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>
#ifdef EGMLA_WITH_ZSTD
#include <zstd.h>
#endif

#include <cstdlib>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "core/check.h"
#include "core/files.h"
#include "data/block_encoder.h"
#include "data/distinct_documents.h"
#include "data/prepare.h"
#include "text/bpe_trainer.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

const std::string kVerse = "In the beginning God created the heaven and the earth, it's said.\n";

std::string gzip(const std::string& text) {
  const std::string path = (fs::temp_directory_path() / fmt::format("egmla_gzip_{}", ::getpid())).string();
  const gzFile file = ::gzopen(path.c_str(), "wb");
  ::gzwrite(file, text.data(), static_cast<unsigned>(text.size()));
  ::gzclose(file);
  const std::string packed = read_file(path);
  fs::remove(path);
  return packed;
}

class PrepareTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = (fs::temp_directory_path() / fmt::format("egmla_prepare_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(directory_);
    BpeTrainer trainer;
    trainer.add(kVerse + kVerse);
    trainer.end_document();
    write_file(directory_ + "/tokenizer.json", trainer.train(290).to_json());
    tokenizer_ = std::make_unique<Tokenizer>(Tokenizer::load(directory_));
    options_ = {.inputs = {}, .format = {}, .tokenizer = directory_, .out = directory_ + "/out", .threads = 2};
  }
  void TearDown() override { fs::remove_all(directory_); }

  // Adds an input of this content.
  std::string input(const std::string& name, const std::string& content) {
    options_.inputs.push_back(directory_ + "/" + name);
    write_file(options_.inputs.back(), content);
    return options_.inputs.back();
  }

  // Ids of a split's documents, each ended.
  Ids expected(const std::vector<std::string>& documents) const {
    Ids ids;
    for (const std::string& text : documents) {
      const Ids part = tokenizer_->encode(text, false);
      ids.insert(ids.end(), part.begin(), part.end());
      ids.push_back(tokenizer_->end_of_text());
    }
    return ids;
  }

  Ids written(const std::string& split) const {
    Ids ids;
    for (const std::string& path : expand_glob(options_.out + "/" + split + "_*.bin")) {
      const Shard shard(path);
      for (int64_t i = 0; i < shard.size(); ++i) ids.push_back(shard[i]);
    }
    return ids;
  }

  void expect_error(const std::string& words) const {
    try {
      prepare_data(options_);
      ADD_FAILURE() << "no error; expected " << words;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::usage);
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  }

  std::string directory_;
  std::unique_ptr<Tokenizer> tokenizer_;
  PrepareOptions options_;
};

TEST_F(PrepareTest, BlocksChangeNoId) {
  std::mt19937 random(1);
  const std::vector<std::string> pieces = {"the ",   " earth", "\n\n",          "'s", "12", "\u3000",
                                           "\u00e9", "\xff",   "<|endoftext|>", "   "};
  std::vector<std::string> documents;
  for (int i = 0; i < 300; ++i) {
    documents.emplace_back();
    const uint32_t length = random() % 200;
    for (uint32_t k = 0; k <= length; ++k) documents.back() += pieces[random() % pieces.size()];
  }
  for (const size_t block : {size_t{1}, size_t{50}, size_t{3000}}) {
    Ids found;
    BlockEncoder encoder(
        *tokenizer_, 3, [&](std::span<const int32_t> ids) { found.insert(found.end(), ids.begin(), ids.end()); },
        block);
    for (const std::string& text : documents) {
      for (size_t begin = 0; begin < text.size(); begin += 17) encoder.add(std::string_view(text).substr(begin, 17));
      encoder.end_document();
    }
    encoder.flush();
    EXPECT_EQ(found, expected(documents)) << "blocks of " << block;
  }
}

TEST_F(PrepareTest, OneDocumentIsSplitByLines) {
  std::vector<std::string> lines;
  std::string train, val;
  for (int i = 0; i < 101; ++i) (i < 91 ? train : val) += fmt::format("{} {}", i, kVerse);
  input("text.txt", train + val);
  options_.val_fraction = 0.1;  // of 101 lines: 10
  const PrepareSummary summary = prepare_data(options_);
  EXPECT_EQ(written("train"), expected({train}));
  EXPECT_EQ(written("val"), expected({val}));
  EXPECT_EQ(summary.train.bytes, static_cast<int64_t>(train.size()));
  const auto meta = nlohmann::json::parse(read_file(options_.out + "/meta.json"));
  EXPECT_EQ(meta["val"]["tokens"], summary.val.tokens);
  EXPECT_EQ(meta["val"]["documents"], 1);
  EXPECT_EQ(meta["vocab_size"], tokenizer_->vocab_size());
  EXPECT_EQ(read_file(options_.out + "/tokenizer.json"), tokenizer_->to_json());
}

TEST_F(PrepareTest, ALineSplitMayFallOnADocumentsEnd) {
  input("a.txt", "one\ntwo");
  input("b.txt", "three\nfour\n");
  options_.val_fraction = 0.45;  // of 2 documents less than one: 2 of 4 lines
  const PrepareSummary summary = prepare_data(options_);
  EXPECT_EQ(written("train"), expected({"one\ntwo"}));
  EXPECT_EQ(written("val"), expected({"three\nfour\n"}));
  EXPECT_EQ(summary.val.documents, 1);
}

TEST_F(PrepareTest, ManyDocumentsAreSplitWhole) {
  std::vector<std::string> documents;
  std::string text = "---\n";
  for (int i = 0; i < 20; ++i) {
    documents.push_back(fmt::format("document {}\n{}", i, kVerse));
    text += documents.back() + (i % 2 ? "---\n" : "---\r\n---\n");  // empty ones are left out
  }
  input("text.txt", text);
  options_.format.separator = "---";
  options_.val_fraction = 0.15;
  options_.shard_tokens = 100;
  const PrepareSummary summary = prepare_data(options_);
  EXPECT_EQ(summary.train.documents, 17);
  EXPECT_EQ(summary.val.documents, 3);
  EXPECT_GT(summary.train.shards.size(), 3u);
  EXPECT_EQ(written("train"), expected({documents.begin(), documents.end() - 3}));
  EXPECT_EQ(written("val"), expected({documents.end() - 3, documents.end()}));
}

TEST_F(PrepareTest, DuplicatesAreLeftOutBeforeTheSplit) {
  const std::vector<std::string> documents = {"one", "two\n", "one", "one\n", "two\n", "three", "one", "four", "five"};
  std::string lines;
  for (const std::string& text : documents) lines += nlohmann::json({{"text", text}}).dump() + "\n";
  input("a.jsonl", lines);
  options_.deduplicate = true;
  options_.val_fraction = 0.34;  // of six documents
  const PrepareSummary summary = prepare_data(options_);
  EXPECT_EQ(written("train"), expected({"one", "two\n", "one\n", "three"}));
  EXPECT_EQ(written("val"), expected({"four", "five"}));
  EXPECT_EQ(summary.duplicates, 3);
  EXPECT_EQ(summary.duplicate_bytes, 10);
  const auto meta = nlohmann::json::parse(read_file(options_.out + "/meta.json"));
  EXPECT_EQ(meta["duplicates_left_out"]["documents"], 3);
}

TEST_F(PrepareTest, SplitByHashSpreadsAndNeverPartsEqualDocuments) {
  std::vector<std::string> documents;
  std::string lines;
  for (int i = 0; i < 2000; ++i) {
    documents.push_back(fmt::format("document {} {}", i % 1990, kVerse));
    lines += nlohmann::json({{"text", documents.back()}}).dump() + "\n";
  }
  input("a.jsonl", lines);
  options_.val_fraction = 0.1;
  options_.val_split = ValSplit::hash;
  const PrepareSummary summary = prepare_data(options_);
  EXPECT_NEAR(static_cast<double>(summary.val.documents), 200, 55);  // four standard deviations
  std::vector<std::string> train, val;
  for (const std::string& text : documents) {
    (document_hash(text).fraction() < 0.1 ? val : train).push_back(text);
  }
  EXPECT_EQ(written("train"), expected(train));
  EXPECT_EQ(written("val"), expected(val));
  const auto in_first_half = [&](const std::string& text) {
    return std::find(documents.begin(), documents.begin() + 1000, text) != documents.begin() + 1000;
  };
  EXPECT_NEAR(static_cast<double>(std::count_if(val.begin(), val.end(), in_first_half)), 100, 40);
}

TEST(DocumentHash, DependsOnEveryByteAndTheLength) {
  const std::string text(19, 'a');
  const DocumentHash whole = document_hash(text);
  for (size_t i = 0; i < text.size(); ++i) {
    std::string other = text;
    other[i] = 'b';
    EXPECT_NE(document_hash(other).high, whole.high) << i;
    EXPECT_NE(document_hash(other).low, whole.low) << i;
  }
  EXPECT_FALSE(document_hash(text + '\0') == whole);
}

TEST_F(PrepareTest, JsonlPlainAndPackedGiveTheSameIds) {
  const std::string lines = R"({"text": "first \u6771\n", "id": 1})"
                            "\n\n"
                            R"({"text": ""})"
                            "\n"
                            R"({"id": 2, "text": "second <|endoftext|>"})";
  const Ids ids = expected({"first \u6771\n", "second <|endoftext|>"});
  std::map<std::string, std::string> files = {{"a.jsonl", lines}, {"b.jsonl.gz", gzip(lines)}};
#ifdef EGMLA_WITH_ZSTD
  std::string packed(ZSTD_compressBound(lines.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), lines.data(), lines.size(), 3));
  files["c.jsonl.zst"] = packed;
  files["d.jsonl.zst"] = packed.substr(0, packed.size() - 6);
#endif
  for (const auto& [name, content] : files) {
    options_.inputs.clear();
    options_.force = true;
    input(name, content);
    if (name.starts_with("d")) {
      expect_error("truncated zstd data");
      continue;
    }
    prepare_data(options_);
    EXPECT_EQ(written("train"), ids) << name;
  }
}

TEST_F(PrepareTest, ErrorsNameFileAndLine) {
  const std::string path = input("bad.jsonl", "{\"text\": \"good\"}\n{\"txt\": 1}\n");
  expect_error(path + ":2: expected an object with a string \"text\"");
  options_.force = true;
  write_file(path, "{\"text\": \"good\"}\n\n[1, 2\n");
  expect_error(path + ":3: not JSON");
  write_file(path, "[1, 2]\n");
  expect_error(path + ":1: expected an object");
  options_.inputs = {directory_ + "/none.txt"};
  expect_error("none.txt: cannot be read: No such file");
  options_.inputs = {directory_};
  expect_error("is a directory; expected a text file");
  options_.inputs.clear();
  input("empty.txt", "");
  expect_error("the inputs hold no text");
  input("line.txt", "one line");
  options_.val_fraction = 0.5;
  expect_error("1 lines of text cannot be split");
  std::string text;
  for (int i = 0; i < 5000; ++i) text += std::to_string(i * i);
  options_.inputs.clear();
  input("cut.txt.gz", gzip(text).substr(0, 4000));
  expect_error("cut.txt.gz: damaged or truncated gzip data");
}

TEST_F(PrepareTest, PreparedDataIsKeptUnlessForced) {
  input("text.txt", kVerse);
  options_.shard_tokens = 5;
  prepare_data(options_);
  const Ids first = written("train");
  expect_error("holds prepared data already");
  EXPECT_EQ(written("train"), first);
  options_.force = true;
  options_.shard_tokens = 50;
  prepare_data(options_);
  EXPECT_EQ(written("train"), first);
  EXPECT_EQ(expand_glob(options_.out + "/train_*.bin").size(), 1u);  // no shard of the first time is left
}

TEST_F(PrepareTest, TheTokenizerInUseMayStandInTheDirectory) {
  input("text.txt", kVerse);
  options_.out = directory_;
  prepare_data(options_);
  EXPECT_EQ(written("train"), expected({kVerse}));
  options_.out = directory_ + "/other";
  fs::create_directories(options_.out);
  write_file(options_.out + "/tokenizer.json", "{}");
  expect_error("holds prepared data already");
  EXPECT_EQ(read_file(options_.out + "/tokenizer.json"), "{}");
}

TEST_F(PrepareTest, StandardInputCanBeSplit) {
  std::string train, val;
  for (int i = 0; i < 10; ++i) (i < 8 ? train : val) += fmt::format("{} {}", i, kVerse);
  const std::string path = input("text.txt", train + val);
  const std::string command =
      fmt::format("{} data prepare - --tokenizer {} --out {} --val-fraction 0.2 < {} > /dev/null", EGMLA_BINARY,
                  directory_, options_.out, path);
  ASSERT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(written("train"), expected({train}));
  EXPECT_EQ(written("val"), expected({val}));
  for (const auto& entry : fs::directory_iterator(options_.out)) EXPECT_NE(entry.path().extension(), ".tmp");
}

}  // namespace
}  // namespace egmla

// Validation loss with and without strides: every token once, behind the context that the stride promises; and the eval
// command on shards and texts.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/files.h"
#include "data/shards.h"
#include "egmla_command.h"
#include "infer/evaluator.h"
#include "model_variants.h"
#include "op_case.h"
#include "unigram_model.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr int64_t kT = 16;

// Ids in memory as validation data.
ValidationSet set_of(const std::vector<int32_t>& ids, int64_t vocabulary, int64_t stride) {
  std::vector<TokenStream> streams;
  streams.emplace_back("memory", ids, vocabulary);
  return {std::move(streams), kT, stride};
}

// Losses in data order, from windows taken one by one.
std::vector<double> losses_by_hand(Transformer& model, const std::vector<int32_t>& ids, int64_t stride) {
  Context& context = model.parameters().context();
  std::vector<double> out;
  for (int64_t begin = 0; std::ssize(out) < std::ssize(ids) - 1; begin += stride) {
    const int64_t end = std::min(begin + kT, std::ssize(ids) - 1);
    const std::vector<int32_t> window(ids.begin() + begin, ids.begin() + end + 1);
    const std::vector<double> losses = token_losses(model, make_batch(context, window, 1, end - begin));
    out.insert(out.end(), losses.begin() + (std::ssize(out) - begin), losses.end());
  }
  return out;
}

TEST(Evaluation, EveryTokenOnceBehindEnoughContext) {
  const ModelConfig config = variant("egmla").model;
  Context context;
  auto model = build(config, context, DType::f64);
  for (const int64_t size : {2, 12, 17, 18, 50}) {
    const std::vector<int32_t> ids = random_ids(size, config.vocab_size, 3);
    for (const int64_t stride : {1, 5, 15, 16}) {
      const ValidationSet data = set_of(ids, config.vocab_size, stride);
      std::vector<double> losses;
      const Evaluation found =
          evaluate(*model, data, BatchBuilder(kT, std::nullopt),
                   {.micro_batch_size = 3, .per_token = [&](double loss) { losses.push_back(loss); }});
      const std::vector<double> expected = losses_by_hand(*model, ids, stride);
      ASSERT_EQ(losses.size(), static_cast<size_t>(size - 1)) << stride;
      EXPECT_EQ(found.tokens, size - 1);
      double sum = 0;
      for (size_t i = 0; i < losses.size(); ++i) {
        EXPECT_NEAR(losses[i], expected[i], 1e-9) << "size " << size << ", stride " << stride << ", token " << i;
        sum += expected[i];
      }
      EXPECT_NEAR(found.perplexity, std::exp(sum / static_cast<double>(size - 1)), 1e-7 * found.perplexity);
    }
  }
}

TEST(Evaluation, StrideOutsideTheWindowIsRefused) {
  for (const int64_t stride : {0, 17, -1}) EXPECT_THROW(set_of({1, 2, 3}, 9, stride), Error);
  EXPECT_THROW(set_of({1}, 9, kT), Error);
  std::vector<int32_t> out(kT + 1);
  EXPECT_THROW(set_of({1, 9}, 9, kT).read(0, out.data()), Error);
}

class Eval : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    folder_ = (fs::temp_directory_path() / fmt::format("egmla_eval_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(folder_);
    write_unigram_model(file("model.h5"), thousand());
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  Outcome run(const std::string& arguments) const {
    return egmla_command(fmt::format("eval '{}' {}", file("model.h5"), arguments));
  }
  Json result(const std::string& arguments) const {
    const Outcome done = run(arguments + " --json");
    EXPECT_EQ(done.code, 0) << done.err;
    return Json::parse(done.out);
  }

  std::string folder_;
};

// "x a b" and the end of text: the ids x, " a", " ", b, end. Their losses but the first: -ln 0.743 and three times
// -ln 0.001; the text they stand for has 4 bytes.
TEST_F(Eval, TextsAreEncodedAndEnded) {
  write_file(file("text.txt"), "x a b");
  const double sum = -std::log(0.743) - 3 * std::log(0.001);
  const Json found = result(fmt::format("--data '{}'", file("text.txt")));
  EXPECT_EQ(found["tokens"], 4);
  EXPECT_NEAR(found["loss"], sum / 4, 1e-6);
  EXPECT_NEAR(found["perplexity"], std::exp(sum / 4), 1e-3);
  EXPECT_NEAR(found["bits_per_byte"], sum / std::log(2.0) / 4, 1e-6);
  write_file(file("rows.jsonl"), "{\"text\": \"x a\"}\n{\"text\": \"b\"}\n");
  EXPECT_EQ(result(fmt::format("--data '{}'", file("rows.jsonl")))["tokens"], 4);
  // Two streams: the first token of each has nothing before it.
  EXPECT_EQ(result(fmt::format("--data '{}' '{}'", file("text.txt"), file("rows.jsonl")))["tokens"], 8);
}

TEST_F(Eval, ShardsAndStrides) {
  ShardWriter writer(folder_, "val", kUnigrams);
  writer.append(random_ids(200, kUnigrams, 1));
  writer.finish();
  const std::string shards = file("val_*.bin");
  EXPECT_EQ(result(fmt::format("--data '{}' data.sequence_length=16", shards))["tokens"], 199);
  EXPECT_EQ(run(fmt::format("--data '{}' data.sequence_length=none", shards)).code, 2);
  const Json plain = result(fmt::format("data.val='{}' --per-token '{}'", shards, file("plain.txt")));
  const Json strided = result(fmt::format("--data '{}' --stride 8 --per-token '{}'", shards, file("strided.txt")));
  EXPECT_EQ(plain["tokens"], 199);
  EXPECT_EQ(strided["tokens"], 199);
  // The model heeds no context.
  EXPECT_EQ(read_file(file("plain.txt")), read_file(file("strided.txt")));
  const Outcome far = run(fmt::format("--data '{}' --stride 33", shards));
  EXPECT_EQ(far.code, 2);
  EXPECT_NE(far.last_line().find("stride: 33; expected 1 to data.sequence_length, which is 32"), std::string::npos);
  for (const char* const bad :
       {"", "--data /nonexistent.txt", "--stride 0", "--tasks /nonexistent.jsonl", "--limit -1"})
    EXPECT_EQ(run(bad).code, 2) << bad;
}

TEST_F(Eval, TasksBesideTheLoss) {
  write_file(file("text.txt"), "x a b");
  write_file(file("t.jsonl"), R"({"context": "x", "choices": ["b", "a"], "answer": 1})");
  const Json alone = result(fmt::format("--tasks mine='{}'", file("t.jsonl")));
  EXPECT_FALSE(alone.contains("loss"));
  EXPECT_EQ(alone["tasks"][0]["task"], "mine");
  EXPECT_EQ(alone["tasks"][0]["acc"], 1.0);
  const Json both = result(fmt::format("--data '{}' --tasks '{}'", file("text.txt"), file("t.jsonl")));
  EXPECT_EQ(both["tokens"], 4);
  EXPECT_EQ(both["tasks"][0]["layout"], "choices");
  const Outcome table = run(fmt::format("--tasks '{}'", file("t.jsonl")));
  EXPECT_NE(table.out.find("1.0000 ± 0.0000"), std::string::npos) << table.out;
  // A choice longer than the model's positions.
  write_file(file("long.jsonl"),
             fmt::format(R"({{"context": "x", "choices": ["b", "{}"], "answer": 0}})", std::string(600, 'y')));
  const Outcome refused = run(fmt::format("--tasks '{}'", file("long.jsonl")));
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.last_line().find("long.jsonl:1: a choice has 601 tokens"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace egmla::test

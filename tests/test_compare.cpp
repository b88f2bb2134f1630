// Two models compared by how often the token read was seen in training: the bins, and the command against counts and
// losses that are found another way.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/files.h"
#include "egmla_command.h"
#include "lab/compare.h"
#include "op_case.h"
#include "run_folder.h"

namespace egmla::test {
namespace {

using Json = nlohmann::json;

TEST(Compare, BinsHoldMeansAndTheErrorOfTheDifference) {
  const Comparison found = compare_losses({1, 2, 3, 4}, {2, 2, 5, 4}, {0, 1, 2, 2}, {0, 2, 9});
  ASSERT_EQ(found.bins.size(), 3U);
  const auto expect_bin = [](const CountBin& bin, int64_t from, int64_t to, int64_t tokens, double loss,
                             double benefit) {
    EXPECT_EQ(bin.from, from);
    EXPECT_EQ(bin.to, to);
    EXPECT_EQ(bin.tokens, tokens);
    EXPECT_DOUBLE_EQ(bin.loss, loss);
    EXPECT_DOUBLE_EQ(bin.benefit(), benefit);
  };
  expect_bin(found.bins[0], 0, 1, 1, 1.0, 1.0);
  expect_bin(found.bins[1], 1, 3, 1, 2.0, 0.0);
  expect_bin(found.bins[2], 3, 10, 2, 3.5, 1.0);
  EXPECT_TRUE(std::isnan(found.bins[0].error));  // of one position
  EXPECT_DOUBLE_EQ(found.bins[2].error, 1.0);    // differences 2 and 0
  EXPECT_EQ(found.all.tokens, 4);
  EXPECT_DOUBLE_EQ(found.all.benefit(), 0.75);
  EXPECT_THROW(compare_losses({1}, {1, 2}, {0}, {0}), Error);
  EXPECT_THROW(compare_losses({}, {}, {}, {0}), Error);
}

class CompareRuns : public RunFolder {
 protected:
  static constexpr int64_t kSteps = 6, kBatch = 64, kValidation = 501;

  void train(const std::string& name, const std::string& overrides = "") const {
    const Outcome done =
        egmla_command(fmt::format("train {} run.dir={} {}", file("config.yaml"), file(name), overrides));
    ASSERT_EQ(done.code, 0) << done.err;
  }
  double loss(const std::string& name) const {
    const Outcome done = egmla_command(fmt::format("eval {} --json", file(name)));
    EXPECT_EQ(done.code, 0) << done.err;
    return Json::parse(done.out)["loss"];
  }
};

TEST_F(CompareRuns, TheCommandCountsWhatTrainingRead) {
  write_shard("train", kSteps * kBatch + 100, 1);
  write_shard("val", kValidation, 2);
  write_config("config.yaml", fmt::format("  batch_tokens: {}\n  max_steps: {}\n", kBatch, kSteps));
  train("a", "data.order=sequential");
  train("b", "data.order=sequential run.seed=7 train.optimizer.lr=1e-2");

  const Outcome done =
      egmla_command(fmt::format("compare {} {} --json --out {}", file("a"), file("b"), file("a/comparison.json")));
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(read_file(file("a/comparison.json")), done.out);
  const Json found = Json::parse(done.out);
  EXPECT_EQ(found["all"]["tokens"], kValidation - 1);
  EXPECT_NEAR(found["all"]["loss"], loss("a"), 1e-6);
  EXPECT_NEAR(found["all"]["benefit"], loss("b") - loss("a"), 1e-6);

  std::vector<int64_t> seen(kVocabulary);
  const std::vector<int32_t> trained = random_ids(kSteps * kBatch, kVocabulary, 1);
  for (const int32_t id : trained) ++seen[static_cast<size_t>(id)];
  std::map<int64_t, int64_t> expected;  // lower border -> positions
  const std::vector<int32_t> validation = random_ids(kValidation - 1, kVocabulary, 2);
  for (const int32_t id : validation) {
    int64_t border = 0;
    for (const int64_t b : {1, 3, 10, 30})
      if (seen[static_cast<size_t>(id)] >= b) border = b;
    ++expected[border];
  }
  std::map<int64_t, int64_t> counted;
  for (const Json& bin : found["by_count"]) counted[bin["seen_from"]] = bin["tokens"];
  EXPECT_EQ(counted, expected);

  const Outcome table = egmla_command(fmt::format("compare {} {}", file("a"), file("b")));
  EXPECT_NE(table.out.find("seen in training"), std::string::npos) << table.out;
  EXPECT_NE(table.out.find("3 to 9"), std::string::npos) << table.out;
}

TEST_F(CompareRuns, VocabulariesMustAgree) {
  write_shard("train", 400, 1);
  write_shard("val", kValidation, 2);
  write_config("config.yaml", "  batch_tokens: 64\n  max_steps: 1\n");
  train("a");
  train("b", fmt::format("model.vocab_size={}", kVocabulary + 1));
  const Outcome refused = egmla_command(fmt::format("compare {} {}", file("a"), file("b")));
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.last_line().find("the vocabularies hold 61 and 62 tokens"), std::string::npos) << refused.err;
}

}  // namespace
}  // namespace egmla::test

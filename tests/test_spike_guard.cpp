// Spikes of the loss: which losses are one, which batch a step trains on once others are left out, and whole runs that
// return to a checkpoint, interrupted or not.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/files.h"
#include "core/rng.h"
#include "data/shards.h"
#include "egmla_command.h"
#include "io/checkpoint.h"
#include "run_folder.h"
#include "train/metrics.h"
#include "train/spike_guard.h"

namespace egmla::test {
namespace {

TEST(SpikeGuard, MeasuresInDeviationsOnceTheWindowIsFull) {
  SpikeGuard guard({.z = 3, .window = 4, .max_rollbacks = 1});
  for (const double loss : {9.0, 1.0, 3.0, 1.0}) {
    EXPECT_FALSE(guard.is_spike(1e9));
    guard.add(loss);
  }
  guard.add(NAN);
  guard.add(3.0);  // 1, 3, 1, 3: mean 2, deviation 1
  EXPECT_DOUBLE_EQ(guard.distance(5.0), 3.0);
  EXPECT_FALSE(guard.is_spike(5.0));
  EXPECT_TRUE(guard.is_spike(5.001));
  EXPECT_FALSE(guard.is_spike(-100.0));
  EXPECT_FALSE(guard.is_spike(NAN));
}

TEST(SpikeGuard, StepsPassOverTheBatchesLeftOut) {
  CheckpointState state;
  for (const int64_t batch : {4, 1, 2}) ASSERT_TRUE(leave_out(batch, state));
  std::vector<int64_t> batches;
  for (int64_t step = 1; step <= 5; ++step) batches.push_back(batch_of_step(step, state));
  EXPECT_EQ(batches, (std::vector<int64_t>{0, 3, 5, 6, 7}));
  while (state.rollbacks < kMostRollbacks) ASSERT_TRUE(leave_out(100, state));
  EXPECT_FALSE(leave_out(101, state));
}

class Spikes : public RunFolder {
 protected:
  static constexpr int64_t kSteps = 60, kBatch = 64;

  // A pattern that is soon learnt; the batches of steps 33 and 47 are noise.
  void SetUp() override {
    RunFolder::SetUp();
    std::vector<int32_t> ids(static_cast<size_t>((kSteps + 4) * kBatch + 1));
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto batch = static_cast<int64_t>(i) / kBatch;
      // The first id of a batch is the last target of the one before.
      const bool noise = (batch == 32 || batch == 46) && i % kBatch != 0;
      ids[i] = static_cast<int32_t>(noise ? philox(1, i)[0] % kVocabulary : i % 5);
    }
    ShardWriter writer(folder_, "train", kVocabulary);
    writer.append(ids);
    writer.finish();
    write_config("config.yaml", R"(  max_steps: 60
  batch_tokens: 64
  optimizer: {lr: 1e-2}
  schedule: {warmup_steps: 2}
  checkpoint: {every: 5, keep_last: 100}
  spike: {z: 8, window: 10}
)");
    std::string text = read_file(file("config.yaml"));
    const std::string val = fmt::format("val: {}/val_*.bin, ", folder_);
    text.replace(text.find(val), val.size(), "order: sequential, ");
    write_file(file("config.yaml"), text);
  }

  Outcome train(const std::string& run, const std::string& overrides = "") const {
    return egmla_command(fmt::format("train '{}' run.dir='{}' {}", file("config.yaml"), file(run), overrides),
                         "OMP_NUM_THREADS=1");
  }
};

TEST_F(Spikes, ARunGoesBackAndLeavesTheBatchOut) {
  const Outcome whole = train("whole");
  ASSERT_EQ(whole.code, 0) << whole.err;
  EXPECT_NE(whole.err.find("back to step 30 without batch 32 (rollback 1 of 3)"), std::string::npos) << whole.err;
  EXPECT_NE(whole.err.find("back to step 45 without batch 46 (rollback 2 of 3)"), std::string::npos) << whole.err;
  const CheckpointState state = CheckpointReader(checkpoint("whole", kSteps)).state();
  ASSERT_EQ(state.rollbacks, 2);
  EXPECT_EQ(state.skipped_batches[0], 32);
  EXPECT_EQ(state.skipped_batches[1], 46);
  EXPECT_EQ(state.samples, (kSteps + 2) * kBatch / 16);
  const auto rows = read_metrics(file("whole/metrics.jsonl"));
  ASSERT_EQ(std::ssize(rows), kSteps);
  for (int64_t i = 0; i < kSteps; ++i) {
    EXPECT_EQ(rows[static_cast<size_t>(i)].step, i + 1);
    EXPECT_EQ(rows[static_cast<size_t>(i)].tokens, (i + 1) * kBatch);
    if (i > 25) {
      EXPECT_LT(rows[static_cast<size_t>(i)].loss, 1.0) << i + 1;
    }
  }
  // In pieces: stopped before the first spike, between a return and the next checkpoint, and at a checkpoint.
  for (const int64_t stop : {31, 34, 50, 60}) {
    const Outcome piece = train("pieces", fmt::format("train.stop_at_step={}", stop));
    ASSERT_EQ(piece.code, 0) << piece.err;
  }
  EXPECT_EQ(CheckpointReader(checkpoint("pieces", kSteps)).state(), state);
  const auto again = read_metrics(file("pieces/metrics.jsonl"));
  ASSERT_EQ(again.size(), rows.size());
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(again[i].loss, rows[i].loss) << "step " << i + 1;
}

TEST_F(Spikes, TheReturnsAreBounded) {
  const Outcome outcome = train("run", "train.spike.max_rollbacks=1");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_NE(outcome.err.find("(rollback 1 of 1)"), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("going on: train.spike.max_rollbacks is reached"), std::string::npos) << outcome.err;
  EXPECT_EQ(CheckpointReader(checkpoint("run", kSteps)).state().rollbacks, 1);
  const Outcome early = train("none", "train.checkpoint.every=0");
  EXPECT_EQ(early.code, 0);
  EXPECT_NE(early.err.find("going on: no checkpoint yet"), std::string::npos) << early.err;
}

}  // namespace
}  // namespace egmla::test

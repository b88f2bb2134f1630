// Several processes under mpirun on the CPU: collectives, N ranks against one, other numbers of ranks on resuming,
// signals and lost processes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <filesystem>

#include "core/files.h"
#include "core/rng.h"
#include "data/shards.h"
#include "dist/communicator.h"
#include "dist/watchdog.h"
#include "dist/weight_check.h"
#include "egmla_command.h"
#include "io/checkpoint.h"
#include "run_folder.h"
#include "train/metrics.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

TEST(Communicator, OneProcessExchangesWithItself) {
  const auto alone = connect_processes();
  EXPECT_EQ(alone->size(), 1);
  EXPECT_TRUE(alone->is_root());
  EXPECT_EQ(alone->sum(2.5), 2.5);
  EXPECT_EQ(alone->maximum(int64_t{-3}), -3);
  Context context;
  const Tensor values = Tensor::from(context, {3}, std::vector<float>{1, 2, 3});
  alone->all_reduce_sum(values.view());
  EXPECT_EQ(values.to_host<float>(), (std::vector<float>{1, 2, 3}));
}

#ifdef EGMLA_WITH_MPI

double value_of(int rank, int64_t i) {
  return normal(7, static_cast<uint64_t>(i), static_cast<uint64_t>(rank));
}

// Runs inside each rank that Ranks.CollectivesSumInTheOrderOfRanks starts.
TEST(RankProcess, DISABLED_Collectives) {
  const auto ranks = connect_processes();
  const int size = ranks->size(), rank = ranks->rank().number;
  ASSERT_EQ(size, launched_processes());
  EXPECT_EQ(ranks->rank().local, rank);
  EXPECT_EQ(ranks->sum(int64_t{rank}), size * (size - 1) / 2);
  EXPECT_EQ(ranks->maximum(rank), size - 1);
  EXPECT_EQ(ranks->from_root(rank + 5), 5);
  Context context;
  for (const int64_t n : {1, 2, 7, 10000}) {
    std::vector<float> own, sum(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) own.push_back(static_cast<float>(value_of(rank, i)));
    for (int64_t i = 0; i < n; ++i)
      for (int r = 0; r < size; ++r) sum[static_cast<size_t>(i)] += static_cast<float>(value_of(r, i));
    const Tensor reduced = Tensor::from(context, {n}, own), scattered = Tensor::from(context, {n}, own);
    ranks->all_reduce_sum(reduced.view());
    EXPECT_EQ(reduced.to_host<float>(), sum) << n;
    ranks->reduce_scatter_sum(scattered.view());
    std::vector<float> expected = own;
    for (int64_t i = ranks->part_begin(n, rank); i < ranks->part_begin(n, rank + 1); ++i)
      expected[static_cast<size_t>(i)] = sum[static_cast<size_t>(i)];
    EXPECT_EQ(scattered.to_host<float>(), expected) << n;
    ranks->all_gather(scattered.view());
    EXPECT_EQ(scattered.to_host<float>(), sum) << n;
    ranks->broadcast(Tensor::from(context, {n}, own).view());
  }
  const Tensor weights = Tensor::from(context, {3}, std::vector<float>{1, 2, 3});
  EXPECT_NO_THROW(check_equal_weights(weights, *ranks, 4));
  const Tensor spoilt = Tensor::from(context, {3}, std::vector<float>{1, 2, rank == size - 1 ? 3.5F : 3.F});
  try {
    check_equal_weights(spoilt, *ranks, 4);
    ADD_FAILURE() << "differing weights were not noticed";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(fmt::format("step 4: the weights of rank {} differ", size - 1)),
              std::string::npos)
        << error.what();
  }
}

class Ranks : public RunFolder {
 protected:
  void SetUp() override {
    RunFolder::SetUp();
    write_shard("train", 4000, 1);
    write_shard("val", 333, 2);
    write_config("config.yaml", R"(  max_steps: 12
  batch_tokens: 192
  micro_batch_size: 2
  optimizer: {lr: 3e-3}
  schedule: {warmup_steps: 4}
  checkpoint: {every: 4, keep_last: 100}
  eval: {every: 6}
parallel: {check_every: 3}
)");
  }

  // `launcher`: mpirun(N), or empty for one process.
  Outcome train(const std::string& run, const std::string& launcher, const std::string& overrides = "") const {
    return egmla_command(arguments(run, overrides), launcher.empty() ? "OMP_NUM_THREADS=1" : launcher);
  }
  std::string arguments(const std::string& run, const std::string& overrides) const {
    return fmt::format("train '{}' run.dir='{}' {}", file("config.yaml"), file(run), overrides);
  }
  // The same, and the last rank receives a signal once the run directory holds the file `awaited`. The other's exit
  // code is left in the file RUN.code.
  Outcome train_and_signal(const std::string& run, const char* signal, const std::string& awaited,
                           const std::string& overrides, const std::string& options = "") const {
    write_file(file("rank.sh"), fmt::format(R"sh(
if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then
  (until [ -s '{0}/{1}' ]; do kill -0 $$ || exit; sleep 0.05; done; kill -{2} $$) >/dev/null 2>&1 &
  exec "$@"
fi
"$@"
code=$?
echo $code >'{0}.code'
exit $code
)sh",
                                            file(run), awaited, signal));
    return train(run, mpirun(2, options) + " sh " + file("rank.sh"), overrides);
  }

  void expect_near_losses(const std::string& a, const std::string& b) const {
    const auto left = read_metrics(file(a) + "/metrics.jsonl"), right = read_metrics(file(b) + "/metrics.jsonl");
    ASSERT_EQ(left.size(), right.size());
    for (size_t i = 0; i < left.size(); ++i) {
      EXPECT_EQ(left[i].step, right[i].step);
      EXPECT_EQ(left[i].tokens, right[i].tokens);
      EXPECT_NEAR(left[i].loss, right[i].loss, 2e-5) << "step " << left[i].step;
      EXPECT_NEAR(left[i].grad_norm, right[i].grad_norm, 1e-4 * left[i].grad_norm);
      ASSERT_EQ(left[i].val_loss.has_value(), right[i].val_loss.has_value());
      EXPECT_NEAR(left[i].val_loss.value_or(0), right[i].val_loss.value_or(0), 2e-5);
    }
  }

  // The same losses and the same last checkpoint, bit for bit.
  void expect_equal_runs(const std::string& a, const std::string& b) const {
    const auto left = read_metrics(file(a) + "/metrics.jsonl"), right = read_metrics(file(b) + "/metrics.jsonl");
    ASSERT_EQ(left.size(), right.size());
    for (size_t i = 0; i < left.size(); ++i) {
      EXPECT_EQ(left[i].loss, right[i].loss) << "step " << left[i].step;
      EXPECT_EQ(left[i].grad_norm, right[i].grad_norm);
      EXPECT_EQ(left[i].val_loss, right[i].val_loss);
    }
    for (const Group group : {Group::model, Group::exp_avg, Group::exp_avg_sq})
      EXPECT_EQ(distance(checkpoint(a, 12), checkpoint(b, 12), group), 0) << b;
  }

  // The largest difference over all tensors of a group.
  double distance(const std::string& a, const std::string& b, Group group) const {
    const CheckpointReader left(a), right(b);
    double largest = 0;
    EXPECT_EQ(left.state(), right.state());
    for (const std::string& path : left.paths(group)) {
      std::vector<float> x(static_cast<size_t>(left.shape(group, path).elements())), y = x;
      left.read(group, path, x.data());
      right.read(group, path, y.data());
      for (size_t i = 0; i < x.size(); ++i) largest = std::max(largest, std::abs(double{x[i]} - double{y[i]}));
    }
    return largest;
  }
};

TEST_F(Ranks, CollectivesSumInTheOrderOfRanks) {
  for (const int ranks : {2, 3}) {
    const Outcome outcome = in_ranks(ranks, "RankProcess.DISABLED_Collectives");
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    EXPECT_NE(outcome.out.find("1 test from 1 test suite ran."), std::string::npos) << outcome.out;
  }
}

TEST_F(Ranks, SeveralRanksEqualOneToRounding) {
  ASSERT_EQ(train("one", "").code, 0);
  for (const int ranks : {2, 3}) {
    const std::string run = fmt::format("ranks{}", ranks);
    const Outcome outcome = train(run, mpirun(ranks));
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    expect_near_losses("one", run);
    EXPECT_LT(distance(checkpoint("one", 12), checkpoint(run, 12), Group::model), 1e-4);
    EXPECT_LT(distance(checkpoint("one", 12), checkpoint(run, 12), Group::exp_avg), 1e-5);
  }
  const Outcome shared = train("shared", mpirun(2), "parallel.zero_stage=1 parallel.check_every=0");
  ASSERT_EQ(shared.code, 0) << shared.err;
  expect_equal_runs("ranks2", "shared");
}

TEST_F(Ranks, ResumesOnOtherNumbersOfRanksAndStages) {
  ASSERT_EQ(train("whole", mpirun(2)).code, 0);
  for (const int stage : {0, 1}) {
    const std::string half = fmt::format("half{}", stage);
    ASSERT_EQ(train(half, mpirun(2), fmt::format("train.stop_at_step=4 parallel.zero_stage={}", stage)).code, 0);
    for (const auto& [ranks, then] : {std::pair(1, 0), std::pair(2, 1 - stage), std::pair(3, stage)}) {
      const std::string run = fmt::format("{}_{}_{}", half, ranks, then);
      fs::copy(file(half), file(run), fs::copy_options::recursive);
      const Outcome second = train(run, ranks == 1 ? "" : mpirun(ranks), fmt::format("parallel.zero_stage={}", then));
      ASSERT_EQ(second.code, 0) << second.err;
      EXPECT_NE(second.err.find("resuming from"), std::string::npos) << second.err;
      if (ranks == 2) {
        expect_equal_runs("whole", run);
      } else {
        expect_near_losses("whole", run);
        EXPECT_LE(distance(checkpoint("whole", 12), checkpoint(run, 12), Group::model), 1e-4) << run;
      }
    }
  }
}

TEST_F(Ranks, OneSignalledRankStopsAllWithOneCheckpoint) {
  for (const char* signal : {"TERM", "USR1"}) {
    const std::string run = signal;
    const Outcome outcome = train_and_signal(run, signal, "metrics.jsonl",
                                             "train.max_steps=1000000 train.checkpoint.every=0 train.eval.every=0");
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_NE(outcome.err.find(": saved step"), std::string::npos) << outcome.err;
    const auto files = list_checkpoints(file(run) + "/checkpoints");
    ASSERT_EQ(files.size(), 1U);
    EXPECT_EQ(CheckpointReader(files[0].path).state().step, files[0].step);
    EXPECT_EQ(read_metrics(file(run) + "/metrics.jsonl").back().step, files[0].step);
  }
}

TEST_F(Ranks, LostOrStuckRankEndsAllAndTheNextStartResumes) {
  const std::string endless =
      "train.max_steps=1000000 train.eval.every=0 train.checkpoint.every=50 parallel.deadlines.step=2 "
      "parallel.deadlines.checkpoint=2 parallel.check_every=0";
  const std::string awaited = "checkpoints/step-00000050.h5";
  const auto start = std::chrono::steady_clock::now();
  const auto expect_deadline = [](const std::string& err) {
    EXPECT_NE(err.find("error: rank 0: "), std::string::npos) << err;
    EXPECT_NE(err.find("(parallel.deadlines."), std::string::npos) << err;
    EXPECT_NE(err.find("last collective: "), std::string::npos) << err;
  };
  EXPECT_NE(train_and_signal("killed", "KILL", awaited, endless).code, 0);
  // A rank that only stands still is the deadline's business: the other one ends by it, and mpirun ends the still one.
  const Outcome outlived = train_and_signal("outlived", "STOP", awaited, endless);
  EXPECT_EQ(outlived.code, kDeadlineExitCode) << outlived.err;
  expect_deadline(outlived.err);
  // With recovery mpirun leaves the others to themselves, and its own code says nothing.
  const Outcome left =
      train_and_signal("left", "KILL", awaited, endless + " parallel.zero_stage=1", "--enable-recovery");
  EXPECT_EQ(read_file(file("left.code")), fmt::format("{}\n", kDeadlineExitCode)) << left.err;
  expect_deadline(left.err);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(90));
  for (const char* run : {"killed", "outlived", "left"}) {
    const int64_t reached = list_checkpoints(file(run) + "/checkpoints").back().step;
    const Outcome next = train(run, mpirun(2), fmt::format("train.max_steps={}", reached + 10));
    EXPECT_EQ(next.code, 0) << next.err;
    EXPECT_NE(next.err.find("resuming from"), std::string::npos) << next.err;
  }
}

// A full disk cannot be had here without hurting OpenMPI's own files; a file in the directory's place fails alike.
TEST_F(Ranks, CheckpointThatCannotBeWrittenEndsAll) {
  ASSERT_EQ(train("full", "", "train.stop_at_step=1").code, 0);
  fs::remove_all(file("full/checkpoints"));
  write_file(file("full/checkpoints"), "in the way");
  const Outcome full = train("full", mpirun(2), "train.max_steps=1000000 train.eval.every=0");
  EXPECT_EQ(full.code, 1) << full.err;
  EXPECT_NE(full.err.find("error: " + checkpoint("full", 4) + ": checkpoint not written"), std::string::npos)
      << full.err;
}

TEST_F(Ranks, WhatRanksCannotShareIsRefused) {
  const auto expect_refused = [&](int ranks, const std::string& overrides, const std::string& part) {
    const Outcome outcome = train("refused", ranks == 1 ? "" : mpirun(ranks), overrides);
    EXPECT_EQ(outcome.code, 2) << outcome.err;
    EXPECT_NE(outcome.err.find(part), std::string::npos) << part << " in: " << outcome.err;
  };
  expect_refused(2, "train.batch_tokens=144 train.micro_batch_size=1", "9 sequences, which 2 processes cannot share");
  expect_refused(3, "train.micro_batch_size=3", "3 does not divide the 4 sequences");
}

TEST(Watchdog, EndsTheProcessAtTheDeadline) {
  EXPECT_EXIT(
      {
        LocalCommunicator communicator;
        communicator.log()->note("all_reduce_sum", 30);
        communicator.log()->note("all_gather", 40);
        Watchdog watchdog(2);
        watchdog.watch_over(&communicator);
        watchdog.enter("rank 1: step 7", 60, "long");
        watchdog.enter("rank 1: step 8", 0.2, "short");
        std::this_thread::sleep_for(std::chrono::seconds(20));
      },
      testing::ExitedWithCode(kDeadlineExitCode),
      "error: rank 1: step 8: not done after 0.2 s \\(short\\).*last collective: all_gather of 40 elements, number 2");
  Watchdog alone(1);
  alone.enter("alone", 1e-3, "none");
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
}

#endif

}  // namespace
}  // namespace egmla::test

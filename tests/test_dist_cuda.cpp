// NCCL: its collectives on one GPU, and whole runs on two under mpirun where there are two.
#include <gtest/gtest.h>

#include <chrono>

#include "core/files.h"
#include "core/tensor.h"
#include "dist/communicator_nccl.h"
#include "dist/watchdog.h"
#include "egmla_command.h"
#include "io/checkpoint.h"
#include "kernels/elementwise.h"
#include "run_folder.h"
#include "train/metrics.h"

namespace egmla::test {
namespace {

#ifdef EGMLA_WITH_NCCL

TEST(Nccl, OneGpuExchangesWithItselfInStreamOrder) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  Context context(CudaDevice{0});
  LocalCommunicator host;
  const auto nccl = context.visit([&](auto& backend) -> std::unique_ptr<Communicator> {
    if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) return connect_nccl(backend, host);
    return nullptr;
  });
  ASSERT_TRUE(nccl);
  EXPECT_EQ(nccl->sum(2.5), 2.5);
  const int64_t n = 1 << 20;
  const Tensor values = Tensor::zeros(context, {n}, DType::f32), after = Tensor::empty(context, {n}, DType::f32);
  for (int round = 1; round <= 20; ++round) {
    launch(context, Fill{.out = values.view(), .value = static_cast<double>(round)});
    nccl->all_reduce_sum(values.view());
    nccl->reduce_scatter_sum(values.view());
    nccl->all_gather(values.view());
    nccl->broadcast(values.view());
    nccl->mark(static_cast<size_t>(round % 3));
    nccl->wait_for(static_cast<size_t>(round % 3));
    launch(context, Add{.out = after.view(), .a = values.view(), .b = values.view()});
    const std::vector<float> got = after.to_host<float>();
    EXPECT_EQ(got.front(), 2.F * static_cast<float>(round));
    EXPECT_EQ(got.back(), 2.F * static_cast<float>(round));
  }
}

#ifdef EGMLA_WITH_MPI

// Whole runs on two GPUs.
class NcclRuns : public RunFolder {
 protected:
  void SetUp() override {
    if (cuda_device_count() < 2) GTEST_SKIP() << "fewer than two CUDA devices";
    RunFolder::SetUp();
    write_shard("train", 20000, 1);
    write_shard("val", 400, 2);
    write_config("config.yaml", R"(  max_steps: 30
  batch_tokens: 1024
  micro_batch_size: 4
  optimizer: {lr: 1e-3}
  schedule: {warmup_steps: 4}
  checkpoint: {every: 10}
  eval: {every: 10}
parallel: {bucket_mb: 1, check_every: 5, deadlines: {start: 120, step: 20, checkpoint: 20}}
)");
  }
  void TearDown() override {
    if (!folder_.empty()) RunFolder::TearDown();
  }
  Outcome train(const std::string& run, const std::string& launcher, const std::string& overrides = "") const {
    return egmla_command(
        fmt::format("train '{}' run.dir='{}' run.device=cuda {}", file("config.yaml"), file(run), overrides), launcher);
  }
  // Losses of both runs, step by step.
  void expect_losses(const std::string& a, const std::string& b, double tolerance) const {
    const auto left = read_metrics(file(a) + "/metrics.jsonl"), right = read_metrics(file(b) + "/metrics.jsonl");
    ASSERT_EQ(left.size(), right.size());
    for (size_t i = 0; i < left.size(); ++i) {
      EXPECT_NEAR(left[i].loss, right[i].loss, tolerance) << b << " step " << left[i].step;
      EXPECT_NEAR(left[i].val_loss.value_or(0), right[i].val_loss.value_or(0), tolerance);
    }
  }
};

TEST_F(NcclRuns, TwoGpusFollowOneWithAndWithoutSharing) {
  for (const char* precision : {"fp32", "bf16"}) {
    const std::string name = precision, compute = "run.precision=" + name + " ";
    const double tolerance = name == "fp32" ? 5e-3 : 3e-2;
    const Outcome one = train("one_" + name, "", compute);
    ASSERT_EQ(one.code, 0) << one.err;
    for (const int stage : {0, 1}) {
      const std::string run = fmt::format("two_{}_{}", name, stage);
      const Outcome two = train(run, mpirun(2), compute + fmt::format("parallel.zero_stage={}", stage));
      ASSERT_EQ(two.code, 0) << two.err;
      expect_losses("one_" + name, run, tolerance);
    }
    // a + b = b + a: with two ranks the stages agree in every bit.
    expect_losses("two_" + name + "_0", "two_" + name + "_1", 0);
  }
}

TEST_F(NcclRuns, SharedStateResumesOnOneGpu) {
  ASSERT_EQ(train("whole", mpirun(2), "parallel.zero_stage=1").code, 0);
  const Outcome half = train("half", mpirun(2), "parallel.zero_stage=1 train.stop_at_step=10");
  ASSERT_EQ(half.code, 0) << half.err;
  const Outcome then = train("half", "", "train.stop_at_step=20");
  ASSERT_EQ(then.code, 0) << then.err;
  const Outcome last = train("half", mpirun(2), "parallel.zero_stage=1");
  ASSERT_EQ(last.code, 0) << last.err;
  expect_losses("whole", "half", 3e-2);
}

TEST_F(NcclRuns, KilledRankEndsTheOtherByItsDeadline) {
  write_file(file("rank.sh"), fmt::format(R"sh(
if [ "$OMPI_COMM_WORLD_RANK" = 1 ]; then
  (until [ -s '{0}/checkpoints/step-00000010.h5' ]; do kill -0 $$ || exit; sleep 0.05; done; kill -KILL $$) >/dev/null 2>&1 &
  exec "$@"
fi
"$@"
echo $? >'{0}.code'
)sh",
                                          file("killed")));
  const auto start = std::chrono::steady_clock::now();
  const Outcome killed = train("killed", mpirun(2, "--enable-recovery") + " sh " + file("rank.sh"),
                               "train.max_steps=1000000 parallel.deadlines.step=5 parallel.deadlines.checkpoint=5");
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  EXPECT_EQ(read_file(file("killed.code")), fmt::format("{}\n", kDeadlineExitCode)) << killed.err;
  EXPECT_NE(killed.err.find("last collective: "), std::string::npos) << killed.err;
  const int64_t reached = list_checkpoints(file("killed") + "/checkpoints").back().step;
  const Outcome next = train("killed", mpirun(2), fmt::format("train.max_steps={}", reached + 10));
  EXPECT_EQ(next.code, 0) << next.err;
  EXPECT_NE(next.err.find("resuming from"), std::string::npos) << next.err;
}

TEST_F(NcclRuns, MoreProcessesThanGpusAreRefused) {
  const int gpus = cuda_device_count();
  const Outcome outcome = train("many", mpirun(gpus + 1), fmt::format("train.batch_tokens={}", 64 * (gpus + 1)));
  EXPECT_NE(outcome.code, 0);
  EXPECT_NE(outcome.err.find(fmt::format("{} processes on this host, but {} visible GPUs", gpus + 1, gpus)),
            std::string::npos)
      << outcome.err;
}

#endif

#endif

}  // namespace
}  // namespace egmla::test

// NCCL: its collectives on one GPU, and whole runs on two under mpirun where there are two.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "core/files.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "data/shards.h"
#include "dist/communicator_nccl.h"
#include "egmla_command.h"
#include "kernels/elementwise.h"
#include "train/metrics.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

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
    nccl->wait();
    launch(context, Add{.out = after.view(), .a = values.view(), .b = values.view()});
    const std::vector<float> got = after.to_host<float>();
    EXPECT_EQ(got.front(), 2.F * static_cast<float>(round));
    EXPECT_EQ(got.back(), 2.F * static_cast<float>(round));
  }
}

#ifdef EGMLA_WITH_MPI
TEST(Nccl, TwoGpusFollowOne) {
  if (cuda_device_count() < 2) GTEST_SKIP() << "fewer than two CUDA devices";
  const std::string folder = (fs::temp_directory_path() / fmt::format("egmla_nccl_{}", ::getpid())).string();
  fs::create_directories(folder);
  ShardWriter writer(folder, "train", 61);
  std::vector<int32_t> ids;
  for (uint64_t i = 0; i < 20000; ++i) ids.push_back(static_cast<int32_t>(uniform(1, i, 0) * 61));
  writer.append(ids);
  writer.finish();
  write_file(folder + "/config.yaml", fmt::format(R"(
run: {{device: cuda, precision: fp32}}
model: {{hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, num_attention_heads: 2, vocab_size: 61, attention: {{type: mha}}}}
data: {{train: {}/train_*.bin, sequence_length: 64}}
train: {{max_steps: 30, batch_tokens: 1024, micro_batch_size: 4, optimizer: {{lr: 1e-3}}, schedule: {{warmup_steps: 4}}, eval: {{every: 0}}}}
parallel: {{bucket_mb: 1, check_every: 5}}
)",
                                                  folder));
  const auto train = [&](const std::string& run, const std::string& launcher) {
    return egmla_command(fmt::format("train '{}/config.yaml' run.dir='{}/{}'", folder, folder, run), launcher);
  };
  const Outcome one = train("one", ""), two = train("two", "mpirun --allow-run-as-root --oversubscribe -n 2");
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_EQ(two.code, 0) << two.err;
  const auto left = read_metrics(folder + "/one/metrics.jsonl"), right = read_metrics(folder + "/two/metrics.jsonl");
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i) EXPECT_NEAR(left[i].loss, right[i].loss, 5e-3) << "step " << left[i].step;
  fs::remove_all(folder);
}
#endif

#endif

}  // namespace
}  // namespace egmla::test

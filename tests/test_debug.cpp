// Debug aids: the scan for NaN and infinity, the names it gives, profiles of launches, and profiled training steps.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <limits>

#include "core/files.h"
#include "data/shards.h"
#include "egmla_command.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/layout.h"
#include "kernels/matmul.h"
#include "kernels/norm.h"
#include "model_variants.h"
#include "op_case.h"
#include "optim/adamw.h"
#include "train/step_profile.h"

namespace egmla::test {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// EGMLA_CHECK for the contexts that are made during its life.
class CheckMode {
 public:
  explicit CheckMode(const char* mode) {
    if (const char* before = std::getenv("EGMLA_CHECK")) before_ = before;
    ::setenv("EGMLA_CHECK", mode, 1);
  }
  CheckMode(const CheckMode&) = delete;
  CheckMode& operator=(const CheckMode&) = delete;
  ~CheckMode() { ::setenv("EGMLA_CHECK", before_.c_str(), 1); }

 private:
  std::string before_;
};

std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::runtime);
    return error.what();
  }
  return "";
}

void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << part << " in: " << text;
}

TEST(NanCheck, NamesKernelResultAndOperand) {
  const CheckMode mode("nan");
  Context context;
  const Tensor a = Tensor::from<float>(context, {2, 3}, {1, 2, 3, 4, 5, kNan}),
               b = Tensor::zeros(context, {2, 3}, DType::f32);
  const Tensor out = Tensor::empty(context, {2, 3}, DType::f32);
  EXPECT_EQ(error_of([&] { launch(context, Add{.out = out.view(), .a = b.view(), .b = a.view()}); }),
            "add: out f32 [2,3] holds nan at [1,2]; its operand b f32 [2,3] holds nan at [1,2] (EGMLA_CHECK=nan)");
  // Changed in place, an operand tells nothing any more.
  expect_parts(error_of([&] { launch(context, Add{.out = a.view(), .a = a.view(), .b = b.view()}); }),
               {"add: out f32 [2,3] holds nan at [1,2]; what it only reads is finite"});
}

TEST(NanCheck, FindsOverflowInProducts) {
  const CheckMode mode("nan");
  Context context;
  const Tensor a = Tensor::from<float>(context, {2, 1}, {1, 1e30F}),
               b = Tensor::from<float>(context, {3, 1}, {1, -1e30F, 2});
  const Tensor out = Tensor::empty(context, {2, 3}, DType::f32);
  EXPECT_EQ(
      error_of([&] { launch(context, Matmul{.out = out.view(), .a = a.view(), .b = b.view(), .transpose_b = true}); }),
      "matmul 2x3x1 nt f32: out f32 [2,3] holds -inf at [1,1]; what it only reads is finite (EGMLA_CHECK=nan)");
}

TEST(NanCheck, CountsInsideWindows) {
  const CheckMode mode("nan");
  Context context;
  const Tensor packed = Tensor::from<double>(context, {2, 2, 4}, std::vector<double>(16, kInfinity));
  const Tensor x = Tensor::from<double>(context, {2, 2, 2}, {0, 0, 0, 0, 0, 0, 0, kInfinity});
  const Tensor finite = Tensor::zeros(context, {2, 2, 2}, DType::f64);
  const View window = packed.view().columns(1, 2);
  launch(context, Copy{.out = window, .x = finite.view()});  // what lies beside the window does not count
  expect_parts(error_of([&] { launch(context, Copy{.out = window, .x = x.view()}); }),
               {"copy: out f64 [2,2,2] holds inf at [1,1,1]; its operand x f64 [2,2,2] holds inf at [1,1,1]"});
}

TEST(NanCheck, OffItCostsAndSaysNothing) {
  const CheckMode mode("");
  Context context;
  EXPECT_FALSE(context.watched());
  const Tensor a = Tensor::from<float>(context, {1}, {kNan}), out = Tensor::empty(context, {1}, DType::f32);
  launch(context, Add{.out = out.view(), .a = a.view(), .b = a.view()});
  EXPECT_TRUE(std::isnan(out.to_host<float>().front()));
  context.name_memory(a.view(), "a");
  EXPECT_EQ(context.name_of_memory(a.view().data), "");
}

TEST(NanCheck, ModesAreNamed) {
  const CheckMode mode("nans");
  try {
    const Context context;
    FAIL() << "EGMLA_CHECK=nans was taken";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_EQ(std::string(error.what()), "EGMLA_CHECK: found 'nans'; expected sync, nan or poison");
  }
}

// Used blocks too: what an earlier tensor left in them is gone.
TEST(Poison, MemoryThatIsHandedOutHoldsNothingUsable) {
  const CheckMode mode("poison");
  Context context;
  for (int round = 0; round < 2; ++round) {
    Tensor floats = Tensor::empty(context, {8}, DType::f32), ids = Tensor::empty(context, {8}, DType::i32);
    for (const float value : floats.to_host<float>()) EXPECT_TRUE(std::isnan(value));
    for (const int32_t id : ids.to_host<int32_t>()) EXPECT_EQ(id, -1);
    launch(context, Fill{.out = floats.view(), .value = 2});
    context.clear(ids.view().data, ids.view().bytes());
    EXPECT_EQ(floats.to_host<float>().back(), 2);
    EXPECT_EQ(ids.to_host<int32_t>().back(), 0);
  }
}

TEST(NanCheck, MemoryKeepsItsNameUntilReleased) {
  const CheckMode mode("nan");
  Context context;
  const void* address = nullptr;
  {
    const Tensor a = Tensor::zeros(context, {64}, DType::f32);
    context.name_memory(make_view(a.view().data, {32}, DType::f32), "first");
    context.name_memory(make_view(a.view().as<float>() + 32, {16}, DType::f32), "second");
    address = a.view().as<float>() + 47;
    EXPECT_EQ(context.name_of_memory(a.view().as<float>() + 31), "first");
    EXPECT_EQ(context.name_of_memory(address), "second");
    EXPECT_EQ(context.name_of_memory(a.view().as<float>() + 48), "");
    EXPECT_EQ(context.name_of_memory(a.view().as<float>() - 1), "");
  }
  EXPECT_EQ(context.name_of_memory(address), "");
}

// Whole steps of every kind of model raise nothing: no kernel writes a NaN or an infinity on purpose, and no workspace
// passes for a result.
TEST(NanCheck, TrainsEveryModel) {
  const CheckMode mode("nan");
  for (const Variant& variant : all_variants()) {
    Context context;
    auto model = build(variant.model, context, DType::f32);
    AdamWOptimizer optimizer(model->parameters(), OptimizerConfig{}, 1, 0);
    AdamWOptimizer narrow(model->parameters(), {.state_dtype = StateDtype::bf16}, 1, 0);
    const Batch batch = make_batch(context, batch_ids(variant.model, 2, 9, 3), 2, 9, 4);
    const std::string error = error_of([&] {
      loss_and_gradients(*model, batch);
      for (AdamWOptimizer* each : {&optimizer, &narrow}) {
        each->measure_grad_norm();
        each->step(1e-3, 1, 1.0);
      }
    });
    EXPECT_EQ(error, "") << variant.name;
  }
}

TEST(NanCheck, NamesTheParameterAtFault) {
  const CheckMode mode("nan");
  Context context;
  const Variant chosen = all_variants().front();
  auto model = build(chosen.model, context, DType::f32);
  ParameterStore& store = model->parameters();
  const auto weight = std::find_if(store.tensors().begin(), store.tensors().end(), [](const NamedTensor& tensor) {
    return tensor.path.find("down_proj.weight") != std::string::npos;
  });
  ASSERT_NE(weight, store.tensors().end());
  std::vector<float> values(static_cast<size_t>(weight->elements()));
  store.read(*weight, values.data());
  values[1] = kInfinity;
  store.write(*weight, values.data());
  const Batch batch = make_batch(context, batch_ids(chosen.model, 2, 9, 3), 2, 9);
  expect_parts(error_of([&] { loss_and_gradients(*model, batch); }),
               {"matmul ", ", reading " + weight->path + ": out f32 [", "its operand b f32 [",
                "] (" + weight->path + ") holds inf at [0,1]"});
}

TEST(Profiles, CountCallsAndBytes) {
  Context context;
  const Tensor a = Tensor::zeros(context, {64, 8}, DType::f32), b = Tensor::zeros(context, {8, 8}, DType::f32);
  const Tensor table = Tensor::zeros(context, {1000, 8}, DType::f32), ids = Tensor::zeros(context, {64}, DType::i32);
  Profile profile;
  {
    const ProfileScope scope(context, profile);
    for (int i = 0; i < 3; ++i) launch(context, Add{.out = a.view(), .a = a.view(), .b = a.view()});
    launch(context, Matmul{.out = b.view(), .a = a.view(), .b = a.view(), .transpose_a = true, .accumulate = true});
    launch(context, EmbeddingForward{.out = a.view(), .table = table.view(), .ids = ids.view()});
  }
  launch(context, Fill{.out = a.view(), .value = 0});  // no longer seen
  const auto& entries = profile.entries();
  ASSERT_EQ(entries.size(), 3U);
  EXPECT_EQ(entries.at("add").calls, 3);
  EXPECT_EQ(entries.at("add").bytes, 3 * 3 * 64 * 8 * 4);
  EXPECT_GT(entries.at("add").seconds, 0);
  const Profile::Entry& product = entries.at("matmul 8x8x64 tn f32 +=");
  EXPECT_EQ(product.bytes, (2 * 64 * 8 + 2 * 8 * 8) * 4);
  ASSERT_NE(std::any_cast<Matmul>(&product.kernel), nullptr);
  EXPECT_TRUE(std::any_cast<Matmul>(&product.kernel)->transpose_a);
  EXPECT_EQ(entries.at("embedding").bytes, 2 * 64 * 8 * 4 + 64 * 4);  // 64 rows of the table, not all
  expect_parts(profile.table(1), {"add ", "     3 calls", "GB/s", "matmul 8x8x64 tn f32 +=", "all kernels"});
}

TEST(Profiles, StepsThatAreShown) {
  TrainConfig train;
  train.log.every = 5;
  EXPECT_FALSE(profiles_step(train, 2));
  train.profile = true;
  std::vector<int64_t> shown;
  for (int64_t step = 1; step <= 110; ++step) {
    if (profiles_step(train, step)) shown.push_back(step);
  }
  EXPECT_EQ(shown, (std::vector<int64_t>{2, 50, 100}));
}

TEST(Profiles, TrainingLogsTheTable) {
  namespace fs = std::filesystem;
  const std::string folder = (fs::temp_directory_path() / fmt::format("egmla_profile_{}", ::getpid())).string();
  fs::create_directories(folder);
  ShardWriter writer(folder, "train", 61);
  writer.append(random_ids(4000, 61, 1));
  writer.finish();
  write_file(folder + "/config.yaml", fmt::format(R"(
run: {{device: cpu, dir: {0}/run}}
model:
  hidden_size: 16
  intermediate_size: 32
  num_hidden_layers: 1
  num_attention_heads: 2
  vocab_size: 61
  attention: {{type: egmla, kv_lora_rank: 8, qk_nope_head_dim: 8, qk_rope_head_dim: 4, v_head_dim: 8, gate: {{embed_dim: 4}}}}
data: {{train: {0}/train_*.bin, sequence_length: 16}}
train: {{max_steps: 3, batch_tokens: 32, checkpoint: {{every: 0}}, profile: true}}
)",
                                                  folder));
  const Outcome outcome = egmla_command(fmt::format("train '{}/config.yaml'", folder), "OMP_NUM_THREADS=2");
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const std::string log = read_file(folder + "/run/log.txt");
  expect_parts(log, {"step 2 by kernel:\n", "attention_backward ", "gate_backward ", "adamw ", "all kernels "});
  EXPECT_EQ(log.find("step 3 by kernel"), std::string::npos);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace egmla::test

// Benchmarks: what they time has the layout asked for, their sums add up, and their JSON holds what peers print.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "egmla_command.h"
#include "io/config.h"
#include "kernels/elementwise.h"
#include "kernels/matmul.h"
#include "lab/bench_floor.h"
#include "lab/bench_ops.h"
#include "lab/bench_tools.h"
#include "lab/bench_train.h"
#include "train/card.h"

namespace egmla::test {
namespace {

using nlohmann::json;

TEST(BenchTools, RandomOperandsKeepTheLayout) {
  Context context;
  const Tensor packed = Tensor::zeros(context, {4, 6, 40}, DType::f32);
  const View window = packed.view().columns(7, 9);
  const Tensor copy = random_like(context, window);
  EXPECT_TRUE(copy.shape() == window.shape);
  EXPECT_TRUE(copy.view().strides == window.strides);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(copy.view().data) % 256, reinterpret_cast<uintptr_t>(window.data) % 256);
  EXPECT_NE(copy.view().data, window.data);
  EXPECT_FALSE(random_like(context, View{}).defined());
  const Tensor large = random_tensor(context, {3, 1 << 19}, DType::f32);  // more than a block
  double sum = 0, squares = 0;
  for (const float x : large.to_host<float>()) {
    sum += static_cast<double>(x);
    squares += static_cast<double>(x) * static_cast<double>(x);
  }
  const double n = static_cast<double>(large.shape().elements());
  EXPECT_NEAR(sum / n, 0, 0.01);
  EXPECT_NEAR(squares / n, 1, 0.01);
  for (const int32_t id : random_tensor(context, {33}, DType::i32).to_host<int32_t>()) EXPECT_EQ(id, 0);
}

TEST(BenchTools, RepeatsTakeAsLongAsOneRun) {
  Context context;
  int64_t runs = 0;
  const double seconds = seconds_of(context, [&] {
    ++runs;
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(2);
    while (std::chrono::steady_clock::now() < end) {
    }
  });
  EXPECT_GE(seconds, 0.002);
  EXPECT_LT(seconds, 0.02);
  EXPECT_GE(runs, 9);  // three to warm up, one to choose the repeats, five rounds of one where the machine is busy
}

TEST(StepFloors, AddProductsAndBytes) {
  Context context;
  const Tensor a = random_tensor(context, {256, 256}, DType::f32), out = Tensor::zeros(context, {256, 256}, DType::f32);
  const auto product = [&] { launch(context, Matmul{.out = out.view(), .a = a.view(), .b = a.view()}); };
  const auto sum = [&] { launch(context, Add{.out = out.view(), .a = a.view(), .b = a.view()}); };
  Profile profile;
  {
    const ProfileScope scope(context, profile);
    for (int i = 0; i < 6; ++i) product();
    for (int i = 0; i < 4; ++i) sum();
  }
  const StepFloor floor = measure_floor(context, profile, 2);
  const double alone = 1e3 * seconds_of(context, product);
  EXPECT_GT(floor.products.floor_ms, 3 * alone / 4);  // three products a step
  EXPECT_LT(floor.products.floor_ms, 3 * alone * 4);
  EXPECT_DOUBLE_EQ(floor.other_gb, 2 * 3 * 256 * 256 * 4 * 1e-9);  // two sums a step
  EXPECT_NEAR(floor.other.floor_ms, 1e3 * floor.other_gb / floor.copy_gb_per_s, 1e-9);
  EXPECT_GT(floor.products.ms, 0);
  EXPECT_GT(floor.other.ms, 0);
  EXPECT_EQ(floor.attention.floor_ms, 0);
  EXPECT_DOUBLE_EQ(floor.floor_ms(), floor.products.floor_ms + floor.other.floor_ms);
}

TEST(BenchTrain, PrintsThePeersFieldsAndTheFloor) {
  const Config config = load_config(EGMLA_SOURCE_DIR "/configs/quickstart.yaml",
                                    {"run.device=cpu", "run.peak_tflops=0.5", "model.num_hidden_layers=1",
                                     "model.hidden_size=32", "model.intermediate_size=64", "model.vocab_size=128",
                                     "data.sequence_length=64", "train.batch_tokens=128", "train.micro_batch_size=1"});
  const TrainTiming timing = bench_train(config, 1, 2, true);
  const json out = json::parse(train_timing_json(config, timing));
  for (const char* field : {"attn", "gpus", "params", "matmul_params", "batch", "seq", "accumulation", "ms",
                            "running_ms", "tokens_per_s_per_gpu", "tflops", "mfu", "peak_gib", "loss"})
    EXPECT_TRUE(out.contains(field)) << field;
  EXPECT_EQ(out["attn"], "egmla");
  EXPECT_EQ(out["accumulation"], 2);
  EXPECT_NEAR(out["mfu"].get<double>(), out["tflops"].get<double>() / 0.5, 1e-9);
  double floor = 0;
  for (const char* part : {"products", "attention", "other"}) {
    EXPECT_GT(out[part]["ms"].get<double>(), 0) << part;
    EXPECT_GT(out[part]["floor_ms"].get<double>(), 0) << part;
    floor += out[part]["floor_ms"].get<double>();
  }
  EXPECT_NEAR(out["floor_ms"].get<double>(), floor, 1e-9);
  EXPECT_NEAR(out["floor_ratio"].get<double>(), out["ms"].get<double>() / floor, 1e-9);
  // One step writes the weights once (f32: w, m, v, and reads w, m, v, g) and more.
  EXPECT_GT(out["other_gb"].get<double>(), 28e-9 * out["params"].get<double>());
  for (const char* part : {"floor ", "products", "everything else", "MFU ", "attention_backward ", "all kernels"})
    EXPECT_NE(train_timing_text(timing).find(part), std::string::npos) << part;
}

TEST(BenchOps, TimesEveryKernelOnTheCpu) {
  const Outcome outcome = egmla_command("bench ops --device cpu --json", "OMP_NUM_THREADS=2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json out = json::parse(outcome.out);
  EXPECT_EQ(out["device"], "cpu");
  EXPECT_GT(out["copy_gb_per_s"].get<double>(), 0);
  std::vector<std::string> ops;
  for (const json& row : out["rows"]) {
    ops.push_back(row["op"]);
    EXPECT_EQ(row["size"], "small");
    EXPECT_GT(row["ms"].get<double>(), 0);
    EXPECT_NEAR(row["of_copy"].get<double>(), row["gb_per_s"].get<double>() / out["copy_gb_per_s"].get<double>(), 1e-9);
    if (row["op"] == "swiglu") {  // reads two halves, writes one
      EXPECT_NEAR(row["gb_per_s"].get<double>() * row["ms"].get<double>(), 1e-6 * 3 * 512 * 704 * 4, 1e-6);
    }
  }
  EXPECT_EQ(ops, (std::vector<std::string>{"rms_norm", "add + rms_norm", "rms_norm_backward", "layer_norm",
                                           "layer_norm_backward", "gate", "gate_backward", "rope", "swiglu",
                                           "swiglu_backward", "gelu", "gelu_backward", "add", "cross_entropy",
                                           "embedding", "embedding_backward", "square_sum", "adamw"}));
  const Outcome unknown = egmla_command("bench ops --sizes 7b");
  EXPECT_EQ(unknown.code, 2);
  EXPECT_NE(unknown.err.find("bench ops: found size '7b'; expected 124m, 1b or small"), std::string::npos);
}

TEST(BenchDecode, PrintsTheFloorWithItsParts) {
  const std::string config =
      "bench decode " EGMLA_SOURCE_DIR "/configs/quickstart.yaml run.device=cpu --batch 1,2 --context 24 --steps 2 ";
  for (const char* fold : {"never", "always"}) {
    const Outcome outcome = egmla_command(config + "--gb-per-s 10 --json run.fold_gate=" + fold, "OMP_NUM_THREADS=2");
    ASSERT_EQ(outcome.code, 0) << outcome.err;
    const json out = json::parse(outcome.out);
    // 4 layers of d_c 32 + d_r 16 in f32, and two statistics each; H (d_n + d_v) = 256 features rebuilt from d_c and
    // d_e.
    EXPECT_EQ(out["cache"]["bytes_per_token"], 4 * 48 * 4);
    EXPECT_EQ(out["cache"]["statistics_bytes_per_token"], 4 * 2 * 4);
    ASSERT_EQ(out["rows"].size(), 2u);
    const bool folded = std::string(fold) == "always";
    for (const json& row : out["rows"]) {
      const double batch = row["batch"].get<double>(), tokens = batch * 24;
      EXPECT_EQ(row["folded"], folded);
      EXPECT_GT(row["ms"].get<double>(), 0);
      EXPECT_NEAR(row["tokens_per_s"].get<double>() * row["ms"].get<double>(), 1e3 * batch, 1e-6);
      const json& floor = row["floor"];
      EXPECT_NEAR(floor["cache_gb"].get<double>(), tokens * (768 + 32) * 1e-9, 1e-15);
      EXPECT_NEAR(floor["tables_gb"].get<double>(), folded ? tokens * 4 * 256 * 4 * 1e-9 : 0, 1e-15);
      const double weights = floor["weights_gb"].get<double>() * 1e9 / 4;
      const double rebuilt = 2 * (folded ? 32 : 64) * 256 + 2 * 4 * (32 + 16 + 32);
      EXPECT_NEAR(floor["tflop"].get<double>(), (2 * weights * batch + tokens * 4 * rebuilt) * 1e-12, 1e-15);
      const double ms =
          (floor["weights_gb"].get<double>() + floor["cache_gb"].get<double>() + floor["tables_gb"].get<double>()) /
          10 * 1e3;
      EXPECT_NEAR(floor["ms"].get<double>(), ms, 1e-9);
      EXPECT_NEAR(row["fraction"].get<double>(), ms / row["ms"].get<double>(), 1e-9);
    }
  }
  const Outcome text = egmla_command(config, "OMP_NUM_THREADS=2");
  for (const char* part : {"cache 768 bytes per token", "ms/step", "weights + cache + tables + FLOPs"})
    EXPECT_NE(text.out.find(part), std::string::npos) << part;
}

// Calls of each kind are those of a step, and their floors add up to the step's.
TEST(BenchDecode, ProfilesAStepByKernel) {
  const Outcome outcome = egmla_command("bench decode " EGMLA_SOURCE_DIR
                                        "/configs/quickstart.yaml run.device=cpu run.fold_gate=never --context 24 "
                                        "--steps 2 --gb-per-s 10 --profile --json",
                                        "OMP_NUM_THREADS=2");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const json row = json::parse(outcome.out)["rows"][0], profile = row["profile"];
  double kinds_us = 0, floor_us = 0;
  std::map<std::string, int64_t> calls;
  for (const json& kind : profile["kinds"]) {
    EXPECT_GT(kind["us"].get<double>(), 0);
    const auto count = kind["calls"].get<int64_t>();
    calls[kind["kernel"].get<std::string>()] = count;
    kinds_us += static_cast<double>(count) * kind["us"].get<double>();
    floor_us += static_cast<double>(count) * kind["floor_us"].get<double>();
  }
  EXPECT_EQ(calls["gated_decode_attention"], 4);
  EXPECT_EQ(calls["gate_statistics"], 4);
  EXPECT_EQ(calls["greedy_step"], 1);
  EXPECT_GT(profile["step_us"].get<double>(), 0);
  EXPECT_NEAR(profile["kinds_us"].get<double>(), kinds_us, 1e-6 * kinds_us);
  // Beside the floor: W^UKV and W^UE twice, the capacity instead of the context, and what passes between kernels.
  EXPECT_NEAR(floor_us, 1e3 * row["floor"]["ms"].get<double>(), 0.35 * floor_us);
}

TEST(Cards, PeaksByNameOrByKey) {
  EXPECT_EQ(peak_flops("NVIDIA H100 80GB HBM3", 0), 989.4e12);
  EXPECT_EQ(peak_flops("NVIDIA H100 PCIe", 0), 756e12);
  EXPECT_EQ(peak_flops("NVIDIA A100-SXM4-80GB", 0), 312e12);
  EXPECT_EQ(peak_flops("NVIDIA H200", 500), 500e12);
  EXPECT_EQ(peak_flops("cpu", 2), 2e12);
  EXPECT_FALSE(peak_flops("cpu", 0));
}

}  // namespace
}  // namespace egmla::test

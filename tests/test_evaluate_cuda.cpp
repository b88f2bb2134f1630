// Scores of continuations and strided losses on CUDA, against the CPU in float64; twice the same bits.
#include <gtest/gtest.h>

#include "infer/continuations.h"
#include "infer/evaluator.h"
#include "model_variants.h"
#include "op_case.h"

namespace egmla::test {
namespace {

#define NEEDS_CUDA() \
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device on this machine"

Context& device() {
  static Context context{CudaDevice{0}};
  return context;
}

std::vector<double> scores_on(Context& context, const ModelConfig& config, DType dtype) {
  auto model = build(config, context, dtype);
  std::vector<Continuation> all;
  for (uint64_t i = 0; i < 9; ++i) {
    const auto given = static_cast<int64_t>(1 + 7 * i), wanted = static_cast<int64_t>(1 + i % 4);
    all.push_back({random_ids(given, config.vocab_size, 3 * i), random_ids(wanted, config.vocab_size, 3 * i + 1)});
  }
  std::vector<double> out;
  for (const auto& each : score_continuations(*model, all, {.batch_tokens = 160, .greedy = true}))
    out.push_back(each.log_likelihood);
  return out;
}

double strided_loss_on(Context& context, const ModelConfig& config, DType dtype) {
  auto model = build(config, context, dtype);
  std::vector<TokenStream> streams;
  streams.emplace_back("memory", random_ids(100, config.vocab_size, 3), config.vocab_size);
  const ValidationSet data(std::move(streams), 16, 5);
  return evaluate(*model, data, BatchBuilder(16, std::nullopt), {.micro_batch_size = 3}).loss;
}

class CudaEvaluation : public testing::TestWithParam<Variant> {};

TEST_P(CudaEvaluation, ScoresAgreeWithTheCpuInDouble) {
  NEEDS_CUDA();
  Context host;
  const ModelConfig& config = GetParam().model;
  const std::vector<double> exact = scores_on(host, config, DType::f64);
  for (const auto& [dtype, tolerance] : {std::pair(DType::f32, 1e-3), std::pair(DType::bf16, 0.2)}) {
    const std::vector<double> found = scores_on(device(), config, dtype);
    for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(found[i], exact[i], tolerance) << name_of(dtype) << " " << i;
    EXPECT_EQ(found, scores_on(device(), config, dtype));
  }
}

TEST_P(CudaEvaluation, StridedLossAgreesWithTheCpuInDouble) {
  NEEDS_CUDA();
  Context host;
  const double exact = strided_loss_on(host, GetParam().model, DType::f64);
  EXPECT_NEAR(strided_loss_on(device(), GetParam().model, DType::f32), exact, 1e-4);
  EXPECT_NEAR(strided_loss_on(device(), GetParam().model, DType::bf16), exact, 0.02);
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaEvaluation, testing::ValuesIn(all_variants()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace egmla::test

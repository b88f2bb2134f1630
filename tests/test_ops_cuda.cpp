// Every op case and every model variant on CUDA, against the CPU in float64.
#include <gtest/gtest.h>

#include <cmath>

#include "infer/decoder.h"
#include "model_variants.h"
#include "op_case.h"
#include "optim/adamw.h"

namespace egmla::test {
namespace {

#define NEEDS_CUDA() \
  if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device on this machine"

// One context for all tests: its pool keeps what it has taken.
Context& device() {
  static Context context{CudaDevice{0}};
  return context;
}

class CudaOps : public testing::TestWithParam<OpCase> {};

std::string name_of_case(const testing::TestParamInfo<OpCase>& info) {
  std::string name = info.param.name;
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
}

void compare(const OpCase& op_case, DType dtype, double tolerance) {
  Context host;
  const CaseValues values = draw_values(op_case, 5);
  const CaseResult exact = evaluate(op_case, values, host, DType::f64, true);
  const CaseResult found = evaluate(op_case, values, device(), dtype, true);
  const auto each = [&](const char* what, const std::vector<std::vector<double>>& a,
                        const std::vector<std::vector<double>>& b) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) EXPECT_LT(relative_error(a[i], b[i]), tolerance) << what << " " << i;
  };
  each("output", found.outputs, exact.outputs);
  each("gradient of input", found.input_grads, exact.input_grads);
  each("gradient of parameter", found.parameter_grads, exact.parameter_grads);
}

TEST_P(CudaOps, FloatAgreesWithTheCpuInDouble) {
  NEEDS_CUDA();
  compare(GetParam(), DType::f32, GetParam().float_tolerance);
}

TEST_P(CudaOps, Bf16AgreesWithTheCpuInDouble) {
  NEEDS_CUDA();
  compare(GetParam(), DType::bf16, GetParam().bf16_tolerance);
}

TEST_P(CudaOps, TwoRunsGiveTheSameBits) {
  NEEDS_CUDA();
  const CaseValues values = draw_values(GetParam(), 6);
  const CaseResult a = evaluate(GetParam(), values, device(), DType::bf16, true);
  const CaseResult b = evaluate(GetParam(), values, device(), DType::bf16, true);
  EXPECT_EQ(a.outputs, b.outputs);
  EXPECT_EQ(a.input_grads, b.input_grads);
  EXPECT_EQ(a.parameter_grads, b.parameter_grads);
}

INSTANTIATE_TEST_SUITE_P(Ops, CudaOps, testing::ValuesIn(all_cases()), name_of_case);

class CudaModels : public testing::TestWithParam<Variant> {};

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

TEST_P(CudaModels, FloatLossAndGradientsAgreeWithTheCpu) {
  NEEDS_CUDA();
  Context host;
  auto a = build(GetParam().model, host, DType::f64), b = build(GetParam().model, device(), DType::f32);
  const std::vector<int32_t> ids = batch_ids(GetParam().model, 3, 33, 3);
  const double exact = loss_and_gradients(*a, make_batch(host, ids, 3, 33, 9));
  const double found = loss_and_gradients(*b, make_batch(device(), ids, 3, 33, 9));
  EXPECT_NEAR(found, exact, 1e-5);
  EXPECT_LT(relative_error(doubles_of(b->parameters().grad()), doubles_of(a->parameters().grad())), 1e-4);
}

std::vector<double> training_losses(const ModelConfig& config, Context& context, DType dtype, int64_t steps) {
  auto model = build(config, context, dtype);
  AdamWOptimizer optimizer(model->parameters(), {.lr = 3e-3}, 1, 0);
  std::vector<double> losses;
  for (int64_t step = 1; step <= steps; ++step) {
    const std::vector<int32_t> ids = batch_ids(config, 8, 32, static_cast<uint64_t>(step % 4));
    losses.push_back(loss_and_gradients(*model, make_batch(context, ids, 8, 32)));
    optimizer.measure_grad_norm();
    optimizer.step(3e-3, step, 1.0);
  }
  return losses;
}

TEST_P(CudaModels, Bf16TrainingFollowsTheCpuInFloat) {
  NEEDS_CUDA();
  Context host;
  const auto exact = training_losses(GetParam().model, host, DType::f32, 20);
  const auto found = training_losses(GetParam().model, device(), DType::bf16, 20);
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(found[i], exact[i], 0.02) << "step " << i + 1;
  EXPECT_EQ(found, training_losses(GetParam().model, device(), DType::bf16, 20));
}

TEST_P(CudaModels, DecodingEqualsTheFullForwardPass) {
  NEEDS_CUDA();
  auto model = build(GetParam().model, device(), DType::f32);
  const std::vector<int32_t> ids = batch_ids(GetParam().model, 1, 12, 7);
  const std::vector<double> losses = token_losses(*model, make_batch(device(), ids, 1, 12));
  Decoder decoder(*model, 12);
  decoder.feed({ids.begin(), ids.begin() + 5});
  for (size_t t = 5; t < 12; ++t) {
    const std::vector<float> logits = decoder.feed({ids[t]});
    double sum = 0;
    for (float logit : logits) sum += std::exp(static_cast<double>(logit));
    EXPECT_NEAR(std::log(sum) - static_cast<double>(logits[static_cast<size_t>(ids[t + 1])]), losses[t], 1e-5)
        << "token " << t;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, CudaModels, testing::ValuesIn(all_variants()), name_of_variant);

}  // namespace
}  // namespace egmla::test

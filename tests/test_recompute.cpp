// train.recompute: the same losses and gradients, to the last bit, in less memory.
#include <gtest/gtest.h>

#include <set>

#include "model_variants.h"
#include "op_case.h"

namespace egmla::test {
namespace {

class RecomputeModels : public testing::TestWithParam<Variant> {};

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

struct StepResult {
  std::vector<double> losses, gradients;
  bool operator==(const StepResult&) const = default;
};

// Two micro-batches of masked documents.
StepResult step(Transformer& model, Recompute recompute) {
  Context& context = model.parameters().context();
  model.set_recompute(recompute);
  model.parameters().begin_step();
  StepResult out;
  for (uint64_t half = 0; half < 2; ++half) {
    const std::vector<int32_t> ids = batch_ids(model.config(), 2, 17, 3 + half);
    Tape tape(context);
    const ops::HeadLoss result = model.loss(tape, make_batch(context, ids, 2, 17, 6), 1.0 / 68);
    tape.backward(result.loss);
    const std::vector<double> tokens = doubles_of(result.per_token);
    out.losses.insert(out.losses.end(), tokens.begin(), tokens.end());
  }
  model.parameters().end_step();
  out.gradients = doubles_of(model.parameters().grad());
  return out;
}

TEST_P(RecomputeModels, KeepsEveryBit) {
  Context context;
  for (DType dtype : {DType::f64, DType::f32}) {
    auto model = build(GetParam().model, context, dtype);
    const StepResult kept = step(*model, Recompute::none);
    EXPECT_TRUE(step(*model, Recompute::light) == kept) << "light, " << name_of(dtype);
    EXPECT_TRUE(step(*model, Recompute::full) == kept) << "full, " << name_of(dtype);
  }
}

// Peak of a step beyond weights, in a shape whose activations outweigh its logits.
int64_t step_bytes(const ModelConfig& config, Context& context, Recompute recompute) {
  Transformer model(config);
  model.set_recompute(recompute);
  model.allocate(context, context.is_cpu() ? DType::f32 : DType::bf16);
  const int64_t held = context.memory().in_use;
  const Batch batch = make_batch(context, batch_ids(config, 2, 32, 6), 2, 32);
  Tape tape(context);
  tape.backward(model.loss(tape, batch, 1.0).loss);
  return context.memory().peak - held;
}

TEST_P(RecomputeModels, EachChoiceTakesLessMemory) {
  ModelConfig config = GetParam().model;
  config.num_hidden_layers = 6;
  for (bool cpu : {true, false}) {
    Context none{PlanContext(cpu)}, light{PlanContext(cpu)}, full{PlanContext(cpu)};
    const int64_t kept = step_bytes(config, none, Recompute::none);
    const int64_t lightly = step_bytes(config, light, Recompute::light);
    EXPECT_LT(lightly, 0.8 * static_cast<double>(kept));
    EXPECT_LT(step_bytes(config, full, Recompute::full), lightly);
  }
}

TEST_P(RecomputeModels, PlannedMemoryIsWhatAStepTakes) {
  for (Recompute recompute : {Recompute::light, Recompute::full}) {
    Context real, plan{PlanContext(true)};
    EXPECT_EQ(step_bytes(GetParam().model, real, recompute), step_bytes(GetParam().model, plan, recompute));
  }
}

TEST_P(RecomputeModels, EveryRecordedOpHasACase) {
  Context context;
  std::set<std::string> covered = {"windows"};  // checked by every case that uses them
  for (const OpCase& op_case : all_cases()) {
    const CaseResult result = evaluate(op_case, draw_values(op_case, 1), context, DType::f32, true);
    covered.insert(result.op_names.begin(), result.op_names.end());
  }
  auto model = build(GetParam().model, context, DType::f32);
  for (Recompute recompute : {Recompute::light, Recompute::full}) {
    model->set_recompute(recompute);
    Tape tape(context);
    model->loss(tape, make_batch(context, batch_ids(GetParam().model, 1, 4, 8), 1, 4), 1.0);
    for (const char* name : tape.op_names()) EXPECT_TRUE(covered.count(name)) << name << " has no op case";
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, RecomputeModels, testing::ValuesIn(all_variants()), name_of_variant);

TEST(Activation, IsComputedAgainOnceAndLetsItsSourceGo) {
  Context context;
  Tensor source = Tensor::from(context, {2}, std::vector<float>{1, 2});
  int runs = 0;
  Activation first([source, &runs] {
    ++runs;
    return source.reshaped({2, 1});
  });
  const Activation second = first;
  EXPECT_EQ(runs, 0);
  EXPECT_EQ(first.get().shape(), (Shape{2, 1}));
  EXPECT_EQ(second.get().view().data, source.view().data);
  EXPECT_EQ(runs, 1);
  // The result alone shares the source's storage now, and only while someone holds the activation.
  first = Activation{};
  EXPECT_FALSE(source.unique());
}

TEST(Activation, AllIsFreedWithTheLastHolder) {
  Context context;
  Activation sum;
  {
    const Tensor source = Tensor::zeros(context, {64}, DType::f32);
    sum = Activation([source] { return Tensor::zeros(source.context(), {16}, DType::f32); });
  }
  EXPECT_EQ(context.memory().in_use, 256);
  sum.get();
  EXPECT_EQ(context.memory().in_use, 64);
  sum = Activation{};
  EXPECT_EQ(context.memory().in_use, 0);
}

// A region of which only some outputs are read, and whose input is a constant.
TEST(Recompute, RunsTheRegionTwiceAndLeavesConstantsAlone) {
  Context context;
  Tape tape(context);
  const Var x = tape.variable(Tensor::from(context, {1, 2}, std::vector<double>{1, 2}));
  const Var still = tape.constant(Tensor::from(context, {1, 2}, std::vector<double>{3, 4}));
  int runs = 0;
  const auto out = ops::recompute({x, still}, [&runs](const std::vector<Var>& in) {
    ++runs;
    EXPECT_EQ(in[1].id, kNoGrad);
    return std::vector<Var>{ops::add(in[0], in[1]), in[0]};
  });
  EXPECT_EQ(runs, 1);
  tape.backward(out[0], Tensor::from(context, {1, 2}, std::vector<double>{5, 6}));
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(doubles_of(tape.grad_of(x)), (std::vector<double>{5, 6}));
}

TEST(Recompute, AnInferenceTapeRunsTheRegionAsItIs) {
  Context context;
  Tape tape(context, Tape::Mode::inference);
  const Var x = tape.constant(Tensor::from(context, {1, 1, 2}, std::vector<double>{1, 2}));
  const auto out = ops::recompute({x}, [&](const std::vector<Var>& in) {
    EXPECT_EQ(in[0].tape, &tape);
    return std::vector<Var>{ops::gelu(in[0])};
  });
  EXPECT_EQ(out[0].tape, &tape);
  EXPECT_TRUE(tape.op_names().empty());
}

}  // namespace
}  // namespace egmla::test

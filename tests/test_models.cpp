// Whole models on the CPU: gradients, causality, learning, decoding, counts.
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "infer/decoder.h"
#include "model_variants.h"
#include "nn/attention_egmla.h"
#include "op_case.h"
#include "optim/adamw.h"

namespace egmla::test {
namespace {

class Models : public testing::TestWithParam<Variant> {};

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

// Directional derivative of the loss along random changes of all parameters at once.
TEST_P(Models, GradientsAgreeWithFiniteDifferences) {
  Context context;
  auto model = build(GetParam().model, context, DType::f64);
  ParameterStore& store = model->parameters();
  const Batch batch = make_batch(context, batch_ids(GetParam().model, 2, 9, 3), 2, 9, 4);
  loss_and_gradients(*model, batch);
  const std::vector<double> gradient = store.grad().to_host<double>(), start = store.master().to_host<double>();
  for (uint64_t trial = 0; trial < 3; ++trial) {
    const std::vector<double> direction = random_values(static_cast<int64_t>(start.size()), 11 + trial, 0);
    const auto loss_at = [&](double distance) {
      double* values = store.master().view().as<double>();
      for (size_t i = 0; i < start.size(); ++i) values[i] = start[i] + distance * direction[i];
      Tape tape(context, Tape::Mode::inference);
      return model->loss(tape, batch, 1.0 / 18).loss.value.to_host<double>().front();
    };
    double slope = 0;
    for (size_t i = 0; i < start.size(); ++i) slope += gradient[i] * direction[i];
    const double h = 2e-5;
    const double numeric = (8 * (loss_at(h) - loss_at(-h)) - (loss_at(2 * h) - loss_at(-2 * h))) / (12 * h);
    EXPECT_NEAR(slope, numeric, 1e-6 * std::max(std::abs(slope), 0.1));
    loss_at(0);
  }
}

TEST_P(Models, FutureTokensNeverChangePastLosses) {
  Context context;
  auto model = build(GetParam().model, context, DType::f64);
  std::vector<int32_t> ids = batch_ids(GetParam().model, 1, 20, 4);
  const std::vector<double> before = token_losses(*model, make_batch(context, ids, 1, 20));
  for (size_t t = 12; t < ids.size(); ++t) ids[t] = (ids[t] + 7) % static_cast<int32_t>(GetParam().model.vocab_size);
  const std::vector<double> after = token_losses(*model, make_batch(context, ids, 1, 20));
  for (size_t t = 0; t < 11; ++t) EXPECT_EQ(before[t], after[t]) << "token " << t;
  EXPECT_NE(before[11], after[11]);  // its target changed
  EXPECT_NE(before[15], after[15]);
}

TEST_P(Models, MaskedDocumentsDoNotSeeEachOther) {
  Context context;
  auto model = build(GetParam().model, context, DType::f64);
  std::vector<int32_t> ids = batch_ids(GetParam().model, 1, 16, 5);
  const std::vector<double> before = token_losses(*model, make_batch(context, ids, 1, 16, 8));
  for (size_t t = 0; t < 8; ++t) ids[t] = (ids[t] + 3) % static_cast<int32_t>(GetParam().model.vocab_size);
  const std::vector<double> after = token_losses(*model, make_batch(context, ids, 1, 16, 8));
  for (size_t t = 8; t < 16; ++t) EXPECT_EQ(before[t], after[t]) << "token " << t;
  EXPECT_NE(before[3], after[3]);
}

TEST_P(Models, LearnsOneBatchByHeart) {
  Context context;
  auto model = build(GetParam().model, context, DType::f32);
  ParameterStore& store = model->parameters();
  AdamWOptimizer optimizer(store, {.lr = 1e-2, .weight_decay = 0}, 1, 0);
  const Batch batch = make_batch(context, batch_ids(GetParam().model, 2, 16, 6), 2, 16);
  double loss = 0;
  for (int64_t step = 1; step <= 150; ++step) {
    loss = loss_and_gradients(*model, batch);
    if (step == 1) {
      EXPECT_NEAR(loss, std::log(61.0), 0.35);
    }
    optimizer.measure_grad_norm();
    optimizer.step(1e-2, step, 1.0);
  }
  EXPECT_LT(loss, 0.05);
}

// Decoding through the cache, in chunks and token by token, gives what the whole sequence gives at once.
TEST_P(Models, DecodingEqualsTheFullForwardPass) {
  Context context;
  auto model = build(GetParam().model, context, DType::f64);
  const std::vector<int32_t> ids = batch_ids(GetParam().model, 1, 12, 7);
  const std::vector<double> losses = token_losses(*model, make_batch(context, ids, 1, 12));
  Decoder decoder(*model, 12);
  std::vector<std::vector<int32_t>> chunks = {{ids.begin(), ids.begin() + 5}};
  for (size_t t = 5; t < 12; ++t) chunks.push_back({ids[t]});
  for (const auto& chunk : chunks) {
    const std::vector<float> logits = decoder.feed(chunk);
    const size_t t = static_cast<size_t>(decoder.length()) - 1;
    double sum = 0;
    for (float logit : logits) sum += std::exp(static_cast<double>(logit));
    EXPECT_NEAR(std::log(sum) - static_cast<double>(logits[static_cast<size_t>(ids[t + 1])]), losses[t], 2e-6)
        << "token " << t;
  }
}

TEST_P(Models, EveryRecordedOpHasACase) {
  Context context;
  std::set<std::string> covered = {"windows"};  // checked by every case that uses them
  for (const OpCase& op_case : all_cases()) {
    const CaseResult result = evaluate(op_case, draw_values(op_case, 1), context, DType::f32, true);
    covered.insert(result.op_names.begin(), result.op_names.end());
  }
  auto model = build(GetParam().model, context, DType::f32);
  Tape tape(context);
  model->loss(tape, make_batch(context, batch_ids(GetParam().model, 1, 4, 8), 1, 4), 1.0);
  for (const char* name : tape.op_names()) EXPECT_TRUE(covered.count(name)) << name << " has no op case";
}

TEST_P(Models, PlannedMemoryIsWhatAStepTakes) {
  const ModelConfig& config = GetParam().model;
  const auto peak = [&](Context& context) {
    Transformer model(config);
    model.allocate(context, DType::f32);
    const int64_t held = context.memory().in_use;
    const Batch batch = make_batch(context, batch_ids(config, 2, 16, 6), 2, 16);
    Tape tape(context);
    tape.backward(model.loss(tape, batch, 1.0).loss);
    return context.memory().peak - held;
  };
  Context real, plan{PlanContext(true)};
  EXPECT_EQ(peak(real), peak(plan));
}

INSTANTIATE_TEST_SUITE_P(Variants, Models, testing::ValuesIn(all_variants()), name_of_variant);

// --- counts and identities ---

ModelConfig paper_model(AttentionType type, int64_t latent) {
  ModelConfig model;
  model.hidden_size = 768;
  model.intermediate_size = 2048;
  model.num_hidden_layers = 12;
  model.num_attention_heads = 12;
  model.vocab_size = 50257;
  model.max_position_embeddings = 2048;
  model.attention.type = type;
  model.attention.kv_lora_rank = latent;
  return model;
}

TEST(ModelCounts, CachedElementsOfThePapersModels) {
  EXPECT_EQ(Transformer(paper_model(AttentionType::mha, 0)).cache_elements(), 18432);
  EXPECT_EQ(Transformer(paper_model(AttentionType::mla, 256)).cache_elements(), 3840);
  EXPECT_EQ(Transformer(paper_model(AttentionType::egmla, 256)).cache_elements(), 3840);
  EXPECT_EQ(Transformer(paper_model(AttentionType::egmla, 64)).cache_elements(), 1536);
  EXPECT_EQ(Transformer(paper_model(AttentionType::egmla, 16)).cache_elements(), 960);
}

TEST(ModelCounts, GateTablesOfThePapersModel) {
  const Transformer model(paper_model(AttentionType::egmla, 256));
  EXPECT_EQ(model.parameters().elements(ParameterGroup::gate_table), 154389504);
  ModelConfig grouped = paper_model(AttentionType::egmla, 256);
  grouped.attention.gate.share_layers = 5;  // groups of 5, 5 and 2 layers
  EXPECT_EQ(Transformer(grouped).parameters().elements(ParameterGroup::gate_table), 154389504 / 4);
}

TEST(ModelIdentities, GateOfWidthZeroIsMla) {
  Context context;
  Variant mla = variant("mla"), gated = mla;
  gated.model.attention.type = AttentionType::egmla;
  gated.model.attention.gate.embed_dim = 0;
  auto a = build(mla.model, context, DType::f32), b = build(gated.model, context, DType::f32);
  const Batch batch = make_batch(context, batch_ids(mla.model, 2, 16, 3), 2, 16);
  EXPECT_EQ(loss_and_gradients(*a, batch), loss_and_gradients(*b, batch));
  EXPECT_EQ(a->parameters().grad().to_host<float>(), b->parameters().grad().to_host<float>());
}

// The norm's input is u * g; were its variance below eps, the output would shrink.
TEST(ModelIdentities, GatedKeysAndValuesHaveUnitVarianceAtInitialisation) {
  for (int64_t latent : {16, 64, 256}) {
    ModelConfig config = paper_model(AttentionType::egmla, latent);
    config.num_hidden_layers = 1;
    config.vocab_size = 500;
    Context context;
    ParameterStore store;
    Gate gate(config, 0, store);
    Parameter* up = store.add({{.path = "up", .rows = 12 * 128, .columns = latent, .init = {.std = 0.02}}});
    store.allocate(context, DType::f32);
    store.initialize(5);
    Tape tape(context, Tape::Mode::inference);
    const auto tokens = ops::make_token_index(context, random_ids(64, 500, 2), 1, 64, false);
    const Tensor c =
        tensor_of(context, {1, 64, latent}, random_values(64 * latent, 3, 0), DType::f32);  // as RMSNorm leaves it
    const auto [k, v] = gate.apply(ops::linear(tape.constant(c), *up), 12, tokens);
    double sum = 0, squares = 0;
    for (const Var& part : {k, v}) {
      const View view = part.view();
      for (int64_t t = 0; t < 64; ++t) {
        for (int64_t h = 0; h < 12; ++h) {
          const float* row = view.as<float>() + t * view.stride(1) + h * view.stride(2);
          for (int64_t i = 0; i < 64; ++i) {
            sum += static_cast<double>(row[i]);
            squares += static_cast<double>(row[i]) * static_cast<double>(row[i]);
          }
        }
      }
    }
    const double count = 64 * 12 * 128;
    EXPECT_NEAR(sum / count, 0.0, 1e-4) << "latent " << latent;
    EXPECT_NEAR(squares / count, 1.0, 5e-3) << "latent " << latent;
  }
}

// Gradients summed over micro-batches are those of the whole batch.
TEST(ModelIdentities, MicroBatchesAddUpToTheBatch) {
  Context context;
  const ModelConfig config = variant("egmla").model;
  auto model = build(config, context, DType::f64);
  const std::vector<int32_t> ids = batch_ids(config, 4, 8, 3);
  loss_and_gradients(*model, make_batch(context, ids, 4, 8));
  const std::vector<double> whole = model->parameters().grad().to_host<double>();
  model->parameters().begin_step();
  for (int64_t half = 0; half < 2; ++half) {
    Tape tape(context);
    const std::vector<int32_t> part(ids.begin() + half * 18, ids.begin() + (half + 1) * 18);
    tape.backward(model->loss(tape, make_batch(context, part, 2, 8), 1.0 / 32).loss);
  }
  model->parameters().end_step();
  EXPECT_LT(relative_error(model->parameters().grad().to_host<double>(), whole), 1e-12);
}

}  // namespace
}  // namespace egmla::test

// Decoding through the cache on the CPU: what is kept, and that it gives what the whole sequence gives at once.
#include <gtest/gtest.h>

#include <cmath>

#include "infer/decoder.h"
#include "lab/inspect.h"
#include "model_variants.h"
#include "op_case.h"

namespace egmla::test {
namespace {

class Decoding : public testing::TestWithParam<Variant> {};

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

std::vector<int32_t> prompt_of(const ModelConfig& model, int64_t length, uint64_t seed) {
  return random_ids(length, model.vocab_size, seed);
}

// Logits after the whole sequence, through the training kernels.
std::vector<double> full_logits(Transformer& model, const std::vector<int32_t>& ids) {
  Context& context = model.parameters().context();
  const int64_t T = static_cast<int64_t>(ids.size());
  DecodeState state = model.make_decode_state(1, T);
  Batch batch;
  batch.tokens = ops::make_token_index(context, ids, 1, T, false);
  batch.all_tokens = batch.tokens;
  return doubles_of(model.next_logits(batch, state.layers));
}

std::vector<double> logits_of(BatchDecoder& decoder, int64_t sequence) {
  const View row = decoder.logits().rows(sequence, 1);
  if (row.dtype == DType::f64) return {row.as<double>(), row.as<double>() + row.elements()};
  return {row.as<float>(), row.as<float>() + row.elements()};
}

double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

int32_t largest_of(const std::vector<double>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Greedy decoding token for token beside the full forward pass, gates folded or not.
void expect_greedy_equals_full(const ModelConfig& config, DType dtype, GateFolding folding, double tolerance) {
  Context context;
  auto model = build(config, context, dtype);
  model->set_gate_folding(folding);
  std::vector<int32_t> ids = prompt_of(config, 7, 3);
  BatchDecoder decoder(*model, 1, 32);
  EXPECT_EQ(decoder.folded(), folding == GateFolding::always && model->folded_features() > 0);
  decoder.prefill(0, ids);
  while (decoder.length(0) < 32) {
    const std::vector<double> full = full_logits(*model, ids);
    EXPECT_LT(largest_difference(logits_of(decoder, 0), full), tolerance) << "after " << ids.size() << " tokens";
    const int32_t next = decoder.most_probable().front();
    ASSERT_EQ(next, largest_of(full)) << "after " << ids.size() << " tokens";
    ids.push_back(next);
    decoder.step();
  }
}

TEST_P(Decoding, GreedyInDoubleEqualsTheFullForwardPass) {
  expect_greedy_equals_full(GetParam().model, DType::f64, GateFolding::never, 1e-11);
}

TEST_P(Decoding, GreedyInFloatEqualsTheFullForwardPass) {
  expect_greedy_equals_full(GetParam().model, DType::f32, GateFolding::never, 1e-5);
}

TEST_P(Decoding, FoldedGatesChangeNothing) {
  expect_greedy_equals_full(GetParam().model, DType::f64, GateFolding::always, 1e-11);
}

TEST_P(Decoding, PrefillInOneGoEqualsChunksAndSingleTokens) {
  Context context;
  auto model = build(GetParam().model, context, DType::f64);
  const std::vector<int32_t> ids = prompt_of(GetParam().model, 13, 5);
  BatchDecoder whole(*model, 1, 16), chunks(*model, 1, 16), single(*model, 1, 16);
  whole.prefill(0, ids);
  chunks.prefill(0, {ids.begin(), ids.begin() + 4});
  chunks.prefill(0, {ids.begin() + 4, ids.begin() + 11});
  chunks.step({ids[11]});
  chunks.prefill(0, {ids[12]});
  for (const int32_t id : ids) single.step({id});
  EXPECT_LT(largest_difference(logits_of(chunks, 0), logits_of(whole, 0)), 1e-11);
  EXPECT_LT(largest_difference(logits_of(single, 0), logits_of(whole, 0)), 1e-11);
  for (BatchDecoder* decoder : {&whole, &chunks, &single}) decoder->step({ids[0]});
  EXPECT_LT(largest_difference(logits_of(chunks, 0), logits_of(whole, 0)), 1e-11);
  EXPECT_LT(largest_difference(logits_of(single, 0), logits_of(whole, 0)), 1e-11);
}

// Sequences of 1, 5 and 12 tokens side by side give the bits that each gives alone.
TEST_P(Decoding, SequencesOfUnequalLengthsEqualEachAlone) {
  Context context;
  auto model = build(GetParam().model, context, DType::f32);
  const std::vector<std::vector<int32_t>> prompts = {
      prompt_of(GetParam().model, 1, 1), prompt_of(GetParam().model, 5, 2), prompt_of(GetParam().model, 12, 3)};
  BatchDecoder batch(*model, 3, 24);
  for (int64_t b = 0; b < 3; ++b) batch.prefill(b, prompts[static_cast<size_t>(b)]);
  for (int step = 0; step < 8; ++step) batch.step();
  for (int64_t b = 0; b < 3; ++b) {
    BatchDecoder alone(*model, 1, 24);
    alone.prefill(0, prompts[static_cast<size_t>(b)]);
    for (int step = 0; step < 8; ++step) alone.step();
    EXPECT_EQ(batch.length(b), alone.length(0));
    EXPECT_EQ(logits_of(batch, b), logits_of(alone, 0)) << "sequence " << b;
  }
}

// The cache holds what `inspect` counts, and statistics beside it.
TEST_P(Decoding, CacheHoldsWhatInspectCounts) {
  Context context;
  const ModelConfig& model_config = GetParam().model;
  auto model = build(model_config, context, DType::f32);
  Config config;
  config.model = model_config;
  config.data.sequence_length = 16;
  config.train.micro_batch_size = 1;
  config.run.device = DeviceChoice::cpu;
  const Inspection found = inspect(config);
  const DecodeState state = model->make_decode_state(3, 20);
  int64_t rows = 0, statistics = 0;
  for (const LayerCache& layer : state.layers) {
    rows += static_cast<int64_t>(layer.rows.view().bytes());
    for (const Tensor& tensor : layer.mean) statistics += static_cast<int64_t>(tensor.view().bytes());
    for (const Tensor& tensor : layer.rstd) statistics += static_cast<int64_t>(tensor.view().bytes());
  }
  EXPECT_EQ(rows, 3 * 20 * found.cache_bytes);
  EXPECT_EQ(statistics, 3 * 20 * found.cache_statistics_bytes);
  const int64_t ids = model_config.gated() ? 3 * 20 * 4 : 0;
  EXPECT_EQ(state.cache_bytes(), rows + statistics + ids);
}

INSTANTIATE_TEST_SUITE_P(Variants, Decoding, testing::ValuesIn(all_variants()), name_of_variant);

TEST(DecodingCounts, StatisticsOfTheGatesNorms) {
  const auto statistics = [](const std::string& name) { return Transformer(variant(name).model).cache_statistics(); };
  EXPECT_EQ(statistics("mla"), 0);
  EXPECT_EQ(statistics("egmla"), 2 * 2);
  EXPECT_EQ(statistics("egmla_separate_sigmoid"), 2 * 4);
  EXPECT_EQ(statistics("egmla_per_head_tanh"), 2 * 2 * 4);
  EXPECT_EQ(statistics("egmla_latent"), 0);
}

TEST(Generating, SeveralPromptsDrawWhatEachDrawsAlone) {
  Context context;
  const ModelConfig config = variant("egmla").model;
  auto model = build(config, context, DType::f32);
  const std::vector<std::vector<int32_t>> prompts = {prompt_of(config, 3, 1), prompt_of(config, 20, 2),
                                                     prompt_of(config, 1, 3)};
  for (const double temperature : {0.0, 1.0}) {
    GenerationOptions options;
    options.max_new_tokens = 50;  // positions end at 64: the second prompt stops before that
    options.sampling.temperature = temperature;
    options.sampling.seed = 5;
    std::vector<std::vector<int32_t>> streamed(prompts.size());
    options.on_prompt_token = [&](size_t prompt, int32_t id) { streamed[prompt].push_back(id); };
    const auto together = generate_batch(*model, prompts, options);
    EXPECT_EQ(streamed, together);
    options.on_prompt_token = {};
    for (size_t i = 0; i < prompts.size(); ++i) EXPECT_EQ(together[i], generate(*model, prompts[i], options)) << i;
    EXPECT_EQ(together[0].size(), 50u);
    EXPECT_EQ(together[1].size(), 45u);  // the last one drawn has no position left
  }
}

TEST(Generating, EndOfTextStopsOneSequenceAlone) {
  Context context;
  const ModelConfig config = variant("mha").model;
  auto model = build(config, context, DType::f32);
  const std::vector<std::vector<int32_t>> prompts = {prompt_of(config, 4, 1), prompt_of(config, 6, 2)};
  GenerationOptions options;
  options.max_new_tokens = 20;
  options.sampling.seed = 9;
  const auto all = generate_batch(*model, prompts, options);
  options.end_of_text = all[0][5];
  const auto stopped = generate_batch(*model, prompts, options);
  const auto until = [&](const std::vector<int32_t>& ids) {
    return std::vector<int32_t>(ids.begin(), std::find(ids.begin(), ids.end(), options.end_of_text));
  };
  EXPECT_EQ(stopped[0], until(all[0]));
  EXPECT_EQ(stopped[1], until(all[1]));
  EXPECT_LE(stopped[0].size(), 5u);
}

TEST(Generating, RefusesWhatDoesNotFit) {
  Context context;
  const ModelConfig config = variant("mla").model;
  auto model = build(config, context, DType::f32);
  EXPECT_THROW(generate(*model, {}, {}), Error);
  EXPECT_THROW(generate(*model, std::vector<int32_t>(64, 1), {}), Error);
  EXPECT_THROW(generate(*model, {61}, {}), Error);
  EXPECT_THROW(BatchDecoder(*model, 1, 65), Error);
  BatchDecoder decoder(*model, 2, 8);
  EXPECT_THROW(decoder.step({1}), Error);
  EXPECT_THROW(decoder.prefill(0, std::vector<int32_t>(9, 1)), Error);
}

TEST(ParameterCopies, InferenceGoesOnWithoutTrainingCopies) {
  Context context;
  auto model = build(variant("egmla").model, context, DType::f32);
  const std::vector<int32_t> prompt = prompt_of(model->config(), 5, 1);
  GenerationOptions options;
  options.max_new_tokens = 8;
  const auto before = generate(*model, prompt, options);
  const int64_t held = context.memory().in_use;
  model->parameters().drop_training_copies();
  EXPECT_LE(context.memory().in_use, held - 4 * model->parameters().elements());
  EXPECT_EQ(generate(*model, prompt, options), before);
}

}  // namespace
}  // namespace egmla::test

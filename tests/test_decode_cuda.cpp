// Decoding on CUDA: each kernel beside its twin on the CPU in double, over sizes that take the tensor cores and sizes
// that do not, and whole models beside their full forward pass.
#include <gtest/gtest.h>

#include <cmath>

#include "infer/decoder.h"
#include "kernels/decode_attention.h"
#include "kernels/decode_cache.h"
#include "kernels/decode_gated.h"
#include "kernels/decode_heads.h"
#include "kernels/decode_linear.h"
#include "model_variants.h"
#include "op_case.h"
#include "two_sides.h"

namespace egmla {
namespace {

using namespace testing_sides;

class DecodeKernelsCuda : public KernelsCuda {};

struct LinearCase {
  int64_t M, N, K;
  bool delta, norm, bias, swiglu, ids;
};

TEST_F(DecodeKernelsCuda, Linear) {
  const std::vector<LinearCase> cases = {
      {1, 16, 32, false, false, false, false, false},    {1, 1000, 1792, true, true, false, false, false},
      {3, 40, 256, true, true, true, true, false},       {8, 1216, 896, true, true, false, true, false},
      {8, 448, 4864, false, false, false, false, false}, {2, 33, 72, false, true, true, false, false},
      {5, 300, 256, false, false, false, false, true},   {4, 64, 64, false, true, false, true, true},
      {7, 13, 1023, true, true, false, false, false}};
  for (const LinearCase& c : cases) {
    for_layouts([&](DType dtype, int pad, int shift) {
      SCOPED_TRACE(fmt::format("M {} N {} K {}", c.M, c.N, c.K));
      compare_sides(cuda(), dtype, [&](Side& side) {
        const Spec spec{.pad = pad, .shift = shift};
        std::vector<int32_t> ids;
        for (int64_t m = 0; m < c.M; ++m) ids.push_back(static_cast<int32_t>((m * 7 + 3) % 11));
        launch(side.context(),
               DecodeLinear{.out = side.out("out", {c.M, c.N}, spec),
                            .sum = c.delta || c.ids ? side.out("sum", {c.M, c.K}, spec) : View{},
                            .x = side.in("x", {c.ids ? 11 : c.M, c.K}, spec),
                            .ids = c.ids ? side.ints({c.M}, ids) : View{},
                            .delta = c.delta ? side.in("delta", {c.M, c.K}, spec) : View{},
                            .norm_weight = c.norm ? side.in("norm_weight", {c.K}) : View{},
                            .norm_bias = c.bias ? side.in("norm_bias", {c.K}) : View{},
                            .weight = side.in("weight", {c.swiglu ? 2 * c.N : c.N, c.K}, {.pad = pad, .scale = 0.1}),
                            .swiglu = c.swiglu});
      });
    });
  }
}

struct AttentionCase {
  int64_t H, Hkv, dk, dv, splits;
  bool shared;  // values are the keys' first columns (MLA)
};

TEST_F(DecodeKernelsCuda, Attention) {
  const int64_t B = 4, capacity = 300;
  const std::vector<int32_t> positions = {0, 63, 64, 299};
  const std::vector<AttentionCase> cases = {
      {4, 4, 128, 128, 3, false}, {8, 2, 64, 64, 1, false},  {40, 2, 128, 128, 5, false}, {14, 1, 320, 256, 4, true},
      {3, 1, 80, 16, 2, true},    {5, 1, 576, 512, 2, true}, {4, 1, 24, 16, 2, true},     {4, 2, 12, 20, 2, false}};
  for (const AttentionCase& c : cases) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const int64_t pad : {0, 8, 3}) {
        SCOPED_TRACE(fmt::format("{} H {} Hkv {} dk {} dv {} pad {}", name_of(dtype), c.H, c.Hkv, c.dk, c.dv, pad));
        compare_sides(cuda(), dtype, [&](Side& side) {
          const View keys = side.in("k", {B, capacity, c.Hkv, c.dk}, {.pad = pad});
          const View values = c.shared ? keys.columns(0, c.dv) : side.in("v", {B, capacity, c.Hkv, c.dv}, {.pad = pad});
          const View partials = side.workspace({B, c.H, c.splits, c.dv + 2});
          launch(side.context(), DecodeAttention{.partials = partials,
                                                 .q = side.in("q", {B, c.H, c.dk}),
                                                 .k = keys,
                                                 .v = values,
                                                 .positions = side.ints({B}, positions),
                                                 .scale = 1 / std::sqrt(static_cast<double>(c.dk))});
          launch(side.context(),
                 DecodeCombine{.out = side.out("out", {B, c.H, c.dv}, {.pad = pad}), .partials = partials});
        });
      }
    }
  }
}

struct GatedCase {
  int64_t H, dn, dr, dv, dc, de, splits;
  bool gate_k, gate_v, table, norm, per_head;
  GateActivation activation = GateActivation::none;
  double offset = 0;
};

GateSide gate_side(Side& side, const GatedCase& c, const std::string& name, int64_t B, int64_t capacity, bool value) {
  const int64_t w = value ? c.dv : c.dn, V = 50, G = c.per_head ? c.H : 1;
  const auto in = [&](const char* what, const Shape& shape, const Spec& spec) {
    return side.in((name + what).c_str(), shape, spec);
  };
  GateSide out{.up = in(".up", {c.H, w, c.dc}, {.scale = 0.1})};
  if (!(value ? c.gate_v : c.gate_k)) return out;
  if (c.table) {
    out.table = in(".table", {V, c.H, w}, {});
  } else {
    out.gate = in(".gate", {c.H, w, c.de}, {.scale = 0.1});
  }
  if (!c.norm) return out;
  const Spec master{.kind = Kind::master, .scale = 0.3}, positive{.kind = Kind::master, .positive = true};
  out.mean = in(".mean", {B, capacity, G}, master);
  out.rstd = in(".rstd", {B, capacity, G}, positive);
  out.weight = in(".weight", {c.H, w}, {.pad = 5});
  out.bias = in(".bias", {c.H, w}, {.pad = 5});
  return out;
}

TEST_F(DecodeKernelsCuda, GatedAttention) {
  const int64_t B = 4, capacity = 400;
  const std::vector<int32_t> positions = {0, 127, 128, 399};
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < B * capacity; ++i) ids.push_back(static_cast<int32_t>(i * 31 % 50));
  const auto tanh = GateActivation::tanh, silu = GateActivation::silu, none = GateActivation::none;
  const std::vector<GatedCase> cases = {
      {3, 128, 64, 128, 256, 256, 3, true, true, false, true, false},
      {3, 128, 64, 128, 256, 256, 2, true, true, true, true, false},
      {2, 64, 64, 64, 64, 256, 1, true, true, false, true, false, none, 1.0},
      {2, 64, 32, 64, 64, 64, 2, true, true, true, true, true, silu, 0.5},
      {2, 96, 64, 120, 16, 256, 2, true, true, false, false, false, tanh},
      {2, 64, 64, 128, 256, 128, 2, true, false, false, true, true},
      {2, 128, 16, 64, 128, 64, 2, false, true, true, true, false},
      {2, 128, 64, 128, 512, 256, 2, true, true, true, true, false},
      {4, 8, 4, 12, 16, 16, 2, true, true, false, true, false, GateActivation::sigmoid},
      {4, 8, 4, 12, 16, 16, 3, true, true, true, false, false}};
  for (const GatedCase& c : cases) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(fmt::format("{} H {} d_n {} d_v {} d_c {} d_e {} table {}", name_of(dtype), c.H, c.dn, c.dv, c.dc,
                               c.de, c.table));
      compare_sides(cuda(), dtype, [&](Side& side) {
        const View partials = side.workspace({B, c.H, c.splits, c.dv + 2});
        launch(side.context(), GatedDecodeAttention{.partials = partials,
                                                    .scores = side.workspace({B, c.H, capacity}),
                                                    .q = side.in("q", {B, c.H, c.dn + c.dr}, {.scale = 0.5}),
                                                    .cache = side.in("cache", {B, capacity, c.dc + c.dr}),
                                                    .ids = side.ints({B, capacity}, ids),
                                                    .positions = side.ints({B}, positions),
                                                    .embedding = side.in("embedding", {50, c.de}),
                                                    .k = gate_side(side, c, "k", B, capacity, false),
                                                    .v = gate_side(side, c, "v", B, capacity, true),
                                                    .scale = 1 / std::sqrt(static_cast<double>(c.dn + c.dr)),
                                                    .offset = c.offset,
                                                    .activation = c.activation});
        launch(side.context(), DecodeCombine{.out = side.out("out", {B, c.H, c.dv}), .partials = partials});
      });
    }
  }
}

TEST_F(DecodeKernelsCuda, GateStatistics) {
  for (const bool per_head : {false, true}) {
    for (const bool table : {false, true}) {
      for_layouts([&](DType dtype, int pad, int) {
        compare_sides(cuda(), dtype, [&](Side& side) {
          const int64_t B = 3, H = 14, w = 256, G = per_head ? H : 1;
          launch(side.context(),
                 GateStatistics{.mean = side.in_out("mean", {B, 9, G}, {.kind = Kind::master}),
                                .rstd = side.in_out("rstd", {B, 9, G}, {.kind = Kind::master, .positive = true}),
                                .u = side.in("u", {B, H, w}, {.pad = pad}),
                                .g = table ? View{} : side.in("g", {B, H, w}, {.pad = pad}),
                                .table = table ? side.in("g", {20, H, w}, {.pad = pad}) : View{},
                                .tokens = side.ints({B}, {4, 19, 0}),
                                .positions = side.ints({B}, {8, 0, 3}),
                                .offset = 0.5,
                                .activation = per_head ? GateActivation::silu : GateActivation::none});
        });
      });
    }
  }
}

TEST_F(DecodeKernelsCuda, AppendRotatesAndNormalises) {
  for (const bool latent : {false, true}) {
    for (const bool interleave : {false, true}) {
      for_layouts([&](DType dtype, int pad, int shift) {
        compare_sides(cuda(), dtype, [&](Side& side) {
          const int64_t B = 3, H = 5, d = 64, n = latent ? 256 : 0, heads = latent ? 1 : 2,
                        w = n + heads * d + (latent ? 0 : 2 * d);
          const Spec spec{.pad = pad, .shift = shift}, master{.kind = Kind::master};
          launch(side.context(), DecodeAppend{.cache = side.in_out("cache", {B, 7, w}, spec),
                                              .q_out = side.out("q_out", {B, H, d}, spec),
                                              .q = side.in("q", {B, H, d}, spec),
                                              .rows = side.in("rows", {B, w}, spec),
                                              .norm_weight = latent ? side.in("norm", {n}) : View{},
                                              .cos = side.in("cos", {7, d / 2}, master),
                                              .sin = side.in("sin", {7, d / 2}, master),
                                              .positions = side.ints({B}, {6, 0, 3}),
                                              .key_begin = n,
                                              .key_heads = heads,
                                              .interleave = interleave});
        });
      });
    }
  }
}

TEST_F(DecodeKernelsCuda, HeadLinear) {
  for (const bool transpose : {false, true}) {
    for_layouts([&](DType dtype, int pad, int shift) {
      for (const int64_t B : {1, 11}) {
        compare_sides(cuda(), dtype, [&](Side& side) {
          const int64_t H = 3, n = transpose ? 257 : 130, k = transpose ? 130 : 257;
          launch(side.context(), HeadLinear{.out = side.out("out", {B, H, n}, {.pad = pad, .shift = shift}),
                                            .x = side.in("x", {B, H, k}, {.pad = pad, .shift = shift}),
                                            .weight = side.in("weight", {H, transpose ? k : n, transpose ? n : k},
                                                              {.pad = pad, .scale = 0.1}),
                                            .transpose = transpose});
        });
      }
    });
  }
}

TEST_F(DecodeKernelsCuda, GreedyTakesTheFirstOfTheLargest) {
  const int64_t V = 5003;
  std::vector<float> logits(3 * V, -1.0f);
  logits[7] = logits[4000] = 2.0f;
  logits[V + V - 1] = 0.5f;
  const Tensor device = Tensor::from(cuda(), {3, V}, logits);
  const Tensor tokens = Tensor::from(cuda(), {3}, std::vector<int32_t>{0, 0, 0});
  const Tensor positions = Tensor::from(cuda(), {3}, std::vector<int32_t>{0, 8, 9});
  launch(cuda(),
         GreedyStep{.tokens = tokens.view(), .positions = positions.view(), .logits = device.view(), .capacity = 10});
  EXPECT_EQ(tokens.to_host<int32_t>(), (std::vector<int32_t>{7, static_cast<int32_t>(V - 1), 0}));
  EXPECT_EQ(positions.to_host<int32_t>(), (std::vector<int32_t>{1, 9, 9}));
}

// ---- whole models ----

using namespace test;

class DecodingCuda : public testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device";
  }
  static Context& cuda() {
    static Context context(CudaDevice{0});
    return context;
  }
};

std::string name_of_variant(const testing::TestParamInfo<Variant>& info) {
  return info.param.name;
}

std::vector<float> full_logits(Transformer& model, const std::vector<int32_t>& ids) {
  Context& context = model.parameters().context();
  DecodeState state = model.make_decode_state(1, static_cast<int64_t>(ids.size()));
  Batch batch;
  batch.tokens = ops::make_token_index(context, ids, 1, static_cast<int64_t>(ids.size()), false);
  batch.all_tokens = batch.tokens;
  const std::vector<double> values = doubles_of(model.next_logits(batch, state.layers));
  return {values.begin(), values.end()};
}

// Greedy decoding (the third step on replays a graph) beside the full forward pass: logits within `tolerance`, and the
// same token wherever the full pass decides by more than that.
void expect_greedy_equals_full(Transformer& model, int64_t sequences, int64_t length, float tolerance) {
  BatchDecoder decoder(model, sequences, length);
  std::vector<std::vector<int32_t>> ids;
  for (int64_t b = 0; b < sequences; ++b) {
    ids.push_back(random_ids(3 + 2 * (b % 5), model.config().vocab_size, static_cast<uint64_t>(b)));
    decoder.prefill(b, ids.back());
  }
  for (int step = 0; step < 12; ++step) {
    const std::vector<int32_t> next = decoder.most_probable();
    for (int64_t b = 0; b < sequences; b += std::max<int64_t>(1, sequences - 1)) {
      const auto i = static_cast<size_t>(b);
      const std::vector<float> full = full_logits(model, ids[i]), found = decoder.logits(b);
      for (size_t v = 0; v < full.size(); ++v)
        ASSERT_NEAR(found[v], full[v], tolerance) << "sequence " << b << ", step " << step << ", token " << v;
      const auto best = std::max_element(full.begin(), full.end());
      EXPECT_LE(*best - full[static_cast<size_t>(next[i])], 2 * tolerance);
      if (tolerance < 1e-3f) {
        EXPECT_EQ(next[i], static_cast<int32_t>(best - full.begin())) << "step " << step;
      }
    }
    for (size_t i = 0; i < ids.size(); ++i) ids[i].push_back(next[i]);
    decoder.step();
  }
}

TEST_P(DecodingCuda, GreedyInFloatEqualsTheFullForwardPass) {
  auto model = build(GetParam().model, cuda(), DType::f32);
  for (const GateFolding folding : {GateFolding::never, GateFolding::always}) {
    model->set_gate_folding(folding);
    expect_greedy_equals_full(*model, 1, 32, 2e-5f);
    expect_greedy_equals_full(*model, 5, 32, 2e-5f);
    expect_greedy_equals_full(*model, 11, 32, 2e-5f);
  }
}

TEST_P(DecodingCuda, GreedyInFloatGivesTheCpusTokens) {
  Context host;
  auto a = build(GetParam().model, host, DType::f32), b = build(GetParam().model, cuda(), DType::f32);
  GenerationOptions options;
  options.max_new_tokens = 24;
  options.sampling.temperature = 0;
  const std::vector<std::vector<int32_t>> prompts = {random_ids(4, 61, 1), random_ids(9, 61, 2)};
  EXPECT_EQ(generate_batch(*a, prompts, options), generate_batch(*b, prompts, options));
}

// The same variant at widths that take the tensor cores.
TEST_P(DecodingCuda, Bf16FollowsTheFullForwardPass) {
  ModelConfig config = GetParam().model;
  config.hidden_size = 256;
  config.intermediate_size = 512;
  config.vocab_size = 512;
  config.attention.head_dim = 64;
  config.attention.kv_lora_rank = 64;
  config.attention.qk_nope_head_dim = 64;
  config.attention.qk_rope_head_dim = 32;
  config.attention.v_head_dim = 128;
  config.attention.gate.embed_dim = 64;
  auto model = build(config, cuda(), DType::bf16);
  for (const GateFolding folding : {GateFolding::never, GateFolding::always}) {
    model->set_gate_folding(folding);
    expect_greedy_equals_full(*model, 1, 32, 0.06f);
    expect_greedy_equals_full(*model, 11, 32, 0.06f);
  }
}

TEST_P(DecodingCuda, RepeatsBitForBit) {
  auto model = build(GetParam().model, cuda(), DType::bf16);
  const auto run = [&](int64_t sequences) {
    BatchDecoder decoder(*model, sequences, 40);
    for (int64_t b = 0; b < sequences; ++b) decoder.prefill(b, random_ids(5 + 12 * b, 61, static_cast<uint64_t>(b)));
    std::vector<float> all;
    for (int step = 0; step < 10; ++step) {
      decoder.step();
      for (int64_t b = 0; b < sequences; ++b) {
        const std::vector<float> logits = decoder.logits(b);
        all.insert(all.end(), logits.begin(), logits.end());
      }
    }
    return all;
  };
  for (const int64_t sequences : {1, 2}) EXPECT_EQ(run(sequences), run(sequences));
}

INSTANTIATE_TEST_SUITE_P(Variants, DecodingCuda, testing::ValuesIn(all_variants()), name_of_variant);

}  // namespace
}  // namespace egmla

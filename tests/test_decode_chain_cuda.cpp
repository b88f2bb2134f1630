// A decoding step's chain on CUDA beside the same kernels one by one on the CPU, in double: rows that the chain's
// kernel takes and rows that it leaves to others.
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/decode_chain.h"
#include "two_sides.h"

namespace egmla {
namespace {

using namespace testing_sides;

class DecodeChainCuda : public KernelsCuda {};

// A layer's products behind attention and the next layer's first one: each reads what those before it wrote.
struct ChainCase {
  int64_t M, D, F, N;
  bool bias;
};

TEST_F(DecodeChainCuda, ProductsRunInTheirOrder) {
  const std::vector<ChainCase> cases = {{1, 384, 1200, 1160, false}, {1, 64, 8192, 50, true},
                                        {1, 64, 257, 72, false},     {1, 64, 72, 40, true},
                                        {1, 2304, 40, 96, false},    {3, 128, 256, 384, false}};
  for (const ChainCase& c : cases) {
    for_layouts([&](DType dtype, int pad, int shift) {
      SCOPED_TRACE(fmt::format("M {} D {} F {} N {}", c.M, c.D, c.F, c.N));
      const Tensor turn = Tensor::zeros(cuda(), {1}, DType::i32);
      for (int time = 0; time < 2; ++time) {
        compare_sides(cuda(), dtype, [&](Side& side) {
          const Spec spec{.pad = pad, .shift = shift}, weight{.pad = pad, .scale = 0.05};
          const View out = side.out("out", {c.M, c.D}, spec), hidden = side.out("hidden", {c.M, c.F}, spec),
                     down = side.out("down", {c.M, c.D}, spec), sum = side.out("sum", {c.M, c.D}, spec);
          std::vector<ChainPart> chain;
          chain.push_back(DecodeLinear{
              .out = out, .x = side.in("mixed", {c.M, c.D}, spec), .weight = side.in("w1", {c.D, c.D}, weight)});
          chain.push_back(DecodeLinear{.out = hidden,
                                       .sum = sum,
                                       .x = side.in("x", {c.M, c.D}, spec),
                                       .delta = out,
                                       .norm_weight = side.in("n1", {c.D}),
                                       .norm_bias = c.bias ? side.in("b1", {c.D}) : View{},
                                       .weight = side.in("w2", {2 * c.F, c.D}, weight),
                                       .swiglu = true});
          chain.push_back(DecodeLinear{.out = down, .x = hidden, .weight = side.in("w3", {c.D, c.F}, weight)});
          const View next = side.out("next", {c.M, c.N}, spec);
          chain.push_back(DecodeLinear{.out = next,
                                       .sum = side.out("next_sum", {c.M, c.D}, spec),
                                       .x = sum,
                                       .delta = down,
                                       .norm_weight = side.in("n2", {c.D}),
                                       .weight = side.in("w4", {c.N, c.D}, weight)});
          chain.push_back(DecodeLinear{.out = side.out("latent", {c.M, 200}, spec),
                                       .x = next.columns(8, 24),
                                       .norm_weight = side.in("n3", {24}),
                                       .weight = side.in("w5", {200, 24}, weight)});
          launch_chain(side.context(), chain, turn.view());
        });
      }
    });
  }
}

struct AttendCase {
  int64_t H, Hkv, dn, dr, dv, dc, splits;  // dc 0: MHA and GQA, of width dv
  bool interleave, norm, alone;            // alone: no product reads the result
};

// A projection, attention, and a product on its result, a chain where bf16 rows are aligned.
TEST_F(DecodeChainCuda, Attention) {
  const std::vector<AttendCase> cases = {
      {14, 14, 0, 0, 128, 0, 9, false, false, false}, {8, 2, 0, 0, 64, 0, 5, true, false, false},
      {6, 6, 0, 0, 96, 0, 3, false, false, true},     {150, 150, 0, 0, 16, 0, 1, false, false, false},
      {4, 4, 0, 0, 40, 0, 2, false, false, false},    {14, 1, 128, 64, 128, 256, 9, true, true, false},
      {3, 1, 24, 16, 40, 72, 2, false, true, false},  {5, 1, 64, 32, 128, 64, 26, false, false, true},
      {4, 1, 64, 32, 64, 512, 3, false, true, false}};
  const int64_t capacity = 1100, D = 64;
  for (const AttendCase& c : cases) {
    for (const int32_t position : {0, 1, 70, 1099}) {
      for (const DType dtype : {DType::f32, DType::bf16}) {
        SCOPED_TRACE(
            fmt::format("{} H {} Hkv {} d_v {} d_c {} position {}", name_of(dtype), c.H, c.Hkv, c.dv, c.dc, position));
        const Tensor turn = Tensor::zeros(cuda(), {1}, DType::i32);
        compare_sides(cuda(), dtype, [&](Side& side) {
          const bool latent = c.dc > 0;
          const int64_t query = latent ? c.H * (c.dn + c.dr) : c.H * c.dv, rope = latent ? c.dr : c.dv;
          const int64_t row = latent ? c.dc + c.dr : 2 * c.Hkv * c.dv, dk = latent ? row : c.dv,
                        width = latent ? c.dc : c.dv;
          const View positions = side.ints({1}, {position});
          const View down = side.workspace({1, query + row}, Kind::data), newest = down.columns(query, row);
          const View cache = side.in_out("cache", {1, capacity, row}, {});
          const View q = down.columns(0, query).split_heads(c.H);
          const View q_latent = side.workspace({1, c.H, row}, Kind::data),
                     mixed = side.workspace({1, c.H, width}, Kind::data);
          const Shape result{1, c.H, c.dv};
          const View out = c.alone ? side.out("out", result) : side.workspace(result, Kind::data),
                     partials = side.workspace({1, c.H, c.splits, width + 2});
          const View up = latent ? side.in("up", {c.H, c.dn + c.dv, c.dc}, {.scale = 0.1}) : View{};
          const View keys = latent ? cache.split_heads(1) : cache.columns(0, row / 2).split_heads(c.Hkv);
          const Spec master{.kind = Kind::master};
          DecodeAttend attend{
              .append = {.cache = cache,
                         .q_out = latent ? q_latent.columns(c.dc, c.dr) : q,
                         .q = latent ? q.columns(c.dn, c.dr) : q,
                         .rows = newest,
                         .norm_weight = latent && c.norm ? side.in("norm", {c.dc}) : View{},
                         .cos = side.in("cos", {capacity, rope / 2}, master),
                         .sin = side.in("sin", {capacity, rope / 2}, master),
                         .positions = positions,
                         .key_begin = latent ? c.dc : 0,
                         .key_heads = c.Hkv,
                         .interleave = c.interleave},
              .attention = {.partials = partials,
                            .q = latent ? q_latent : q,
                            .k = keys,
                            .v = latent ? keys.columns(0, c.dc) : cache.columns(row / 2, row / 2).split_heads(c.Hkv),
                            .positions = positions,
                            .scale = 1 / std::sqrt(static_cast<double>(dk))},
              .combine = {.out = latent ? mixed : out, .partials = partials}};
          if (latent) {
            attend.absorb = {.out = q_latent.columns(0, c.dc),
                             .x = q.columns(0, c.dn),
                             .weight = up.middle(0, c.dn),
                             .transpose = true};
            attend.expand = {.out = out, .x = mixed, .weight = up.middle(c.dn, c.dv)};
          }
          std::vector<ChainPart> chain = {
              DecodeLinear{
                  .out = down, .x = side.in("x", {1, D}), .weight = side.in("w", {query + row, D}, {.scale = 0.1})},
              attend};
          if (!c.alone)
            chain.push_back(DecodeLinear{.out = side.out("y", {1, D}),
                                         .x = make_view(out.data, {1, c.H * c.dv}, out.dtype),
                                         .weight = side.in("wo", {D, c.H * c.dv}, {.scale = 0.1})});
          launch_chain(side.context(), chain, turn.view());
        });
      }
    }
  }
}

}  // namespace
}  // namespace egmla

#include <cmath>

#include "op_case.h"

namespace egmla::test {
namespace {

struct Sizes {
  int64_t B, T, H, Hkv, dk, dr, dv;
};

// q, k, (k_rope,) v as separate tensors; `starts` gives each token its document's first position.
OpCase attention_case(const std::string& name, Sizes s, bool documents = false) {
  std::vector<Shape> inputs = {{s.B, s.T, s.H, s.dk + s.dr}, {s.B, s.T, s.Hkv, s.dk}, {s.B, s.T, s.Hkv, s.dv}};
  if (s.dr) inputs.push_back({s.B, s.T, 1, s.dr});
  return {
      .name = "attention/" + name,
      .inputs = inputs,
      .parameters = {},
      .run =
          [=](CaseRun& r) {
            Tensor starts;
            if (documents) {
              std::vector<int32_t> first(static_cast<size_t>(s.B * s.T));
              for (int64_t b = 0; b < s.B; ++b) {
                for (int64_t t = 0; t < s.T; ++t)
                  first[static_cast<size_t>(b * s.T + t)] = static_cast<int32_t>(t / 11 * 11 > b ? t / 11 * 11 : 0);
              }
              starts = Tensor::from(r.context(), {s.B, s.T}, first);
            }
            const double scale = 1.0 / std::sqrt(static_cast<double>(s.dk + s.dr));
            return std::vector<Var>{ops::attention(r.x[0], r.x[1], s.dr ? &r.x[3] : nullptr, r.x[2], starts, scale)};
          },
      .float_tolerance = 2e-5};
}

OpCase rope_case(const std::string& name, bool interleave, bool with_positions) {
  return {.name = "rope/" + name, .inputs = {{2, 9, 3, 14}}, .parameters = {}, .run = [=](CaseRun& r) {
            const auto table = ops::make_rope_table(r.context(), 32, 10, 10000.0, interleave, r.statistics());
            Tensor positions;
            if (with_positions) positions = Tensor::from(r.context(), {2, 9}, random_ids(18, 32, 5));
            // Rotation happens in place, so on a copy: a + 0 x.
            const Var copy = ops::add(r.x[0], r.tape.constant(Tensor::zeros(r.context(), r.x[0].shape(), r.dtype)));
            return std::vector<Var>{ops::rope_in_place(copy, 4, table, positions)};
          }};
}

}  // namespace

void add_attention_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  cases.push_back(attention_case("one_token", {1, 1, 1, 1, 4, 0, 4}));
  cases.push_back(attention_case("mha", {2, 33, 3, 3, 16, 0, 16}));
  cases.push_back(attention_case("gqa", {1, 65, 6, 2, 8, 0, 24}));
  cases.push_back(attention_case("mla", {2, 37, 4, 4, 16, 8, 16}));
  cases.push_back(attention_case("mla_unequal", {1, 129, 2, 2, 32, 16, 24}));
  cases.push_back(attention_case("documents", {2, 70, 2, 1, 8, 0, 8}, true));
  cases.push_back(attention_case("mla_documents", {2, 40, 2, 2, 16, 16, 16}, true));
  cases.push_back(attention_case("mla_wide", {1, 130, 2, 2, 128, 64, 128}));
  cases.push_back(rope_case("interleaved", true, false));
  cases.push_back(rope_case("halves", false, false));
  cases.push_back(rope_case("positions", true, true));
  // Packed projections: q, k and v are windows of one tensor, as the models use them.
  cases.push_back({.name = "attention/packed",
                   .inputs = {{2, 19, 2 * 24 + 2 * 16 + 8 + 2 * 12}},
                   .parameters = {},
                   .run =
                       [](CaseRun& r) {
                         const auto heads = [](int64_t begin, int64_t count, int64_t width) {
                           return [=](const View& v) { return v.columns(begin, count * width).split_heads(count); };
                         };
                         const auto p = r.tape.windows(
                             r.x[0], {heads(0, 2, 24), heads(48, 2, 16), heads(80, 1, 8), heads(88, 2, 12)});
                         return std::vector<Var>{ops::attention(p[0], p[1], &p[2], p[3], {}, 0.2)};
                       },
                   .float_tolerance = 2e-5});

  errors.push_back(
      {"attention",
       [](Tape& t) {
         ops::attention(blank(t, {1, 4, 3, 8}), blank(t, {1, 4, 2, 8}), nullptr, blank(t, {1, 4, 2, 8}), {}, 1);
       },
       "q is [1,4,3,8], k is [1,4,2,8], v is [1,4,2,8], dr is 0"});
  errors.push_back({"rope",
                    [](Tape& t) {
                      const auto table = ops::make_rope_table(t.context(), 8, 6, 10000.0, true, DType::f32);
                      ops::rope_in_place(blank(t, {1, 4, 2, 5}), 0, table, {});
                    },
                    "rope: x must be [B,T,H,d] with d >= 6; x is [1,4,2,5]"});
  errors.push_back({"rope positions",
                    [](Tape& t) {
                      const auto table = ops::make_rope_table(t.context(), 8, 6, 10000.0, true, DType::f32);
                      ops::rope_in_place(blank(t, {1, 9, 2, 6}), 0, table, {});
                    },
                    "rope: 9 positions asked of a table of 8"});
}

}  // namespace egmla::test

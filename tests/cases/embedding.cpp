#include "kernels/cross_entropy.h"
#include "op_case.h"

namespace egmla::test {
namespace {

OpCase embedding_case(const std::string& name, int64_t B, int64_t T, int64_t V, int64_t C) {
  return {.name = "embedding/" + name, .inputs = {}, .parameters = {{V, C}}, .run = [=](CaseRun& r) {
            const auto tokens = ops::make_token_index(r.context(), random_ids(B * T, V, 6), B, T, true);
            return std::vector<Var>{ops::embedding(r.tape, tokens, r.p[0])};
          }};
}

OpCase head_case(const std::string& name, int64_t N, int64_t C, int64_t V, int64_t chunk, bool ignore) {
  return {.name = "head_loss/" + name,
          .inputs = {{1, N, C}},
          .parameters = {{V, C}},
          .run =
              [=](CaseRun& r) {
                std::vector<int32_t> targets = random_ids(N, V, 8);
                if (ignore) {
                  for (size_t i = 0; i < targets.size(); i += 3) targets[i] = kIgnoreIndex;
                }
                const Tensor y = Tensor::from(r.context(), {1, N}, targets);
                return std::vector<Var>{ops::head_loss(r.x[0], r.p[0], y, 1.0 / static_cast<double>(N), chunk).loss};
              },
          .own_seed = true,
          .bf16_tolerance = 2e-2};
}

}  // namespace

void add_embedding_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  cases.push_back(embedding_case("one", 1, 1, 1, 1));
  cases.push_back(embedding_case("odd", 3, 33, 17, 9));
  cases.push_back(embedding_case("hot", 2, 1023, 3, 64));
  cases.push_back(embedding_case("sparse", 1, 40, 1000, 32));
  // One table read twice: gradients add up (tied head, shared gate tables).
  cases.push_back(
      {.name = "embedding/shared", .inputs = {}, .parameters = {{13, 6}}, .run = [](CaseRun& r) {
         const auto tokens = ops::make_token_index(r.context(), random_ids(20, 13, 6), 2, 10, true);
         return std::vector<Var>{ops::embedding(r.tape, tokens, r.p[0]), ops::embedding(r.tape, tokens, r.p[0])};
       }});
  cases.push_back(head_case("one_chunk", 7, 12, 19, 0, false));
  cases.push_back(head_case("chunks", 33, 16, 50, 8, false));
  cases.push_back(head_case("ignored", 33, 16, 65, 10, true));
  cases.push_back(head_case("one", 1, 4, 3, 0, false));
  cases.push_back(head_case("wide", 5, 8, 1023, 2, true));
  // Tied weights: the embedding's table is the head's.
  cases.push_back({.name = "head_loss/tied",
                   .inputs = {},
                   .parameters = {{23, 16}},
                   .run =
                       [](CaseRun& r) {
                         const auto tokens = ops::make_token_index(r.context(), random_ids(24, 23, 6), 2, 12, true);
                         const Tensor y = Tensor::from(r.context(), {2, 12}, random_ids(24, 23, 9));
                         return std::vector<Var>{
                             ops::head_loss(ops::embedding(r.tape, tokens, r.p[0]), r.p[0], y, 0.1, 7).loss};
                       },
                   .own_seed = true,
                   .bf16_tolerance = 2e-2});

  errors.push_back(
      {"head_loss",
       [](Tape& t) {
         const Tensor w = Tensor::zeros(t.context(), {9, 5}, DType::f32),
                      y = Tensor::zeros(t.context(), {3}, DType::i32);
         Parameter p{"w", w.view(), w.view()};
         ops::head_loss(blank(t, {1, 3, 4}), p, y, 1.0);
       },
       "head_loss: x must be [N,C], weight [V,C], targets [N]; x is [1,3,4], weight is [9,5], targets is [3]"});
}

}  // namespace egmla::test

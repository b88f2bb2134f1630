#include "op_case.h"

namespace egmla::test {
namespace {

OpCase gate_case(const std::string& name, const Shape& shape, GateNorm norm, GateActivation activation, double offset) {
  const Shape features = {shape[2], shape[3]};
  const bool normed = norm != GateNorm::none;
  return {.name = "gate/" + name,
          .inputs = {shape, shape},
          .parameters = normed ? std::vector<Shape>{features, features} : std::vector<Shape>{},
          .run = [=](CaseRun& r) {
            const ops::GateOptions options{.offset = offset, .eps = 1e-6, .activation = activation, .norm = norm};
            return std::vector<Var>{
                ops::gate(r.x[0], r.x[1], normed ? &r.p[0] : nullptr, normed ? &r.p[1] : nullptr, options)};
          }};
}

}  // namespace

void add_gate_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  cases.push_back(gate_case("joint", {2, 17, 3, 10}, GateNorm::joint, GateActivation::none, 0));
  cases.push_back(gate_case("joint_vectors", {1, 65, 4, 64}, GateNorm::joint, GateActivation::none, 0));
  cases.push_back(gate_case("joint_wide", {1, 5, 12, 128}, GateNorm::joint, GateActivation::silu, 1));
  cases.push_back(gate_case("per_head", {2, 65, 3, 32}, GateNorm::per_head, GateActivation::sigmoid, 0));
  cases.push_back(gate_case("per_head_odd", {1, 33, 2, 7}, GateNorm::per_head, GateActivation::tanh, 0.5));
  cases.push_back(gate_case("bare", {1, 9, 2, 16}, GateNorm::none, GateActivation::none, 1));
  cases.push_back(gate_case("bare_tanh", {1, 3, 1, 33}, GateNorm::none, GateActivation::tanh, 0));
  cases.push_back(gate_case("one", {1, 1, 1, 4}, GateNorm::joint, GateActivation::none, 0));
  // K and V normalised apart, out of one packed tensor and one packed weight.
  cases.push_back(
      {.name = "gate/separate",
       .inputs = {{2, 11, 3 * 12}, {2, 11, 3 * 12}},
       .parameters = {{3, 12}, {3, 12}},
       .run = [](CaseRun& r) {
         const auto select = [](int64_t begin, int64_t width) {
           return [=](const View& v) { return v.split_heads(3).columns(begin, width); };
         };
         const auto u = r.tape.windows(r.x[0], {select(0, 8), select(8, 4)});
         const auto g = r.tape.windows(r.x[1], {select(0, 8), select(8, 4)});
         std::vector<Var> out;
         for (size_t i = 0; i < 2; ++i) {
           const int64_t begin = i ? 8 : 0, width = i ? 4 : 8;
           for (size_t j = 0; j < 2; ++j)
             r.p.push_back({"window", r.p[j].value.columns(begin, width), r.p[j].grad.columns(begin, width)});
           out.push_back(ops::gate(u[i], g[i], &r.p[2 + 2 * i], &r.p[3 + 2 * i], {}));
         }
         return out;
       }});

  errors.push_back({"gate",
                    [](Tape& t) {
                      ops::gate(blank(t, {1, 2, 3, 4}), blank(t, {1, 2, 3, 5}), nullptr, nullptr, {});
                    },
                    "gate: u and g must be [B,T,H,w] alike; u is [1,2,3,4], g is [1,2,3,5]"});
  errors.push_back({"gate without weights",
                    [](Tape& t) {
                      ops::gate(blank(t, {1, 2, 3, 4}), blank(t, {1, 2, 3, 4}), nullptr, nullptr, {});
                    },
                    "gate: a norm needs weight and bias"});
}

}  // namespace egmla::test

#include "op_case.h"

namespace egmla::test {

void add_linear_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  const auto linear = [](CaseRun& r) { return std::vector<Var>{ops::linear(r.x[0], r.p[0])}; };
  cases.push_back({.name = "linear/small", .inputs = {{2, 3, 8}}, .parameters = {{16, 8}}, .run = linear});
  cases.push_back({.name = "linear/one", .inputs = {{1, 1, 1}}, .parameters = {{1, 1}}, .run = linear});
  cases.push_back({.name = "linear/odd", .inputs = {{1, 33, 31}}, .parameters = {{45, 31}}, .run = linear});
  cases.push_back({.name = "linear/large",
                   .inputs = {{1, 1023, 40}},
                   .parameters = {{65, 40}},
                   .run = linear,
                   .float_tolerance = 3e-5});
  cases.push_back({.name = "linear/twice", .inputs = {{2, 5, 8}}, .parameters = {{8, 8}}, .run = [](CaseRun& r) {
                     return std::vector<Var>{ops::linear(ops::linear(r.x[0], r.p[0]), r.p[0])};
                   }});
  cases.push_back(
      {.name = "linear/strided_input", .inputs = {{2, 7, 24}}, .parameters = {{16, 8}, {8, 16}}, .run = [](CaseRun& r) {
         const auto parts = r.tape.windows(
             r.x[0], {[](const View& v) { return v.columns(0, 8); }, [](const View& v) { return v.columns(8, 16); }});
         return std::vector<Var>{ops::linear(parts[0], r.p[0]), ops::linear(parts[1], r.p[1])};
       }});
  const auto add = [](CaseRun& r) { return std::vector<Var>{ops::add(r.x[0], r.x[1])}; };
  cases.push_back({.name = "add/odd", .inputs = {{1, 33, 7}, {1, 33, 7}}, .parameters = {}, .run = add});
  cases.push_back({.name = "add/itself", .inputs = {{2, 3, 5}}, .parameters = {}, .run = [](CaseRun& r) {
                     return std::vector<Var>{ops::add(r.x[0], r.x[0])};
                   }});
  // A window that no op reads has a gradient of zero.
  cases.push_back({.name = "windows/part_unused", .inputs = {{2, 3, 12}}, .parameters = {}, .run = [](CaseRun& r) {
                     const auto parts = r.tape.windows(r.x[0], {[](const View& v) { return v.columns(0, 8); },
                                                                [](const View& v) { return v.columns(8, 4); }});
                     return std::vector<Var>{ops::swiglu(parts[0])};
                   }});

  errors.push_back({"linear",
                    [](Tape& t) {
                      const Tensor w = Tensor::zeros(t.context(), {6, 5}, DType::f32);
                      Parameter p{"w", w.view(), w.view()};
                      ops::linear(blank(t, {2, 3, 4}), p);
                    },
                    "linear: x must be [...,K] and weight [M,K]; x is [2,3,4], weight is [6,5]"});
  errors.push_back({"add",
                    [](Tape& t) {
                      ops::add(blank(t, {2, 3}), blank(t, {3, 2}));
                    },
                    "add: shapes must agree; a is [2,3], b is [3,2]"});
}

}  // namespace egmla::test

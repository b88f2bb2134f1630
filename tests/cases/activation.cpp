#include "op_case.h"

namespace egmla::test {

void add_activation_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  const auto swiglu = [](CaseRun& r) { return std::vector<Var>{ops::swiglu(r.x[0])}; };
  const auto gelu = [](CaseRun& r) { return std::vector<Var>{ops::gelu(r.x[0])}; };
  for (const Shape& shape : {Shape{1, 1, 2}, Shape{1, 33, 66}, Shape{2, 3, 1022}, Shape{2, 17, 64}}) {
    cases.push_back(
        {.name = "swiglu/" + std::to_string(shape.back()), .inputs = {shape}, .parameters = {}, .run = swiglu});
    cases.push_back({.name = "gelu/" + std::to_string(shape.back()), .inputs = {shape}, .parameters = {}, .run = gelu});
  }
  errors.push_back({"swiglu",
                    [](Tape& t) {
                      ops::swiglu(blank(t, {2, 5}));
                    },
                    "swiglu: x must be [...,2F]; x is [2,5]"});
}

}  // namespace egmla::test

#include "op_case.h"

namespace egmla::test {
namespace {

constexpr double kEps = 1e-6;

OpCase norm_case(const std::string& size, const Shape& x, bool layer_norm) {
  const Shape c = {x.back()};
  return {.name = (layer_norm ? "layer_norm/" : "rms_norm/") + size,
          .inputs = {x},
          .parameters = layer_norm ? std::vector<Shape>{c, c} : std::vector<Shape>{c},
          .run = [layer_norm](CaseRun& r) {
            return std::vector<Var>{ops::norm(r.x[0], r.p[0], layer_norm ? &r.p[1] : nullptr, kEps)};
          }};
}

OpCase sum_case(const std::string& size, const Shape& x, bool layer_norm) {
  OpCase out = norm_case(size, x, layer_norm);
  out.name = "add_" + out.name;
  out.inputs = {x, x};
  out.run = [layer_norm](CaseRun& r) {
    const auto [sum, y] = ops::add_norm(r.x[0], r.x[1], r.p[0], layer_norm ? &r.p[1] : nullptr, kEps);
    return std::vector<Var>{sum, y};
  };
  return out;
}

}  // namespace

void add_norm_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  for (bool layer_norm : {false, true}) {
    cases.push_back(norm_case("one_row", {1, 1, 5}, layer_norm));
    cases.push_back(norm_case("odd", {3, 43, 33}, layer_norm));
    cases.push_back(norm_case("wide", {1, 4, 1023}, layer_norm));
    cases.push_back(norm_case("vectors", {2, 65, 64}, layer_norm));
    cases.push_back(sum_case("odd", {3, 43, 33}, layer_norm));
    cases.push_back(sum_case("vectors", {2, 65, 128}, layer_norm));
    // Only the norm is read: the sum gets no gradient of its own.
    OpCase last = sum_case("sum_unused", {2, 3, 16}, layer_norm);
    last.run = [layer_norm](CaseRun& r) {
      return std::vector<Var>{ops::add_norm(r.x[0], r.x[1], r.p[0], layer_norm ? &r.p[1] : nullptr, kEps).second};
    };
    cases.push_back(last);
  }
  OpCase strided = norm_case("strided", {2, 5, 24}, false);
  strided.parameters = {{16}};
  strided.run = [](CaseRun& r) {
    const auto parts = r.tape.windows(
        r.x[0], {[](const View& v) { return v.columns(0, 16); }, [](const View& v) { return v.columns(16, 8); }});
    return std::vector<Var>{ops::norm(parts[0], r.p[0], nullptr, kEps), ops::swiglu(parts[1])};
  };
  cases.push_back(strided);

  errors.push_back({"rms_norm",
                    [](Tape& t) {
                      const Tensor w = Tensor::zeros(t.context(), {512}, DType::f32);
                      Parameter p{"w", w.view(), w.view()};
                      ops::norm(blank(t, {4, 128, 768}), p, nullptr, kEps);
                    },
                    "rms_norm: weight must be [C]; x is [4,128,768], weight is [512]"});
  errors.push_back({"layer_norm",
                    [](Tape& t) {
                      const Tensor w = Tensor::zeros(t.context(), {8}, DType::f32),
                                   b = Tensor::zeros(t.context(), {7}, DType::f32);
                      Parameter p{"w", w.view(), w.view()}, q{"b", b.view(), b.view()};
                      ops::norm(blank(t, {2, 8}), p, &q, kEps);
                    },
                    "layer_norm: bias must be [C]; x is [2,8], bias is [7]"});
  errors.push_back({"add_norm",
                    [](Tape& t) {
                      const Tensor w = Tensor::zeros(t.context(), {8}, DType::f32);
                      Parameter p{"w", w.view(), w.view()};
                      ops::add_norm(blank(t, {2, 8}), blank(t, {3, 8}), p, nullptr, kEps);
                    },
                    "add_norm: shapes must agree; x is [2,8], delta is [3,8]"});
}

}  // namespace egmla::test

#include "op_case.h"

namespace egmla::test {
namespace {

// SwiGLU's feed-forward of p[0] [2F, C] and p[1] [C, F].
std::vector<Var> feed_forward(CaseRun& r, const std::vector<Var>& in) {
  return {ops::linear(ops::swiglu(ops::linear(in[0], r.p[0])), r.p[1])};
}

OpCase feed_forward_case(const std::string& name, const std::function<std::vector<Var>(CaseRun&)>& run) {
  return {.name = name,
          .inputs = {{2, 17, 9}},
          .parameters = {{14, 9}, {9, 7}},
          .run = run,
          .float_tolerance = 3e-5,
          .bf16_tolerance = 3e-2};
}

// Everything a frugal tape computes again, each from something computed again: norm, product, table rows, gate,
// activation; K and V are windows of one tensor.
std::vector<Var> frugal_chain(CaseRun& r) {
  r.tape.set_frugal(true);
  const auto tokens = ops::make_token_index(r.context(), random_ids(10, 11, 4), 2, 5, true);
  const auto heads = [](const View& view) { return view.split_heads(2); };
  const Var c = ops::norm(r.x[0], r.p[0], nullptr, 1e-6);
  const Var u = r.tape.windows(ops::small_linear(c, r.p[1]), {heads}).front();
  const Var g = r.tape.windows(ops::small_linear(ops::embedding(r.tape, tokens, r.p[2]), r.p[3]), {heads}).front();
  const Var kv = ops::gate(u, g, &r.p[4], &r.p[5], {});
  const auto parts = r.tape.windows(
      kv, {[](const View& v) { return v.columns(0, 8); }, [](const View& v) { return v.columns(8, 8); }});
  const Var q = r.tape.windows(r.x[1], {heads}).front();
  const Var o = ops::attention(q, parts[0], nullptr, parts[1], Tensor{}, 0.3);
  const auto [sum, h] = ops::add_norm(r.x[2], o, r.p[6], nullptr, 1e-6);
  return {sum, ops::linear(ops::swiglu(h), r.p[7]), ops::swiglu_linear(h, r.p[7]), ops::linear(ops::gelu(h), r.p[8])};
}

}  // namespace

void add_recompute_cases(std::vector<OpCase>& cases, std::vector<ShapeError>& errors) {
  cases.push_back(feed_forward_case("recompute/feed_forward", [](CaseRun& r) {
    return ops::recompute(r.x, [&r](const std::vector<Var>& in) { return feed_forward(r, in); });
  }));
  // The same weights inside and outside, a region within a region, and an input that is read outside as well.
  cases.push_back(feed_forward_case("recompute/nested", [](CaseRun& r) {
    const auto inner = [&r](const std::vector<Var>& in) { return feed_forward(r, in); };
    const auto outer = [inner](const std::vector<Var>& in) {
      return std::vector<Var>{ops::add(ops::recompute(in, inner)[0], in[0])};
    };
    const Var y = ops::recompute(r.x, outer)[0];
    return std::vector<Var>{ops::add(feed_forward(r, {y})[0], r.x[0])};
  }));
  // Windows as inputs, a constant, a rotation in place inside, and an output that nothing reads.
  cases.push_back(
      {.name = "recompute/windows",
       .inputs = {{2, 5, 24}},
       .parameters = {{16, 8}, {16}},
       .run =
           [](CaseRun& r) {
             const auto parts = r.tape.windows(r.x[0], {[](const View& v) { return v.columns(0, 8); },
                                                        [](const View& v) { return v.columns(8, 16); }});
             const auto table = ops::make_rope_table(r.context(), 5, 4, 100.0, true, r.statistics());
             const Var still = r.tape.constant(tensor_of(r.context(), {2, 5, 16}, random_values(160, 1, 2), r.dtype));
             const auto region = [&r, table](const std::vector<Var>& in) {
               Tape& tape = *in[0].tape;
               const Var q = ops::linear(in[0], r.p[0]);
               const auto heads = [](const View& view) { return view.split_heads(2); };
               const auto joined = [](const View& view) {
                 return make_view(view.data, {view.size(0), view.size(1), 16}, view.dtype);
               };
               const Var turned = ops::rope_in_place(tape.windows(q, {heads}).front(), 2, table, Tensor{});
               const auto [sum, h] =
                   ops::add_norm(ops::add(in[1], in[2]), tape.windows(turned, {joined}).front(), r.p[1], nullptr, 1e-6);
               return std::vector<Var>{sum, h};
             };
             return std::vector<Var>{ops::recompute({parts[0], parts[1], still}, region)[1]};
           },
       .float_tolerance = 3e-5,
       .bf16_tolerance = 3e-2});
  for (const Shape& x : {Shape{1, 1, 2}, Shape{1, 33, 66}, Shape{2, 17, 64}}) {
    cases.push_back({.name = "swiglu_linear/" + std::to_string(x.back()),
                     .inputs = {x},
                     .parameters = {{9, x.back() / 2}},
                     .run =
                         [](CaseRun& r) {
                           r.tape.set_frugal(true);
                           return std::vector<Var>{ops::swiglu_linear(r.x[0], r.p[0])};
                         },
                     .float_tolerance = 3e-5,
                     .bf16_tolerance = 3e-2});
  }
  cases.push_back({.name = "frugal/chain",
                   .inputs = {{2, 5, 12}, {2, 5, 16}, {2, 5, 16}},
                   .parameters = {{12}, {32, 12}, {11, 3}, {32, 3}, {2, 16}, {2, 16}, {16}, {4, 8}, {4, 16}},
                   .run = frugal_chain,
                   .float_tolerance = 1e-4,
                   .bf16_tolerance = 1e-1});

  errors.push_back({"recompute", [](Tape&) { ops::recompute({}, [](const std::vector<Var>& in) { return in; }); },
                    "recompute: a region needs an input"});
  errors.push_back({"rope of what is computed again",
                    [](Tape& t) {
                      t.set_frugal(true);
                      const auto table = ops::make_rope_table(t.context(), 3, 4, 100.0, false, DType::f32);
                      ops::rope_in_place(ops::gelu(blank(t, {2, 3, 1, 4})), 0, table, Tensor{});
                    },
                    "rope: x is computed again in backward"});
}

}  // namespace egmla::test

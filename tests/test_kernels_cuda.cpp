// Every CUDA kernel against its CPU twin: odd and real sizes, strided and misaligned views, both types.
#include <gtest/gtest.h>

#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/gate.h"
#include "kernels/layout.h"
#include "kernels/norm.h"
#include "kernels/rope.h"
#include "two_sides.h"

namespace egmla {
namespace {

using namespace testing_sides;

constexpr int64_t kWidths[] = {1, 33, 768, 1023, 1536, 2304};

TEST_F(KernelsCuda, FillAndAdd) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (int64_t width : kWidths) {
      compare_sides(cuda(), dtype, [&](Side& side) {
        const Spec spec{.pad = pad, .shift = shift};
        const Shape shape = {3, 2, 5, width};
        launch(side.context(), Fill{.out = side.out("filled", shape, spec), .value = 1.25});
        const Shape rows = {31, width};
        launch(side.context(),
               Add{.out = side.out("sum", rows, spec), .a = side.in("a", rows), .b = side.in("b", rows, spec)});
        const View target = side.in_out("target", rows, spec);
        launch(side.context(), Add{.out = target, .a = target, .b = side.in("c", rows)});
      });
    }
  });
}

// Windows onto one packed tensor, as attention takes them: heads of keys out of heads of keys and values.
TEST_F(KernelsCuda, FillAddAndCopyWindows) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int64_t width : {33, 64}) {
      compare_sides(cuda(), dtype, [&](Side& side) {
        const View packed = side.in_out("packed", {2, 7, 3, 2 * width});
        launch(side.context(), Fill{.out = packed.columns(width, width), .value = -2});
        const View windows = side.in_out("windows", {2, 7, 3, 2 * width});
        launch(side.context(), Copy{.out = windows.columns(width, width), .x = packed.columns(0, width)});
        launch(side.context(), Copy{.out = side.out("copy", {2, 7, 3, width}), .x = packed.columns(1, width)});
        const View flat = side.in_out("flat", {14, 2 * width});
        launch(side.context(),
               Add{.out = flat.columns(0, width), .a = flat.columns(width, width), .b = flat.columns(0, width)});
      });
    }
  }
}

TEST_F(KernelsCuda, FillIntegers) {
  const Tensor ids = Tensor::zeros(cuda(), {1023}, DType::i32);
  launch(cuda(), Fill{.out = ids.view(), .value = -100});
  EXPECT_EQ(ids.to_host<int32_t>(), std::vector<int32_t>(1023, -100));
}

TEST_F(KernelsCuda, Convert) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (int64_t width : kWidths) {
      compare_sides(cuda(), dtype, [&](Side& side) {
        launch(side.context(),
               Convert{.out = side.out("down", {5, width}), .x = side.in("x", {5, width}, {.kind = Kind::master})});
        launch(side.context(),
               Convert{.out = side.out("up", {5, width}, {.kind = Kind::master}), .x = side.in("y", {5, width})});
      });
    }
  }
}

TEST_F(KernelsCuda, Activations) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (int64_t F : kWidths) {
      compare_sides(cuda(), dtype, [&](Side& side) {
        const Spec spec{.pad = pad, .shift = shift, .scale = 2};
        const Shape wide = {9, 2 * F}, narrow = {9, F};
        const View gate_up = side.in("gate_up", wide, spec), dy = side.in("dy", narrow, spec),
                   x = side.in("x", narrow, spec);
        launch(side.context(), SwigluForward{.out = side.out("swiglu", narrow, spec), .gate_up = gate_up});
        launch(
            side.context(),
            SwigluBackward{.gate_up_grad = side.out("gate_up_grad", wide, spec), .out_grad = dy, .gate_up = gate_up});
        const View in_place = side.in_out("in_place", wide, spec);
        launch(side.context(), SwigluBackward{.gate_up_grad = in_place, .out_grad = dy, .gate_up = in_place});
        const View hidden = side.in_out("hidden", narrow, spec);
        launch(side.context(), SwigluBackward{.gate_up_grad = side.out("gate_up_grad_again", wide, spec),
                                              .out_grad = hidden,
                                              .gate_up = gate_up,
                                              .out = hidden});
        launch(side.context(), GeluForward{.out = side.out("gelu", narrow, spec), .x = x});
        launch(side.context(), GeluBackward{.x_grad = side.out("x_grad", narrow, spec), .out_grad = dy, .x = x});
      });
    }
  });
}

// Forward and backward of both norms; `residual` fuses the sum and its gradient.
void run_norms(Side& side, int64_t N, int64_t C, const Spec& spec, bool residual, bool accumulate) {
  const Shape rows = {N, C};
  const Spec statistic{.kind = Kind::master}, positive{.kind = Kind::master, .positive = true};
  const View none, x = side.in("x", rows, spec), dy = side.in("dy", rows, spec);
  const View other = residual ? side.in("residual", rows) : none,
             dr = residual ? side.in("residual_grad", rows, spec) : none;
  const View weight = side.in("weight", {C}), bias = side.in("bias", {C});
  launch(side.context(), RmsNormForward{.out = side.out("rms", rows, spec),
                                        .rstd = side.out("rms_rstd", {N}, statistic),
                                        .residual_out = residual ? side.out("rms_sum", rows, spec) : none,
                                        .x = x,
                                        .residual = other,
                                        .weight = weight,
                                        .eps = 1e-3});
  launch(side.context(), LayerNormForward{.out = side.out("layer", rows, spec),
                                          .mean = side.out("layer_mean", {N}, statistic),
                                          .rstd = side.out("layer_rstd", {N}, statistic),
                                          .residual_out = residual ? side.out("layer_sum", rows, spec) : none,
                                          .x = x,
                                          .residual = other,
                                          .weight = weight,
                                          .bias = bias,
                                          .eps = 1e-3});
  launch(side.context(), RmsNormBackward{.x_grad = side.out("rms_x_grad", rows, spec),
                                         .weight_grad = side.in_out("rms_weight_grad", {C}, statistic),
                                         .partials = side.workspace({kNormPartials, C}),
                                         .out_grad = dy,
                                         .residual_grad = dr,
                                         .x = x,
                                         .rstd = side.in("rstd", {N}, positive),
                                         .weight = weight,
                                         .accumulate = accumulate});
  const View in_place = side.in_out("in_place", rows, spec);
  launch(side.context(), LayerNormBackward{.x_grad = in_place,
                                           .weight_grad = side.in_out("layer_weight_grad", {C}, statistic),
                                           .bias_grad = side.in_out("layer_bias_grad", {C}, statistic),
                                           .partials = side.workspace({kNormPartials, 2, C}),
                                           .out_grad = in_place,
                                           .residual_grad = dr,
                                           .x = x,
                                           .mean = side.in("mean", {N}, statistic),
                                           .rstd = side.in("rstd2", {N}, positive),
                                           .weight = weight,
                                           .accumulate = accumulate});
}

TEST_F(KernelsCuda, Norms) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (int64_t C : kWidths) {
      SCOPED_TRACE(C);
      for (const int64_t N : {1, 131}) {
        const bool residual = N > 1;
        compare_sides(cuda(), dtype,
                      [&](Side& side) { run_norms(side, N, C, {.pad = pad, .shift = shift}, residual, !residual); });
      }
    }
  });
}

TEST_F(KernelsCuda, NormsOfWideRows) {
  compare_sides(cuda(), DType::bf16, [&](Side& side) { run_norms(side, 40, 9216, {}, true, false); });
  const Tensor x = Tensor::zeros(cuda(), {1, 9217}, DType::f32), rstd = Tensor::zeros(cuda(), {1}, DType::f32);
  EXPECT_THROW(launch(cuda(), RmsNormForward{.out = x.view(),
                                             .rstd = rstd.view(),
                                             .residual_out = {},
                                             .x = x.view(),
                                             .residual = {},
                                             .weight = x.view().as_matrix(),
                                             .eps = 1e-6}),
               Error);
}

TEST_F(KernelsCuda, Rope) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (const int64_t d : {2, 34, 64, 128}) {
      for (const bool interleave : {false, true}) {
        SCOPED_TRACE(fmt::format("d {}, interleave {}", d, interleave));
        compare_sides(cuda(), dtype, [&](Side& side) {
          const int64_t B = 2, T = 17, H = 3;
          const Spec spec{.pad = pad, .shift = shift}, table{.kind = Kind::master};
          const View cos = side.in("cos", {T, d / 2}, table), sin = side.in("sin", {T, d / 2}, table);
          launch(side.context(), Rope{.x = side.in_out("x", {B, T, H, d}, spec),
                                      .cos = cos,
                                      .sin = sin,
                                      .positions = {},
                                      .interleave = interleave,
                                      .inverse = false});
          std::vector<int32_t> positions;
          for (int32_t n = 0; n < B * T; ++n) positions.push_back(n * 5 % static_cast<int32_t>(T));
          launch(side.context(), Rope{.x = side.in_out("y", {B, T, H, d}, spec),
                                      .cos = cos,
                                      .sin = sin,
                                      .positions = side.ints({B, T}, positions),
                                      .interleave = interleave,
                                      .inverse = true});
        });
      }
    }
  });
}

struct GateCase {
  int64_t H, w;
  GateNorm norm;
  GateActivation activation;
};

void run_gate(Side& side, int64_t N, const GateCase& c, const Spec& spec) {
  const Shape shape = {N, c.H, c.w}, features = {c.H, c.w};
  const bool normed = c.norm != GateNorm::none;
  const Shape statistics = c.norm == GateNorm::per_head ? Shape{N, c.H} : Shape{N};
  const Spec master{.kind = Kind::master}, positive{.kind = Kind::master, .positive = true};
  const Spec heads{.kind = Kind::master, .pad = spec.pad};
  const View none, u = side.in("u", shape, spec), g = side.in("g", shape),
                   weight = normed ? side.in("weight", features, spec) : none;
  launch(side.context(), GateForward{.out = side.out("out", shape, spec),
                                     .mean = normed ? side.out("mean", statistics, master) : none,
                                     .rstd = normed ? side.out("rstd", statistics, master) : none,
                                     .u = u,
                                     .g = g,
                                     .weight = weight,
                                     .bias = normed ? side.in("bias", features, spec) : none,
                                     .offset = 0.5,
                                     .eps = 1e-3,
                                     .activation = c.activation,
                                     .norm = c.norm});
  const View in_place = side.in_out("u_grad", shape, spec);
  launch(side.context(), GateBackward{.u_grad = in_place,
                                      .g_grad = side.out("g_grad", shape),
                                      .weight_grad = normed ? side.in_out("weight_grad", features, heads) : none,
                                      .bias_grad = normed ? side.in_out("bias_grad", features, heads) : none,
                                      .partials = normed ? side.workspace({kNormPartials, 2, c.H * c.w}) : none,
                                      .out_grad = in_place,
                                      .u = u,
                                      .g = g,
                                      .mean = normed ? side.in("mean_in", statistics, master) : none,
                                      .rstd = normed ? side.in("rstd_in", statistics, positive) : none,
                                      .weight = weight,
                                      .offset = 0.5,
                                      .activation = c.activation,
                                      .norm = c.norm,
                                      .accumulate = N % 2 == 1});
}

TEST_F(KernelsCuda, Gate) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (const GateNorm norm : {GateNorm::none, GateNorm::joint, GateNorm::per_head}) {
      for (const auto& [H, w] : {std::pair<int64_t, int64_t>{1, 33}, {3, 341}, {12, 128}, {16, 256}}) {
        SCOPED_TRACE(fmt::format("norm {}, H {}, w {}", static_cast<int>(norm), H, w));
        compare_sides(cuda(), dtype, [&, H = H, w = w](Side& side) {
          run_gate(side, 133, {H, w, norm, GateActivation::none}, {.pad = pad, .shift = shift});
        });
      }
    }
  });
}

TEST_F(KernelsCuda, GateActivations) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    for (const auto activation : {GateActivation::sigmoid, GateActivation::tanh, GateActivation::silu}) {
      SCOPED_TRACE(static_cast<int>(activation));
      for (const GateNorm norm : {GateNorm::none, GateNorm::joint}) {
        compare_sides(cuda(), dtype, [&](Side& side) { run_gate(side, 14, {4, 96, norm, activation}, {}); });
      }
    }
  }
}

// Token ids of which one takes a third of all places.
std::vector<int32_t> skewed_ids(int64_t N, int32_t V) {
  std::vector<int32_t> ids;
  for (int64_t n = 0; n < N; ++n)
    ids.push_back(n % 3 == 0 ? 5 % V : static_cast<int32_t>(philox(3, static_cast<uint64_t>(n))[0] % uint32_t(V)));
  return ids;
}

TEST_F(KernelsCuda, Embedding) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (const int64_t C : {1, 33, 768, 1023}) {
      for (const int64_t N : {1, 1200}) {
        SCOPED_TRACE(fmt::format("C {}, N {}", C, N));
        const int64_t V = 97;
        const std::vector<int32_t> ids = skewed_ids(N, static_cast<int32_t>(V));
        std::vector<int32_t> order(ids.size()), segments;
        for (size_t n = 0; n < ids.size(); ++n) order[n] = static_cast<int32_t>(n);
        const auto id_of = [&](int32_t n) { return ids[static_cast<size_t>(n)]; };
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return id_of(a) < id_of(b); });
        for (size_t j = 0; j < order.size(); ++j) {
          if (j == 0 || id_of(order[j]) != id_of(order[j - 1])) segments.push_back(static_cast<int32_t>(j));
        }
        segments.push_back(static_cast<int32_t>(order.size()));
        compare_sides(cuda(), dtype, [&](Side& side) {
          const Spec spec{.pad = pad, .shift = shift};
          const View tokens = side.ints({N}, ids);
          launch(
              side.context(),
              EmbeddingForward{.out = side.out("out", {N, C}, spec), .table = side.in("table", {V, C}), .ids = tokens});
          for (const bool accumulate : {false, true}) {
            launch(side.context(),
                   EmbeddingBackward{
                       .table_grad = side.in_out(accumulate ? "added" : "written", {V, C}, {.kind = Kind::master}),
                       .out_grad = side.in(accumulate ? "dy" : "dz", {N, C}, spec),
                       .ids = tokens,
                       .order = side.ints({N}, order),
                       .segments = side.ints({static_cast<int64_t>(segments.size())}, segments),
                       .accumulate = accumulate});
          }
        });
      }
    }
  });
}

TEST_F(KernelsCuda, CrossEntropy) {
  for_layouts([&](DType dtype, int64_t pad, int64_t shift) {
    for (const int64_t V : {1, 33, 1023, 50304}) {
      SCOPED_TRACE(V);
      compare_sides(cuda(), dtype, [&](Side& side) {
        const int64_t N = 7;
        std::vector<int32_t> ids = skewed_ids(N, static_cast<int32_t>(V));
        ids[2] = kIgnoreIndex;
        const View targets = side.ints({N}, ids);
        const Spec spec{.pad = pad, .shift = shift, .scale = 3}, loss{.kind = Kind::master};
        launch(side.context(), CrossEntropy{.loss = side.out("trained", {N}, loss),
                                            .logits = side.in_out("grad", {N, V}, spec),
                                            .targets = targets,
                                            .grad_scale = 0.5,
                                            .write_grad = true});
        // The CPU's twin uses the logits as scratch.
        const View logits = side.is_cpu() ? side.in_out("kept", {N, V}, spec) : side.in("kept", {N, V}, spec);
        launch(side.context(),
               CrossEntropy{.loss = side.out("evaluated", {N}, loss), .logits = logits, .targets = targets});
      });
    }
  });
}

TEST_F(KernelsCuda, ResultsRepeat) {
  const auto once = [&] {
    Side side(cuda(), DType::bf16);
    run_norms(side, 1000, 768, {}, true, false);
    run_gate(side, 501, {12, 128, GateNorm::joint, GateActivation::none}, {});
    return side.results();
  };
  const auto first = once();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(once() == first);
}

}  // namespace
}  // namespace egmla

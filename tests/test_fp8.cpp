// e4m3 on the host: its codes, the factors of blocks, the quantiser's twin, and what training in fp8 would hold.
#include <gtest/gtest.h>

#include <cmath>

#include "core/fp8.h"
#include "core/rng.h"
#include "infer/device.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "nn/transformer.h"
#include "op_case.h"
#include "ops/fp8.h"

namespace egmla::test {
namespace {

TEST(Fp8, CodesSurviveARoundTrip) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(float_from_e4m3(byte)));
    } else {
      EXPECT_EQ(e4m3_from_float(float_from_e4m3(byte)), byte) << code;
    }
  }
  EXPECT_EQ(float_from_e4m3(0x7e), 448.0f);
  EXPECT_EQ(float_from_e4m3(0x08), 0x1p-6f);
  EXPECT_EQ(float_from_e4m3(0x01), 0x1p-9f);
}

// Between two neighbours lies a tie, which goes to the even code.
TEST(Fp8, RoundsToNearestEven) {
  for (uint8_t code = 0; code < 0x7e; ++code) {
    const float low = float_from_e4m3(code), high = float_from_e4m3(code + 1), tie = 0.5f * (low + high);
    const uint8_t even = code % 2 ? code + 1 : code;
    EXPECT_EQ(e4m3_from_float(tie), even) << tie;
    EXPECT_EQ(e4m3_from_float(-tie), even | 0x80) << tie;
    EXPECT_EQ(e4m3_from_float(std::nextafter(tie, 1e9f)), code + 1) << tie;
    EXPECT_EQ(e4m3_from_float(std::nextafter(tie, -1e9f)), code) << tie;
  }
}

TEST(Fp8, Saturates) {
  for (const float value : {449.0f, 464.0f, 1e9f, HUGE_VALF}) {
    EXPECT_EQ(e4m3_from_float(value), 0x7e);
    EXPECT_EQ(e4m3_from_float(-value), 0xfe);
  }
  EXPECT_EQ(e4m3_from_float(NAN), 0x7f);
}

TEST(Fp8, FactorsAreTheLeastPowerOfTwoThatFits) {
  const auto factor = [](float largest) {
    return std::bit_cast<float>(fp8_scale_bits(std::bit_cast<uint32_t>(largest)));
  };
  for (float largest : {448.0f, 449.0f, 1.0f, 1.75f, 1.76f, 3e-5f, 1e-20f, 7e30f, 3e38f}) {
    const float scale = factor(largest),
                inverse = std::bit_cast<float>(fp8_inverse_bits(std::bit_cast<uint32_t>(scale)));
    EXPECT_LE(largest / scale, 448.0f) << largest;
    EXPECT_GT(largest / scale, 224.0f) << largest;
    EXPECT_EQ(scale * inverse, 1.0f) << largest;
  }
  EXPECT_GT(factor(0), 0);
  EXPECT_TRUE(std::isnan(factor(HUGE_VALF)));
  EXPECT_TRUE(std::isnan(factor(NAN)));
}

struct Copies {
  QuantizedViews views;
  std::vector<Tensor> memory;
};

Copies make_copies(Context& context, int64_t R, int64_t C, bool square) {
  Copies out;
  const auto make = [&](const Shape& shape, DType dtype) {
    out.memory.push_back(Tensor::zeros(context, shape, dtype));
    return out.memory.back().view();
  };
  out.views = {.rows = make({R, fp8_padded(C)}, DType::e4m3),
               .row_scales = make(fp8_scale_shape(R, C, square), DType::f32),
               .columns = make({C, fp8_padded(R)}, DType::e4m3),
               .column_scales = make(fp8_scale_shape(C, R, square), DType::f32),
               .square = square};
  return out;
}

// s q at an element of a copy.
float value_at(const View& values, const View& scales, bool square, int64_t outer, int64_t inner) {
  const float* s = scales.as<float>();
  const float scale = square ? s[outer / kFp8Block * scales.stride(0) + inner / kFp8Block]
                             : s[inner / kFp8Block * scales.stride(0) + outer];
  return scale * float_from_e4m3(values.as<uint8_t>()[outer * values.stride(0) + inner]);
}

TEST(Fp8, CopiesAreNearTheMatrixAndZeroBeyondIt) {
  Context context;
  for (const auto& [R, C] : {std::pair<int64_t, int64_t>{1, 1}, {33, 200}, {128, 128}, {130, 257}}) {
    for (const bool square : {false, true}) {
      SCOPED_TRACE(fmt::format("{} x {}, square {}", R, C, square));
      const std::vector<double> x = random_values(R * C, 1, 2);
      const Copies copies = make_copies(context, R, C, square);
      const Tensor matrix = tensor_of(context, {R, C}, x, DType::f32);
      launch(context, Quantize{.out = copies.views, .x = matrix.view()});
      const QuantizedViews& v = copies.views;
      for (int64_t r = 0; r < R; ++r) {
        for (int64_t c = 0; c < fp8_padded(C); ++c) {
          const double exact = c < C ? x[static_cast<size_t>(r * C + c)] : 0;
          const double found = value_at(v.rows, v.row_scales, square, r, c);
          ASSERT_NEAR(found, exact, std::max(std::abs(exact) / 16, 0x1p-8 * 4 / 448)) << r << "," << c;
          if (c >= C) continue;
          const float transposed = value_at(v.columns, v.column_scales, square, c, r);
          ASSERT_NEAR(transposed, exact, std::abs(exact) / 16 + 1e-4) << r << "," << c;
          ASSERT_TRUE(!square || transposed == found) << r << "," << c;
        }
      }
      for (int64_t c = 0; c < C; ++c) {
        for (int64_t r = R; r < fp8_padded(R); ++r) ASSERT_EQ(value_at(v.columns, v.column_scales, square, c, r), 0);
      }
    }
  }
}

TEST(Fp8, SwigluInsideTheQuantiserIsSwiglu) {
  Context context;
  const int64_t R = 20, F = 72;
  const Tensor gate_up = tensor_of(context, {R, 2 * F}, random_values(R * 2 * F, 3, 1), DType::f32);
  const Tensor dy = tensor_of(context, {R, F}, random_values(R * F, 3, 2), DType::f32);
  const Tensor out = Tensor::empty(context, {R, F}, DType::f32), grad = Tensor::empty(context, {R, 2 * F}, DType::f32);
  launch(context, SwigluForward{.out = out.view(), .gate_up = gate_up.view()});
  launch(context, SwigluBackward{.gate_up_grad = grad.view(), .out_grad = dy.view(), .gate_up = gate_up.view()});
  const Copies apart = make_copies(context, R, F, false), fused = make_copies(context, R, F, false);
  const Copies apart_grad = make_copies(context, R, 2 * F, false), fused_grad = make_copies(context, R, 2 * F, false);
  launch(context, Quantize{.out = apart.views, .x = out.view()});
  launch(context, QuantizeSwiglu{.out = fused.views, .gate_up = gate_up.view()});
  launch(context, Quantize{.out = apart_grad.views, .x = grad.view()});
  launch(context, QuantizeSwigluBackward{.out = fused_grad.views, .out_grad = dy.view(), .gate_up = gate_up.view()});
  const auto near = [](const Copies& a, const Copies& b, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c) {
        const float expected = value_at(a.views.rows, a.views.row_scales, false, r, c);
        ASSERT_NEAR(value_at(b.views.rows, b.views.row_scales, false, r, c), expected, std::abs(expected) / 7 + 1e-4f);
      }
    }
  };
  near(apart, fused, R, F);
  near(apart_grad, fused_grad, R, 2 * F);
}

TEST(Fp8, TheCpuIsRefusedInOneLine) {
  Context context;
  for (const auto& call :
       {+[](Context& c) { compute_dtype(Precision::fp8, c); }, +[](Context& c) { trains_in_fp8(Precision::fp8, c); }}) {
    try {
      call(context);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.find('\n'), std::string::npos);
      EXPECT_NE(text.find("run.precision"), std::string::npos) << text;
      EXPECT_NE(text.find("use "), std::string::npos) << text;
    }
  }
}

// A pass on a plan of a GPU: shapes fit, weights gain two bytes an element where products run in e4m3, activations
// shrink, and every recomputation runs.
TEST(Fp8, APlanRunsAndHoldsCopies) {
  ModelConfig model;
  model.hidden_size = 1024;
  model.intermediate_size = 2048;
  model.num_hidden_layers = 2;
  model.num_attention_heads = 8;
  model.vocab_size = 512;
  model.max_position_embeddings = 128;
  model.attention.type = AttentionType::mha;
  const auto memory = [&](bool fp8, Recompute recompute) {
    Context plan{PlanContext(false)};
    Transformer transformer(model);
    transformer.set_fp8(fp8);
    transformer.set_recompute(recompute);
    transformer.allocate(plan, DType::bf16);
    const int64_t held = plan.memory().by_category[static_cast<size_t>(MemoryCategory::weights)];
    Batch batch;
    batch.tokens = ops::make_token_index(plan, std::vector<int32_t>(256, 0), 2, 128, true);
    batch.targets = Tensor::zeros(plan, {2, 128}, DType::i32);
    Tape tape(plan);
    tape.backward(transformer.loss(tape, batch, 1.0).loss);
    return std::pair{plan.memory().by_category[static_cast<size_t>(MemoryCategory::weights)] - held,
                     plan.memory().peak};
  };
  const int64_t elements = 2 * (4 * 1024 * 1024 + 3 * 1024 * 2048);
  for (const Recompute recompute : {Recompute::none, Recompute::light, Recompute::full}) {
    EXPECT_EQ(memory(false, recompute).first, 0);
    const int64_t grown = memory(true, recompute).first;
    EXPECT_GE(grown, 2 * elements);
    EXPECT_LT(grown, 2 * elements + elements / 100);
  }
}

}  // namespace
}  // namespace egmla::test

// Moments in bf16: stochastic rounding is unbiased and depends on the seed, the step and the place alone; what it costs
// beside moments in f32 is bounded.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "core/bf16.h"
#include "core/rng.h"
#include "core/tensor.h"
#include "kernels/adamw.h"
#include "nn/parameter_store.h"

namespace egmla {
namespace {

constexpr uint32_t kDraws = 1 << 16;

float float_of(uint32_t bits) {
  return std::bit_cast<float>(bits);
}

TEST(StochasticRounding, MeanOfAllDrawsIsTheValueAndEachIsANeighbour) {
  std::vector<float> values = {1.F + 0x1p-23F, 1.5F + 0x1p-9F, 0x1.fffffep0F, -0x1.fffffep7F, 0x1.2345p-130F, -1e-30F};
  for (uint64_t i = 0; i < 50; ++i) values.push_back(static_cast<float>(normal(1, i)));
  for (const float value : values) {
    const auto lower = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
    std::set<int> found;
    double sum = 0;
    for (uint32_t draw = 0; draw < kDraws; ++draw) {
      const uint16_t rounded = bf16_stochastic(value, draw);
      found.insert(rounded - lower);
      sum += static_cast<double>(float_from_bf16(rounded));
    }
    EXPECT_EQ(sum / kDraws, static_cast<double>(value));
    EXPECT_EQ(found, (std::set<int>{0, 1})) << value;
  }
}

TEST(StochasticRounding, KeepsWhatBf16Holds) {
  for (uint32_t bits = 0; bits < kDraws; ++bits) {
    const float value = float_from_bf16(static_cast<uint16_t>(bits));
    for (const uint32_t draw : {0U, 1U, 0x8000U, 0xffffU, 0xffff0000U}) {
      const uint16_t rounded = bf16_stochastic(value, draw);
      if (std::isnan(value)) {
        ASSERT_TRUE(std::isnan(float_from_bf16(rounded))) << bits;
      } else {
        ASSERT_EQ(rounded, bits) << draw;
      }
    }
  }
  for (const uint32_t bits : {0x7f800001U, 0x7fffffffU, 0xff800001U, 0xffffffffU})
    EXPECT_TRUE(std::isnan(float_from_bf16(bf16_stochastic(float_of(bits), 0xffff)))) << bits;
}

// A span of elements with moments in f32 or in bf16.
struct Elements {
  Elements(Context& context, DType moments, int64_t n)
      : w(Tensor::zeros(context, {n}, DType::f32)),
        g(Tensor::zeros(context, {n}, DType::f32)),
        m(Tensor::zeros(context, {n}, moments)),
        v(Tensor::zeros(context, {n}, moments)),
        norm(Tensor::from(context, {1}, std::vector<float>{1.F})) {}

  AdamW step(int64_t number, uint64_t seed = 5) const {
    return {.master = w.view(),
            .exp_avg = m.view(),
            .exp_avg_sq = v.view(),
            .working = {},
            .grad = g.view(),
            .grad_norm = norm.view(),
            .lr = 1e-2,
            .weight_decay = 0.1,
            .step = number,
            .seed = seed};
  }
  void set_gradients(float value) { std::fill_n(g.view().as<float>(), g.shape().elements(), value); }

  Tensor w, g, m, v, norm;
};

std::vector<double> values_of(const Tensor& moment) {
  std::vector<double> values;
  if (moment.dtype() == DType::f32) {
    for (const float value : moment.to_host<float>()) values.push_back(static_cast<double>(value));
  } else {
    for (const uint16_t bits : moment.to_host<uint16_t>()) values.push_back(static_cast<double>(float_from_bf16(bits)));
  }
  return values;
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// m = g lies a third, v = g^2 two thirds of the way between neighbours 2^-7 apart. The standard error of a mean of 2^16
// draws is 2^-7 sqrt(2/9) / 2^8.
TEST(Bf16Moments, MeansOverElementsAndStepsAreTheValues) {
  constexpr double kError = 0x1p-15 * 0.4714;
  Context context;
  const double gradient = 1 + 0x1p-7 / 3, square = gradient * gradient;
  for (const int64_t n : {1 << 16, 1 << 6}) {
    Elements elements(context, DType::bf16, n);
    elements.set_gradients(static_cast<float>(gradient));
    const int64_t steps = (1 << 16) / n;
    std::vector<double> m, v;
    for (int64_t step = 1; step <= steps; ++step) {
      AdamW kernel = elements.step(step);
      kernel.beta1 = kernel.beta2 = 0;
      launch(context, kernel);
      for (const double value : values_of(elements.m)) m.push_back(value);
      for (const double value : values_of(elements.v)) v.push_back(value);
    }
    EXPECT_NEAR(mean_of(m), gradient, 5 * kError) << n;
    EXPECT_NEAR(mean_of(v), square, 5 * kError) << n;
    // The two moments draw apart: rounded up together in (1/3) (2/3) of all cases.
    double both = 0;
    for (size_t i = 0; i < m.size(); ++i) both += m[i] > gradient && v[i] > square ? 1 : 0;
    EXPECT_NEAR(both / static_cast<double>(m.size()), 2.0 / 9, 5 * 0.4157 / 256) << n;
  }
}

// However a span is cut, and by nothing but seed, step and place.
TEST(Bf16Moments, DrawsDependOnThePlaceInTheFlatBuffer) {
  constexpr int64_t kElements = 100003;
  Context context;
  const auto run = [&](int64_t piece, uint64_t seed, int64_t number, int64_t shift) {
    Elements elements(context, DType::bf16, kElements);
    elements.set_gradients(0.123456F);
    for (int64_t at = 0; at < kElements; at += piece) {
      AdamW kernel = elements.step(number, seed);
      const int64_t size = std::min(piece, kElements - at);
      for (View* view : {&kernel.master, &kernel.exp_avg, &kernel.exp_avg_sq, &kernel.grad})
        *view = view->columns(at, size);
      kernel.first = at + shift;
      launch(context, kernel);
    }
    return std::pair(elements.m.to_host<uint16_t>(), elements.v.to_host<uint16_t>());
  };
  const auto whole = run(kElements, 5, 1, 0);
  EXPECT_EQ(run(64, 5, 1, 0), whole);
  EXPECT_EQ(run(4, 5, 1, 0), whole);
  EXPECT_EQ(run(40000, 5, 1, 0), whole);
  for (const auto& other : {run(kElements, 6, 1, 0), run(kElements, 5, 2, 0), run(kElements, 5, 1, 4)}) {
    EXPECT_NE(other.first, whole.first);
    EXPECT_NE(other.second, whole.second);
  }
}

// Rounding to nearest would leave v at a third of its value: there (1 - beta2) (g^2 - v) is half a step of bf16.
TEST(Bf16Moments, SlowSecondMomentArrives) {
  Context context;
  Elements elements(context, DType::bf16, 1024);
  elements.set_gradients(1);
  double expected = 0;
  for (int64_t step = 1; step <= 5000; ++step) {
    AdamW kernel = elements.step(step);
    kernel.beta2 = 0.999;
    launch(context, kernel);
    expected = 0.999 * expected + 0.001;
  }
  EXPECT_NEAR(mean_of(values_of(elements.v)), expected, 0.005);
}

// A stored moment is less than 2^-7 of itself from what was computed, and the decay forgets: a moment is less than
// 2^-7 / (1 - beta) of its largest value from the one in f32.
TEST(Bf16Moments, StayBesideFloatMoments) {
  constexpr int64_t kElements = 4096;
  Context context;
  Elements narrow(context, DType::bf16, kElements), wide(context, DType::f32, kElements);
  std::vector<double> largest_m(kElements, 0), largest_v(kElements, 0);
  for (int64_t step = 1; step <= 100; ++step) {
    for (int64_t i = 0; i < kElements; ++i) {
      const auto gradient = static_cast<float>(0.5 + normal(3, static_cast<uint64_t>(step * kElements + i)));
      narrow.g.view().as<float>()[i] = wide.g.view().as<float>()[i] = gradient;
    }
    launch(context, narrow.step(step));
    launch(context, wide.step(step));
    for (const Elements* elements : {&narrow, &wide}) {
      const auto m = values_of(elements->m), v = values_of(elements->v);
      for (size_t i = 0; i < m.size(); ++i) {
        largest_m[i] = std::max(largest_m[i], std::abs(m[i]));
        largest_v[i] = std::max(largest_v[i], v[i]);
      }
    }
  }
  const auto m = values_of(narrow.m), v = values_of(narrow.v), w = values_of(narrow.w);
  const auto wide_m = values_of(wide.m), wide_v = values_of(wide.v), wide_w = values_of(wide.w);
  double bias_m = 0, bias_v = 0, difference = 0, way = 0;
  for (size_t i = 0; i < m.size(); ++i) {
    ASSERT_LE(std::abs(m[i] - wide_m[i]), 0x1p-7 / 0.1 * largest_m[i]) << i;
    ASSERT_LE(std::abs(v[i] - wide_v[i]), 0x1p-7 / 0.05 * largest_v[i]) << i;
    bias_m += (m[i] - wide_m[i]) / static_cast<double>(kElements);
    bias_v += (v[i] - wide_v[i]) / static_cast<double>(kElements);
    difference = std::max(difference, std::abs(w[i] - wide_w[i]));
    way = std::max(way, std::abs(wide_w[i]));
  }
  EXPECT_NE(m, wide_m);
  EXPECT_LT(std::abs(bias_m), 3e-4);
  EXPECT_LT(std::abs(bias_v), 1e-3);
  EXPECT_LT(difference, 0.02 * way);
}

TEST(Bf16Moments, NonFiniteOnesStay) {
  Context context;
  Elements elements(context, DType::bf16, 8);
  float* gradients = elements.g.view().as<float>();
  gradients[0] = NAN;
  gradients[1] = INFINITY;
  gradients[2] = -INFINITY;
  gradients[3] = 1e30F;  // its square is beyond f32
  launch(context, elements.step(1));
  const auto m = values_of(elements.m), v = values_of(elements.v);
  EXPECT_TRUE(std::isnan(m[0]) && std::isnan(v[0]));
  EXPECT_EQ(m[1], HUGE_VAL);
  EXPECT_EQ(m[2], -HUGE_VAL);
  EXPECT_EQ(v[3], HUGE_VAL);
  EXPECT_EQ(m[4], 0);
  const auto before = std::pair(elements.m.to_host<uint16_t>(), elements.w.to_host<float>());
  elements.norm.view().as<float>()[0] = INFINITY;
  elements.set_gradients(1);
  launch(context, elements.step(2));
  EXPECT_EQ(elements.m.to_host<uint16_t>(), before.first);
  EXPECT_EQ(elements.w.to_host<float>()[5], before.second[5]);
}

TEST(Bf16Moments, BytesMovedAreCounted) {
  Context context;
  EXPECT_EQ(bytes_of(Elements(context, DType::f32, 100).step(1)), 28 * 100 + 4);
  EXPECT_EQ(bytes_of(Elements(context, DType::bf16, 100).step(1)), 20 * 100 + 4);
}

// As a checkpoint's moments travel: to nearest on the way in, exactly on the way out.
TEST(Bf16Moments, AreRoundedToNearestFromWholeBuffers) {
  Context context;
  ParameterStore store;
  store.add({{.path = "weight", .rows = 10, .columns = 10}});
  store.allocate(context, DType::f32);
  const int64_t n = store.own_elements();
  std::vector<float> values, expected;
  for (int64_t i = 0; i < n; ++i) {
    values.push_back(static_cast<float>(normal(4, static_cast<uint64_t>(i))));
    expected.push_back(float_from_bf16(bf16_from_float(values.back())));
  }
  const Tensor whole = Tensor::from(context, {n}, values), own = Tensor::zeros(context, {n}, DType::bf16);
  store.keep_own(whole, own);
  store.spread_own(own, whole);
  EXPECT_EQ(whole.to_host<float>(), expected);
}

}  // namespace
}  // namespace egmla

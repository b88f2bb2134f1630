// The power law of a scaling run on synthetic data.
#include <gtest/gtest.h>

#include <cmath>

#include "lab/power_law.h"

namespace egmla {
namespace {

TEST(PowerLaw, ExactDataGiveTheLawBack) {
  std::vector<SizedLoss> points;
  for (double size : {5e6, 16e6, 45e6, 110e6}) points.push_back({size, 12.5 * std::pow(size, -0.076)});
  const auto law = fit_power_law(points);
  ASSERT_TRUE(law);
  EXPECT_NEAR(law->exponent, 0.076, 1e-12);
  EXPECT_NEAR(law->coefficient, 12.5, 1e-9);
  EXPECT_LT(law->exponent_error, 1e-9);
  EXPECT_NEAR(law->at(1e9), 12.5 * std::pow(1e9, -0.076), 1e-9);
}

// Four sizes at log size 0, 1, 2, 3 with residuals r (1, -1, -1, 1), which are orthogonal to the line: the slope stays,
// its variance is 4 r^2 / 2 / 5.
TEST(PowerLaw, TheErrorIsThatOfLeastSquares) {
  const double r = 0.01;
  std::vector<SizedLoss> points;
  for (int i = 0; i < 4; ++i) points.push_back({std::exp(i), std::exp(1.0 - 0.1 * i + r * (i % 3 == 0 ? 1 : -1))});
  const auto law = fit_power_law(points);
  ASSERT_TRUE(law);
  EXPECT_NEAR(law->exponent, 0.1, 1e-12);
  EXPECT_NEAR(law->exponent_error, r * std::sqrt(2.0 / 5.0), 1e-12);
}

TEST(PowerLaw, NeedsThreeSizesAndPositiveValues) {
  EXPECT_FALSE(fit_power_law({}));
  EXPECT_FALSE(fit_power_law({{1e6, 3.0}, {2e6, 2.5}}));
  EXPECT_FALSE(fit_power_law({{1e6, 3.0}, {1e6, 3.1}, {2e6, 2.5}, {2e6, 2.6}}));
  EXPECT_FALSE(fit_power_law({{1e6, 3.0}, {2e6, 2.5}, {4e6, std::nan("")}}));
  EXPECT_FALSE(fit_power_law({{1e6, 3.0}, {2e6, 2.5}, {0.0, 2.0}}));
  EXPECT_TRUE(fit_power_law({{1e6, 3.0}, {2e6, 2.5}, {4e6, 2.0}}));
}

}  // namespace
}  // namespace egmla

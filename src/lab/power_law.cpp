#include "lab/power_law.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace egmla {

double PowerLaw::at(double size) const {
  return coefficient * std::pow(size, -exponent);
}

std::optional<PowerLaw> fit_power_law(const std::vector<SizedLoss>& points) {
  const auto usable = [](double value) { return std::isfinite(value) && value > 0.0; };
  std::set<double> sizes;
  double mean_x = 0.0, mean_y = 0.0;
  for (const SizedLoss& point : points) {
    if (!usable(point.size) || !usable(point.loss)) return std::nullopt;
    sizes.insert(point.size);
    mean_x += std::log(point.size);
    mean_y += std::log(point.loss);
  }
  if (sizes.size() < 3) return std::nullopt;
  const auto n = static_cast<double>(points.size());
  mean_x /= n;
  mean_y /= n;
  double xx = 0.0, xy = 0.0;
  for (const SizedLoss& point : points) {
    const double x = std::log(point.size) - mean_x;
    xx += x * x;
    xy += x * (std::log(point.loss) - mean_y);
  }
  const double slope = xy / xx;
  double squares = 0.0;
  for (const SizedLoss& point : points) {
    const double residual = std::log(point.loss) - mean_y - slope * (std::log(point.size) - mean_x);
    squares += residual * residual;
  }
  return PowerLaw{.coefficient = std::exp(mean_y - slope * mean_x),
                  .exponent = -slope,
                  .exponent_error = std::sqrt(squares / (n - 2.0) / xx)};
}

}  // namespace egmla

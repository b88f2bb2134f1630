// A power law through losses of several model sizes: loss = coefficient * size ^ -exponent, without an irreducible
// part, which a handful of sizes cannot tell from the rest.
#pragma once

#include <optional>
#include <vector>

namespace egmla {

struct SizedLoss {
  double size = 0.0;  // parameters or FLOPs
  double loss = 0.0;
};

struct PowerLaw {
  double coefficient = 0.0;
  double exponent = 0.0;
  double exponent_error = 0.0;  // standard error; 0 where all points lie on the line

  double at(double size) const;
};

// Least squares of log loss on log size. Nothing with fewer than three points, fewer than three distinct sizes, or a
// value that is not positive and finite: two points leave no uncertainty to tell.
std::optional<PowerLaw> fit_power_law(const std::vector<SizedLoss>& points);

}  // namespace egmla

// Parameters and FLOPs are affine in the width F of the feed-forward layer: f(F) = f(0) + b F. Two evaluations give the
// line, and the multiple of multiple_of nearest to where it meets the reference's value is the width.
#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "lab/sweep_plan.h"
#include "train/progress.h"

namespace egmla {
namespace {

const char* name_of(HeldQuantity quantity) {
  switch (quantity) {
    case HeldQuantity::tokens:
      return "training tokens";
    case HeldQuantity::parameters:
      return "parameters without gate tables";
    case HeldQuantity::total_parameters:
      return "parameters with gate tables";
    default:
      return "FLOPs per token";
  }
}

double value_of(HeldQuantity quantity, const PlannedRun& run) {
  switch (quantity) {
    case HeldQuantity::tokens:
      return static_cast<double>(run.tokens());
    case HeldQuantity::parameters:
      return static_cast<double>(run.size.without_tables());
    case HeldQuantity::total_parameters:
      return static_cast<double>(run.size.parameters);
    default:
      return run.size.flops_per_token;
  }
}

// The run that differs from this one in the reference's axes alone; where rules skip it, any run of the reference.
const PlannedRun& reference_of(const HoldRule& hold, const SweepPlan& plan, const PlannedRun& run) {
  const PlannedRun* best = nullptr;
  size_t most = 0;
  for (const PlannedRun& candidate : plan.runs) {
    if (!matches(hold.reference, plan.axes, candidate.labels)) continue;
    if (hold.reference.empty()) return candidate;
    size_t equal = 1;
    for (size_t axis = 0; axis < run.labels.size(); ++axis) equal += candidate.labels[axis] == run.labels[axis] ? 1 : 0;
    if (equal > most) best = &candidate;
    most = std::max(most, equal);
  }
  check_usage(best != nullptr, "hold: reference matches no run; the rules under skip leave it out");
  return *best;
}

int64_t solved_width(HeldQuantity quantity, const PlannedRun& run, double target, int64_t multiple) {
  const auto value_at = [&](int64_t width) {
    PlannedRun other = run;
    other.config.model.intermediate_size = width;
    other.size = model_size(other.config);
    return value_of(quantity, other);
  };
  const double one = value_at(multiple), two = value_at(2 * multiple);
  const auto steps = static_cast<int64_t>(std::llround((target - one) / (two - one))) + 1;
  check_usage(
      steps >= 1,
      "hold: {}: {} of the reference cannot be reached, the rest of the model is larger; choose another reference "
      "or other widths",
      run.name, name_of(quantity));
  return steps * multiple;
}

}  // namespace

void hold_equal(const SweepFile& file, SweepPlan& plan) {
  const SweepPlan before = plan;
  for (PlannedRun& run : plan.runs) {
    const PlannedRun& reference = reference_of(file.hold, before, run);
    for (const HeldQuantity quantity : file.hold.quantities) {
      const double target = value_of(quantity, reference), own = value_of(quantity, run);
      if (reference.labels == run.labels || own == target) continue;
      std::vector<std::string> settings;
      if (quantity == HeldQuantity::tokens) {
        settings = {"train.max_steps=null", fmt::format("train.max_tokens={}", reference.tokens())};
      } else {
        const int64_t width = solved_width(quantity, run, target, file.hold.multiple_of);
        if (width == run.config.model.intermediate_size) continue;
        settings = {fmt::format("model.intermediate_size={}", width)};
      }
      add_overrides(run, plan.base, settings);
      if (&run != plan.runs.data() && (&run - 1)->labels == run.labels) continue;  // said for its first seed
      plan.notes.push_back(fmt::format("{}: {}; {} {} -> {}, held at {}", run.name, settings.back(), name_of(quantity),
                                       format_count(own), format_count(value_of(quantity, run)), format_count(target)));
    }
  }
}

}  // namespace egmla

// What a study of several models asks: loss against cache, against size, and where a gate helps.
#pragma once

#include <string>
#include <vector>

#include "lab/report_data.h"

namespace egmla {

// The trade-off that latents are for; empty unless runs with different caches are there.
std::string cache_figures(const std::vector<RunData>& runs);

// Loss against parameters and FLOPs with a fitted power law for each attention that has at least three sizes: pairs of
// width and depth. Empty when none has.
std::string scaling_figures(const std::vector<RunData>& runs);
SummaryTable power_law_table(const std::vector<RunData>& runs);

// Benefit of a gate by how often the token read was seen in training, of the runs with a comparison.
std::string benefit_figures(const std::vector<RunData>& runs);

}  // namespace egmla

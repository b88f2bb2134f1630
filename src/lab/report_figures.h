// The report's charts as HTML: losses against tokens, FLOPs and time, cache against loss, rates and norms.
#pragma once

#include <string>
#include <vector>

#include "lab/report_data.h"
#include "lab/svg_chart.h"

namespace egmla {

// The colour of the run that is `rank`-th best; 0 is the background's.
int color_of(size_t rank);

std::vector<Point> train_loss(const RunData& run);  // against tokens

std::string loss_figures(const std::vector<RunData>& runs);   // against tokens, wide
std::string cost_figures(const std::vector<RunData>& runs);   // against FLOPs and time; cache against final loss
std::string small_figures(const std::vector<RunData>& runs);  // learning rate, gradient norm, throughput

}  // namespace egmla

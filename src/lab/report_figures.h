// The report's charts as HTML: losses against tokens, FLOPs and time, rates and norms.
#pragma once

#include <string>
#include <vector>

#include "lab/report_data.h"
#include "lab/svg_chart.h"

namespace egmla {

// The colour of the setting that is `rank`-th best; 0 is the background's.
int color_of(size_t rank);

std::vector<Point> train_loss(const RunData& run);  // against tokens

// The tables' and charts' words for numbers on an axis.
std::string tick_count(double value);   // "0", "500k", "2.5M"
std::string tick_number(double value);  // "0", "2e-4", "0.5"

std::string figure(const std::string& title, const std::string& content);

// A chart as wide as the page, and one for a phone, of which the style sheet shows one.
template <class MakeChart>
std::string wide_and_narrow(MakeChart make_chart) {
  return "<div class=\"wide\">" + svg_chart(make_chart(true)) + "</div><div class=\"narrow\">" +
         svg_chart(make_chart(false)) + "</div>";
}

std::string loss_figures(const std::vector<RunData>& runs);   // against tokens, wide
std::string cost_figures(const std::vector<RunData>& runs);   // against FLOPs and time
std::string small_figures(const std::vector<RunData>& runs);  // learning rate, gradient norm, throughput

}  // namespace egmla

#include "lab/report_studies.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "lab/power_law.h"
#include "lab/report_figures.h"
#include "train/progress.h"

namespace egmla {
namespace {

constexpr int64_t kTellingTokens = 1000;  // a bin of fewer says nothing

Chart study_chart(const char* description, const char* x_label, const char* y_label, bool wide) {
  Chart chart;
  chart.description = description;
  chart.x_label = x_label;
  chart.y_label = y_label;
  chart.x_text = tick_count;
  chart.y_text = tick_number;
  chart.x_log = true;
  chart.width = wide ? 1080 : 370;
  chart.height = wide ? 400 : 290;
  return chart;
}

Chart cache_chart(const std::vector<RunData>& runs, bool wide) {
  Chart chart = study_chart("Final loss against cached elements per token", "cached elements per token, all layers",
                            "final loss, nats per token", wide);
  const std::vector<RunSetting> settings = settings_of(runs);
  double worst = 0.0, best = std::numeric_limits<double>::infinity();
  for (size_t rank = settings.size(); rank-- > 0;) {
    const RunSetting& setting = settings[rank];
    const RunData& run = runs[setting.runs.front()];
    if (!run.cache_elements || !(*run.cache_elements > 0.0) || !std::isfinite(setting.loss)) continue;
    if (color_of(rank) > 0) worst = std::max(worst, setting.loss + setting.spread.value_or(0.0));
    best = std::min(best, setting.loss);
    chart.series.push_back({.label = color_of(rank) > 0 ? setting.name : "",
                            .points = {{*run.cache_elements, setting.loss}},
                            .color = color_of(rank),
                            .style = SeriesStyle::dots,
                            .errors = {setting.spread.value_or(0.0)}});
  }
  if (settings.size() > kChartColors) chart.y_max = worst + 0.1 * (worst - best);
  return chart;
}

// The runs of one attention.
struct Family {
  std::string name;
  std::vector<const RunData*> runs;
};

std::string value_of(const RunData& run, const char* key) {
  const auto found = run.config.find(key);
  return found == run.config.end() ? "" : found->second;
}

// Attentions with at least three sizes. A size is a width and a depth: what an ablation adds or takes is none.
std::vector<Family> families_of(const std::vector<RunData>& runs) {
  std::map<std::string, Family> families;
  std::map<std::string, std::set<std::string>> sizes;
  for (const RunData& run : runs) {
    const std::string attention = value_of(run, "model.attention.type");
    if (attention.empty() || !run.parameters || !run.flops_per_token || !std::isfinite(run.final_loss())) continue;
    families[attention].name = attention;
    families[attention].runs.push_back(&run);
    sizes[attention].insert(value_of(run, "model.hidden_size") + " " + value_of(run, "model.num_hidden_layers"));
  }
  std::vector<Family> out;
  for (const auto& [name, family] : families) {
    if (sizes[name].size() >= 3) out.push_back(family);
  }
  return out;
}

enum class Measure : uint8_t { outside_tables, all_parameters, flops };

double measure_of(const RunData& run, Measure measure) {
  if (measure == Measure::flops) return *run.flops_per_token * static_cast<double>(run.rows.back().tokens);
  return *run.parameters - (measure == Measure::outside_tables ? run.gate_tables.value_or(0.0) : 0.0);
}

std::vector<SizedLoss> losses_of(const Family& family, Measure measure) {
  std::vector<SizedLoss> points;
  for (const RunData* run : family.runs) points.push_back({measure_of(*run, measure), run->final_loss()});
  std::sort(points.begin(), points.end(), [](const SizedLoss& a, const SizedLoss& b) { return a.size < b.size; });
  return points;
}

Chart scaling_chart(const std::vector<Family>& families, Measure measure, bool wide) {
  Chart chart = study_chart("Final loss against size, with power laws",
                            measure == Measure::flops            ? "FLOPs of training"
                            : measure == Measure::all_parameters ? "parameters with gate tables"
                                                                 : "parameters without gate tables",
                            "final loss, nats per token", wide);
  if (measure == Measure::flops) chart.x_text = tick_number;
  int color = 0;
  for (const Family& family : families) {
    color = std::min(color + 1, kChartColors);
    const std::vector<SizedLoss> points = losses_of(family, measure);
    const auto law = fit_power_law(points);
    Series dots{.color = color, .style = SeriesStyle::dots}, line{.label = family.name, .color = color};
    for (const SizedLoss& point : points) dots.points.push_back({point.size, point.loss});
    if (law) {
      for (int i = 0; i <= 40; ++i) {
        const double size = points.front().size * std::pow(points.back().size / points.front().size, i / 40.0);
        line.points.push_back({size, law->at(size)});
      }
      if (wide) line.label += fmt::format(", exponent {:.3f} \u00b1 {:.3f}", law->exponent, law->exponent_error);
    }
    chart.series.push_back(std::move(line));
    chart.series.push_back(std::move(dots));
  }
  return chart;
}

Chart benefit_chart(const std::vector<RunData>& runs, bool wide) {
  Chart chart = study_chart("Benefit of the gate by how often a token was seen",
                            "times the token read was seen in training", "benefit, nats per token", wide);
  chart.reference = {0.0, "no benefit"};
  const std::vector<RunSetting> settings = settings_of(runs);
  for (size_t place = runs.size(); place-- > 0;) {
    const RunData& run = runs[place];
    Series series{.color = color_of(run.setting), .style = SeriesStyle::dotted};
    if (wide && series.color > 0) series.label = settings[run.setting].name;
    for (const CountBin& bin : run.benefit) {
      if (bin.tokens < kTellingTokens || bin.from < 1) continue;
      series.points.push_back({static_cast<double>(bin.from) * std::sqrt(3.0), bin.benefit()});
      series.errors.push_back(bin.error);
    }
    if (!series.points.empty()) chart.series.push_back(std::move(series));
  }
  return chart;
}

std::string study_figure(const std::string& title, const std::string& charts, const std::string& note) {
  return "<div class=\"large\">\n" + figure(title, charts + "<p class=\"note\">" + note + "</p>") + "</div>\n";
}

}  // namespace

std::string cache_figures(const std::vector<RunData>& runs) {
  std::set<double> caches;
  bool several = false;
  for (const RunData& run : runs) {
    if (run.cache_elements && std::isfinite(run.final_loss())) caches.insert(*run.cache_elements);
  }
  for (const RunSetting& setting : settings_of(runs)) several = several || setting.spread;
  if (caches.size() < 2) return "";
  return study_figure("Final loss against cache", wide_and_narrow([&](bool wide) { return cache_chart(runs, wide); }),
                      several ? "Means over seeds; the bars are one sample standard deviation." : "");
}

std::string scaling_figures(const std::vector<RunData>& runs) {
  const std::vector<Family> families = families_of(runs);
  if (families.empty()) return "";
  const auto charts = [&](Measure measure) {
    return wide_and_narrow([&](bool wide) { return scaling_chart(families, measure, wide); });
  };
  const std::string note = "Power laws: least squares of log loss on log size; \u00b1 is the standard error.";
  return study_figure("Final loss against parameters without gate tables", charts(Measure::outside_tables), note) +
         study_figure("Final loss against parameters with gate tables", charts(Measure::all_parameters), note) +
         study_figure("Final loss against training FLOPs", charts(Measure::flops), note);
}

SummaryTable power_law_table(const std::vector<RunData>& runs) {
  SummaryTable table{{"Attention", "Against", "Runs", "From", "To", "Exponent", "Standard error"}, {}};
  for (const Family& family : families_of(runs)) {
    for (const auto& [measure, name] : {std::pair(Measure::outside_tables, "parameters without gate tables"),
                                        std::pair(Measure::all_parameters, "parameters with gate tables"),
                                        std::pair(Measure::flops, "FLOPs of training")}) {
      const std::vector<SizedLoss> points = losses_of(family, measure);
      const auto law = fit_power_law(points);
      if (!law) continue;
      const auto size = [&](double value) {
        return measure == Measure::flops ? fmt::format("{:.2e}", value) : format_count(value);
      };
      table.rows.push_back({family.name, name, std::to_string(points.size()), size(points.front().size),
                            size(points.back().size), fmt::format("{:.4f}", law->exponent),
                            fmt::format("{:.4f}", law->exponent_error)});
    }
  }
  return table;
}

std::string benefit_figures(const std::vector<RunData>& runs) {
  std::set<std::string> others;
  bool telling = false;
  for (const RunData& run : runs) {
    if (run.benefit.empty()) continue;
    others.insert(run.benefit_over);
    for (const CountBin& bin : run.benefit) telling = telling || (bin.tokens >= kTellingTokens && bin.from > 0);
  }
  if (!telling) return "";
  const std::string over =
      others.size() == 1 && !others.begin()->empty() ? " over " + escape_html(*others.begin()) : "";
  return study_figure(
      "Benefit" + over + " by how often a token was seen",
      wide_and_narrow([&](bool wide) { return benefit_chart(runs, wide); }),
      "Loss of the other minus the run's own over the validation tokens read in each bin of counts; bins of "
      "fewer than 1000 tokens are left out. The bars are standard errors over tokens taken as "
      "independent; seeds differ by more.");
}

}  // namespace egmla

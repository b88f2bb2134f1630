#include "lab/report_figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace egmla {
namespace {

// What a chart's x counts.
enum class Along : uint8_t { tokens, flops, time };

std::optional<double> position_of(const RunData& run, const MetricsRow& row, Along along) {
  if (along == Along::time) return std::isfinite(row.time) ? std::optional(row.time) : std::nullopt;
  if (along == Along::tokens) return static_cast<double>(row.tokens);
  return run.flops_per_token ? std::optional(*run.flops_per_token * static_cast<double>(row.tokens)) : std::nullopt;
}

template <class Value>
std::vector<Point> curve(const RunData& run, Value value, Along along = Along::tokens) {
  std::vector<Point> points;
  for (const MetricsRow& row : run.rows) {
    const std::optional<double> x = position_of(run, row, along), y = value(row);
    if (x && y) points.push_back({*x, *y});
  }
  return points;
}

std::vector<Point> train_loss_along(const RunData& run, Along along) {
  return curve(
      run, [](const MetricsRow& row) { return std::optional(row.loss); }, along);
}

std::vector<Point> val_loss_along(const RunData& run, Along along) {
  return curve(
      run, [](const MetricsRow& row) { return row.val_loss; }, along);
}

std::vector<Point> val_loss(const RunData& run) {
  return val_loss_along(run, Along::tokens);
}

// A chart over tokens, as wide as the page or as a phone.
Chart token_chart(std::string title, std::string y_label, bool wide) {
  Chart chart;
  chart.description = std::move(title);
  chart.x_label = "tokens";
  chart.y_label = std::move(y_label);
  chart.x_text = tick_count;
  chart.y_text = tick_number;
  chart.width = wide ? 1080 : 370;
  chart.height = wide ? 430 : 270;
  return chart;
}

// The start of training lies far above the rest, and so may the worst of many runs: what the first fiftieth of the
// tokens and the uncoloured runs show above the others is cut off.
double loss_ceiling(const std::vector<RunData>& runs) {
  double ceiling = 0.0;
  for (const RunData& run : runs) {
    if (color_of(run.setting) == 0) break;
    const std::vector<Point> points = thin_out(train_loss(run), 400);
    const double start = points.back().x * 0.02;
    for (const Point& point : points) {
      if (point.x >= start && std::isfinite(point.y)) ceiling = std::max(ceiling, point.y);
    }
    for (const Point& point : val_loss(run)) {
      if (point.x >= start && std::isfinite(point.y)) ceiling = std::max(ceiling, point.y);
    }
  }
  return ceiling;
}

void add_reference(Chart& chart, const std::vector<RunData>& runs) {
  const auto entropy = common_unigram_entropy(runs);
  if (entropy) chart.reference = {*entropy, fmt::format("unigram entropy {:.2f}", *entropy)};
}

// Both losses of a single run, named at the lines' ends.
Chart single_loss_chart(const RunData& run, bool wide) {
  Chart chart = token_chart("Training and validation loss against tokens", "nats per token", wide);
  const std::vector<Point> train = train_loss(run), validation = val_loss(run);
  chart.series.push_back({"", thin_out(train, wide ? 1000 : 350), 1, SeriesStyle::faint});
  chart.series.push_back({"training", thin_out(train, wide ? 120 : 60), 1, SeriesStyle::line});
  if (!validation.empty()) {
    chart.series.push_back({"validation", thin_out(validation, wide ? 200 : 60), 2, SeriesStyle::dotted});
  }
  chart.y_max = loss_ceiling({run});
  add_reference(chart, {run});
  return chart;
}

// One line a run, the best on top; a setting's seeds share its colour.
template <class Curve>
Chart chart_of_runs(Chart chart, const std::vector<RunData>& runs, Curve points_of, size_t points, SeriesStyle style) {
  for (size_t rank = runs.size(); rank-- > 0;) {
    const int color = color_of(runs[rank].setting);
    chart.series.push_back({"", thin_out(points_of(runs[rank]), color > 0 ? points : points / 2), color,
                            color > 0 ? style : SeriesStyle::line});
  }
  return chart;
}

// A long name keeps its beginning and its end.
std::string shortened(const std::string& name) {
  constexpr size_t kKept = 13;
  return name.size() <= 2 * kKept ? name : name.substr(0, kKept) + "\u2026" + name.substr(name.size() - kKept);
}

// Names at the lines' ends, where there is room for them: at a setting's best run.
void name_series(Chart& chart, const std::vector<RunData>& runs) {
  const std::vector<RunSetting> settings = settings_of(runs);
  for (size_t rank = 0; rank < std::min<size_t>(settings.size(), kChartColors); ++rank) {
    chart.series[runs.size() - 1 - settings[rank].runs.front()].label = shortened(settings[rank].name);
  }
}

Chart loss_chart_of_runs(const std::vector<RunData>& runs, bool validation, bool wide) {
  Chart chart = token_chart(validation ? "Validation loss against tokens" : "Training loss against tokens",
                            "nats per token", wide);
  const size_t points = wide ? 200 : 80;
  chart = validation ? chart_of_runs(std::move(chart), runs, val_loss, points, SeriesStyle::dotted)
                     : chart_of_runs(std::move(chart), runs, train_loss, points, SeriesStyle::line);
  chart.y_max = loss_ceiling(runs);
  if (!validation) add_reference(chart, runs);  // the validation chart shows the differences, at their scale
  if (wide) name_series(chart, runs);
  return chart;
}

// The value that all but one in two hundred stay below, with room above: rare spikes must not flatten the rest.
double spike_ceiling(const std::vector<RunData>& runs) {
  std::vector<double> values;
  for (const RunData& run : runs) {
    for (const MetricsRow& row : run.rows) {
      if (std::isfinite(row.grad_norm)) values.push_back(row.grad_norm);
    }
  }
  if (values.empty()) return 1.0;
  const auto rank = values.begin() + static_cast<std::ptrdiff_t>(values.size() - 1 - (values.size() - 1) / 200);
  std::nth_element(values.begin(), rank, values.end());
  return 1.15 * *rank;
}

template <class Value>
std::string small_figure(const std::vector<RunData>& runs, const std::string& title, const std::string& unit,
                         Value value, std::optional<double> ceiling = std::nullopt) {
  Chart chart = token_chart(title + " against tokens", unit, false);
  chart.height = 230;
  chart.y_min = 0.0;
  chart.y_max = ceiling;
  if (unit == "tokens/s") chart.y_text = tick_count;
  const auto points_of = [&](const RunData& run) { return curve(run, value); };
  return figure(title, svg_chart(chart_of_runs(std::move(chart), runs, points_of, 240, SeriesStyle::line)));
}

bool any_validated(const std::vector<RunData>& runs) {
  return std::any_of(runs.begin(), runs.end(), [](const RunData& run) { return run.final_val_loss().has_value(); });
}

// The unit in which the longest run's time reads best, in seconds.
std::pair<double, const char*> time_unit(const std::vector<RunData>& runs) {
  double longest = 0;
  for (const RunData& run : runs) longest = std::max(longest, run.rows.back().time);
  if (longest < 300) return {1, "seconds"};
  return longest < 3 * 3600 ? std::pair(60.0, "minutes") : std::pair(3600.0, "hours");
}

// The loss of all runs against what training cost; empty when no run knows that.
std::string cost_figure(const std::vector<RunData>& runs, Along along) {
  const bool validation = any_validated(runs), by_time = along == Along::time;
  const auto [unit, unit_name] = by_time ? time_unit(runs) : std::pair(1.0, "FLOPs");
  const auto points_of = [&, scale = unit](const RunData& run) {
    std::vector<Point> points = validation ? val_loss_along(run, along) : train_loss_along(run, along);
    for (Point& point : points) point.x /= scale;
    return points;
  };
  if (std::all_of(runs.begin(), runs.end(), [&](const RunData& run) { return points_of(run).empty(); })) return "";
  const std::string title = fmt::format("{} loss against {}", validation ? "Validation" : "Training",
                                        by_time ? "wall time" : "training FLOPs");
  Chart chart = token_chart(title, "nats per token", false);
  chart.x_label = by_time ? unit_name : "FLOPs of training";
  chart.x_text = tick_number;
  chart.y_max = loss_ceiling(runs);
  return figure(title, svg_chart(chart_of_runs(std::move(chart), runs, points_of, 120,
                                               validation ? SeriesStyle::dotted : SeriesStyle::line)));
}

}  // namespace

// The best settings have colours, the others form a grey background; so one and forty stay readable.
int color_of(size_t rank) {
  return rank < kChartColors ? static_cast<int>(rank) + 1 : 0;
}

std::string tick_count(double value) {
  static constexpr std::array<std::pair<double, const char*>, 4> kUnits = {
      {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}}};
  for (const auto& [unit, letter] : kUnits) {
    if (std::abs(value) >= unit * (1 - 1e-9)) return fmt::format("{:g}{}", value / unit, letter);
  }
  return fmt::format("{:g}", value);
}

std::string tick_number(double value) {
  if (value == 0.0 || (std::abs(value) >= 1e-2 && std::abs(value) < 1e5)) return fmt::format("{:g}", value);
  const int power = static_cast<int>(std::floor(std::log10(std::abs(value)) + 1e-9));
  return fmt::format("{:g}e{}", value / std::pow(10.0, power), power);
}

std::string figure(const std::string& title, const std::string& content) {
  return "<figure><h3>" + title + "</h3>" + content + "</figure>\n";
}

std::vector<Point> train_loss(const RunData& run) {
  return train_loss_along(run, Along::tokens);
}

std::string small_figures(const std::vector<RunData>& runs) {
  using Known = std::optional<double>;
  return "<div class=\"small\">\n" +
         small_figure(runs, "Learning rate", "of AdamW, at each step",
                      [](const MetricsRow& row) { return Known(row.lr); }) +
         small_figure(
             runs, "Gradient norm", "norm before clipping", [](const MetricsRow& row) { return Known(row.grad_norm); },
             spike_ceiling(runs)) +
         small_figure(runs, "Throughput", "tokens/s", [](const MetricsRow& row) { return Known(row.tokens_per_s); }) +
         "</div>\n";
}

std::string cost_figures(const std::vector<RunData>& runs) {
  const std::string figures = cost_figure(runs, Along::flops) + cost_figure(runs, Along::time);
  return figures.empty() ? "" : "<div class=\"small\">\n" + figures + "</div>\n";
}

std::string loss_figures(const std::vector<RunData>& runs) {
  if (runs.size() == 1) {
    return figure("Loss", wide_and_narrow([&](bool wide) { return single_loss_chart(runs[0], wide); }));
  }
  std::string out;
  if (any_validated(runs)) {
    out += figure("Validation loss", wide_and_narrow([&](bool wide) { return loss_chart_of_runs(runs, true, wide); }));
  }
  return out +
         figure("Training loss", wide_and_narrow([&](bool wide) { return loss_chart_of_runs(runs, false, wide); }));
}

}  // namespace egmla

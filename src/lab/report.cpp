#include "lab/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "core/check.h"
#include "core/files.h"
#include "lab/report_data.h"
#include "lab/report_style.h"
#include "lab/svg_chart.h"
#include "train/progress.h"

namespace egmla {
namespace {

// The best runs have colours, the others form a grey background; so one run and forty stay readable.
int color_of(size_t rank) {
  return rank < kChartColors ? static_cast<int>(rank) + 1 : 0;
}

template <class Value>
std::vector<Point> curve(const RunData& run, Value value) {
  std::vector<Point> points;
  for (const MetricsRow& row : run.rows) {
    if (const std::optional<double> y = value(row)) points.push_back({static_cast<double>(row.tokens), *y});
  }
  return points;
}

std::vector<Point> train_loss(const RunData& run) {
  return curve(run, [](const MetricsRow& row) { return std::optional(row.loss); });
}

std::vector<Point> val_loss(const RunData& run) {
  return curve(run, [](const MetricsRow& row) { return row.val_loss; });
}

// "0", "500k", "2.5M"
std::string tick_count(double value) {
  static constexpr std::array<std::pair<double, const char*>, 4> kUnits = {
      {{1e12, "T"}, {1e9, "B"}, {1e6, "M"}, {1e3, "k"}}};
  for (const auto& [unit, letter] : kUnits) {
    if (std::abs(value) >= unit * (1 - 1e-9)) return fmt::format("{:g}{}", value / unit, letter);
  }
  return fmt::format("{:g}", value);
}

// "0", "2e-4", "0.5"
std::string tick_number(double value) {
  if (value == 0.0 || (std::abs(value) >= 1e-2 && std::abs(value) < 1e5)) return fmt::format("{:g}", value);
  const int power = static_cast<int>(std::floor(std::log10(std::abs(value)) + 1e-9));
  return fmt::format("{:g}e{}", value / std::pow(10.0, power), power);
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
  for (size_t rank = 0; rank < runs.size() && color_of(rank) > 0; ++rank) {
    const RunData& run = runs[rank];
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

// One line a run, the best on top.
template <class Curve>
Chart chart_of_runs(Chart chart, const std::vector<RunData>& runs, Curve points_of, size_t points, SeriesStyle style) {
  for (size_t rank = runs.size(); rank-- > 0;) {
    const int color = color_of(rank);
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

// Names at the lines' ends where there is room for them.
void name_series(Chart& chart, const std::vector<RunData>& runs) {
  for (size_t rank = 0; rank < std::min<size_t>(runs.size(), kChartColors); ++rank) {
    chart.series[runs.size() - 1 - rank].label = shortened(runs[rank].name);
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

std::string figure(const std::string& title, const std::string& content) {
  return "<figure><h3>" + title + "</h3>" + content + "</figure>\n";
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

std::string small_figures(const std::vector<RunData>& runs) {
  using Known = std::optional<double>;
  return "<div class=\"small\">\n" +
         small_figure(runs, "Learning rate", "", [](const MetricsRow& row) { return Known(row.lr); }) +
         small_figure(
             runs, "Gradient norm", "before clipping", [](const MetricsRow& row) { return Known(row.grad_norm); },
             spike_ceiling(runs)) +
         small_figure(runs, "Throughput", "tokens/s", [](const MetricsRow& row) { return Known(row.tokens_per_s); }) +
         "</div>\n";
}

template <class MakeChart>
std::string wide_and_narrow(MakeChart make_chart) {
  return "<div class=\"wide\">" + svg_chart(make_chart(true)) + "</div><div class=\"narrow\">" +
         svg_chart(make_chart(false)) + "</div>";
}

std::string loss_figures(const std::vector<RunData>& runs) {
  if (runs.size() == 1) {
    return figure("Loss", wide_and_narrow([&](bool wide) { return single_loss_chart(runs[0], wide); }));
  }
  std::string out;
  const auto validated = [](const RunData& run) { return run.final_val_loss().has_value(); };
  if (std::any_of(runs.begin(), runs.end(), validated)) {
    out += figure("Validation loss", wide_and_narrow([&](bool wide) { return loss_chart_of_runs(runs, true, wide); }));
  }
  return out +
         figure("Training loss", wide_and_narrow([&](bool wide) { return loss_chart_of_runs(runs, false, wide); }));
}

std::string key_of(size_t rank) {
  return fmt::format("<span class=\"key b{}\"></span>", color_of(rank));
}

std::string legend(const std::vector<RunData>& runs) {
  if (runs.size() == 1) return "";
  std::string out = "<ul class=\"legend\">";
  const size_t named = std::min<size_t>(runs.size(), kChartColors);
  for (size_t rank = 0; rank < named; ++rank) out += "<li>" + key_of(rank) + escape_html(runs[rank].name) + "</li>";
  if (runs.size() > named) out += fmt::format("<li>{}{} more</li>", key_of(named), runs.size() - named);
  return out + "</ul>\n";
}

// The first column gets the run's colour where there is more than one.
std::string table(const SummaryTable& content) {
  std::string out = "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& heading : content.headings) out += "<th>" + escape_html(heading) + "</th>";
  out += "</tr></thead><tbody>\n";
  for (size_t row = 0; row < content.rows.size(); ++row) {
    out += "<tr>";
    for (size_t column = 0; column < content.rows[row].size(); ++column) {
      const bool keyed = column == 0 && content.rows.size() > 1;
      out += "<td>" + (keyed ? key_of(row) : "") + escape_html(content.rows[row][column]) + "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

// One block of text for each run: plain for a single run, folded for many.
std::string texts(const std::vector<RunData>& runs, const std::string& heading, std::string RunData::*text) {
  std::string out;
  for (const RunData& run : runs) {
    if ((run.*text).empty()) continue;
    const std::string block = "<pre>" + escape_html(run.*text) + "</pre>";
    out +=
        runs.size() == 1 ? block : "<details><summary>" + escape_html(run.name) + "</summary>" + block + "</details>\n";
  }
  return out.empty() ? "" : "<h2>" + heading + "</h2>\n" + out;
}

std::string html_page(const std::vector<RunData>& runs) {
  const std::string title = escape_html(runs.size() == 1 ? runs[0].name : fmt::format("{} runs", runs.size()));
  std::string page =
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
      "<title>" +
      title + "</title>\n<style>" + kReportStyle + "</style>\n</head>\n<body>\n";
  page += "<h1>" + title + "</h1>\n<p class=\"lead\">" + escape_html(summary_sentence(runs)) + "</p>\n";
  page += legend(runs) + "<div class=\"large\">\n" + loss_figures(runs) + "</div>\n" + small_figures(runs);
  page +=
      "<p class=\"note\">Each point is the mean of neighbouring steps. Lines that leave a chart at its top go on "
      "above: "
      "the loss of the first steps, rare spikes of the gradient norm, runs far behind the best.</p>\n";
  page += "<h2>" + std::string(runs.size() == 1 ? "The run" : "Runs") + "</h2>\n" + table(summary_table(runs));
  if (!differing_keys(runs).empty()) page += "<h2>What differs</h2>\n" + table(difference_table(runs));
  page += texts(runs, "Samples", &RunData::samples) + texts(runs, "Configuration", &RunData::config_yaml);
  return page + "</body>\n</html>\n";
}

// --- Markdown ---

std::string markdown_cell(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '|' || c == '\\') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

std::string markdown_table(const SummaryTable& content) {
  std::string out = "|", rule = "|";
  for (size_t column = 0; column < content.headings.size(); ++column) {
    out += " " + markdown_cell(content.headings[column]) + " |";
    rule += column == 0 ? "---|" : "---:|";
  }
  out += "\n" + rule + "\n";
  for (const auto& row : content.rows) {
    out += "|";
    for (const std::string& cell : row) out += " " + markdown_cell(cell) + " |";
    out += "\n";
  }
  return out + "\n";
}

// The loss of every run at a tenth, two tenths ... of the longest run: the curves in numbers.
SummaryTable loss_table(const std::vector<RunData>& runs) {
  double longest = 0.0;
  for (const RunData& run : runs) longest = std::max(longest, static_cast<double>(run.rows.back().tokens));
  SummaryTable out{{"Training loss at"}, {}};
  for (int tenth = 1; tenth <= 10; ++tenth) out.headings.push_back(format_count(longest * tenth / 10.0));
  for (const RunData& run : runs) {
    const std::vector<Point> points = train_loss(run);
    std::vector<std::string> row = {run.name};
    for (int tenth = 1; tenth <= 10; ++tenth) {
      double sum = 0.0, count = 0.0;  // over the hundredth of the tokens before
      for (const Point& point : points) {
        const double behind = longest * tenth / 10.0 - point.x;
        if (behind < -0.5 || behind > longest * 0.01 || !std::isfinite(point.y)) continue;
        sum += point.y;
        ++count;
      }
      row.push_back(count > 0.0 ? fmt::format("{:.4f}", sum / count) : "");
    }
    out.rows.push_back(std::move(row));
  }
  return out;
}

std::string markdown_page(const std::vector<RunData>& runs) {
  const std::string title = runs.size() == 1 ? runs[0].name : fmt::format("{} runs", runs.size());
  std::string page = "# " + title + "\n\n" + summary_sentence(runs) + "\n\n" + markdown_table(summary_table(runs));
  page += "## Curves\n\n" + markdown_table(loss_table(runs));
  if (!differing_keys(runs).empty()) page += "## What differs\n\n" + markdown_table(difference_table(runs));
  for (const RunData& run : runs) {
    if (!run.samples.empty()) page += "## Samples of " + run.name + "\n\n~~~~\n" + run.samples + "\n~~~~\n\n";
  }
  return page;
}

}  // namespace

void write_report(const std::vector<std::string>& run_dirs, const std::string& out_path, ReportFormat format) {
  const std::vector<RunData> runs = load_runs(run_dirs);
  const std::filesystem::path directory = std::filesystem::path(out_path).parent_path();
  std::error_code error;
  if (!directory.empty()) std::filesystem::create_directories(directory, error);
  check(!error, "{}: cannot be created: {}; choose another --out", directory.string(), error.message());
  write_file(out_path, format == ReportFormat::html ? html_page(runs) : markdown_page(runs));
}

}  // namespace egmla

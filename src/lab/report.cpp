#include "lab/report.h"

#include <cmath>
#include <filesystem>
#include <numeric>

#include "core/check.h"
#include "core/files.h"
#include "lab/report_data.h"
#include "lab/report_figures.h"
#include "lab/report_studies.h"
#include "lab/report_style.h"
#include "lab/svg_chart.h"
#include "train/progress.h"

namespace egmla {
namespace {

std::string key_of(size_t rank) {
  return fmt::format("<span class=\"key b{}\"></span>", color_of(rank));
}

std::string legend(const std::vector<RunData>& runs) {
  if (runs.size() == 1) return "";
  const std::vector<RunSetting> settings = settings_of(runs);
  std::string out = "<ul class=\"legend\">";
  const size_t named = std::min<size_t>(settings.size(), kChartColors);
  for (size_t rank = 0; rank < named; ++rank) out += "<li>" + key_of(rank) + escape_html(settings[rank].name) + "</li>";
  if (settings.size() > named) out += fmt::format("<li>{}{} more</li>", key_of(named), settings.size() - named);
  return out + "</ul>\n";
}

// Long headings, as keys of the configuration are, may break at their dots.
std::string heading_cell(const std::string& heading) {
  std::string out;
  for (char c : escape_html(heading)) out += c == '.' ? ".<wbr>" : std::string(1, c);
  return "<th>" + out + "</th>";
}

// The first column gets the colour of each row's setting, where `ranks` tells it.
std::string table(const SummaryTable& content, const std::vector<size_t>& ranks = {}) {
  std::string out = "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& heading : content.headings) out += heading_cell(heading);
  out += "</tr></thead><tbody>\n";
  for (size_t row = 0; row < content.rows.size(); ++row) {
    out += "<tr>";
    for (size_t column = 0; column < content.rows[row].size(); ++column) {
      const bool keyed = column == 0 && ranks.size() > 1 && row < ranks.size();
      out += "<td>" + (keyed ? key_of(ranks[row]) : "") + escape_html(content.rows[row][column]) + "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>\n";
}

std::string tables(const std::vector<RunData>& runs) {
  std::vector<size_t> of_runs, of_settings(settings_of(runs).size());
  for (const RunData& run : runs) of_runs.push_back(run.setting);
  std::iota(of_settings.begin(), of_settings.end(), 0);
  std::string out;
  const SummaryTable settings = settings_table(runs), laws = power_law_table(runs);
  if (!settings.rows.empty()) out += "<h2>Settings</h2>\n" + table(settings, of_settings);
  if (!laws.rows.empty()) out += "<h2>Power laws</h2>\n" + table(laws);
  out += "<h2>" + std::string(runs.size() == 1 ? "The run" : "Runs") + "</h2>\n" + table(summary_table(runs), of_runs);
  if (!differing_keys(runs).empty()) out += "<h2>What differs</h2>\n" + table(difference_table(runs), of_settings);
  const SummaryTable hardware = hardware_table(runs);
  if (hardware.headings.size() > 1) out += "<h2>Hardware and version</h2>\n" + table(hardware);
  return out;
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
  page += legend(runs) + "<div class=\"large\">\n" + loss_figures(runs) + "</div>\n" + cache_figures(runs) +
          scaling_figures(runs) + benefit_figures(runs) + cost_figures(runs) + small_figures(runs);
  page +=
      "<p class=\"note\">Each point is the mean of neighbouring steps. Lines that leave a chart at its top go on "
      "above: "
      "the loss of the first steps, rare spikes of the gradient norm, runs far behind the best.</p>\n";
  page += tables(runs);
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
  std::string page = "# " + title + "\n\n" + summary_sentence(runs) + "\n\n";
  const SummaryTable settings = settings_table(runs), laws = power_law_table(runs);
  if (!settings.rows.empty()) page += "## Settings\n\n" + markdown_table(settings) + "## Runs\n\n";
  page += markdown_table(summary_table(runs));
  if (!laws.rows.empty()) page += "## Power laws\n\n" + markdown_table(laws);
  page += "## Curves\n\n" + markdown_table(loss_table(runs));
  if (!differing_keys(runs).empty()) page += "## What differs\n\n" + markdown_table(difference_table(runs));
  const SummaryTable hardware = hardware_table(runs);
  if (hardware.headings.size() > 1) page += "## Hardware and version\n\n" + markdown_table(hardware);
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

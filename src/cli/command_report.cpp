// egmla report: curves and tables of runs side by side.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "lab/report.h"

namespace egmla {
namespace {

struct ReportOptions {
  std::vector<std::string> runs;
  std::string out;
  std::string format = "html";
};

}  // namespace

void add_report_command(CLI::App& app) {
  const auto options = std::make_shared<ReportOptions>();
  CLI::App* command = app.add_subcommand("report", "Curves and tables of runs, in one self-contained file");
  command->add_option("RUN", options->runs, "run directories")->required();
  command->add_option("--out", options->out, "file to write")->required();
  command->add_option("--format", options->format, "html or md")
      ->check(CLI::IsMember({"html", "md"}))
      ->capture_default_str();
  command->footer("Example: egmla report runs/mha runs/egmla --out report.html");
  command->callback([options] {
    const bool html = options->format == "html";
    write_report(options->runs, options->out, html ? ReportFormat::html : ReportFormat::markdown);
    fmt::print("{}\n", options->out);
  });
}

}  // namespace egmla

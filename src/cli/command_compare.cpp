// egmla compare: two trained models on the same validation data, by how often a token was seen in training.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/files.h"
#include "lab/compare.h"

namespace egmla {
namespace {

struct CompareOptions {
  std::string run, other, out;
  std::vector<std::string> overrides;
  bool json = false;
};

}  // namespace

void add_compare_command(CLI::App& app) {
  const auto options = std::make_shared<CompareOptions>();
  CLI::App* command =
      app.add_subcommand("compare", "Losses of two models by how often the token read was seen in training");
  command->add_option("RUN", options->run, "run directory or checkpoint; what it was trained on is counted")
      ->required();
  command->add_option("OTHER", options->other, "another of the same vocabulary")->required();
  command->add_option("OVERRIDES", options->overrides, "overrides, for example data.val=other.bin")
      ->type_name("KEY=VALUE");
  command->add_option("--out", options->out, "file for the result as JSON; a report of RUN draws RUN/comparison.json");
  command->add_flag("--json", options->json, "print JSON instead of a table");
  command->footer(
      "The benefit is the other's loss minus the run's, in nats per token, with its standard error.\n"
      "Example: egmla compare runs/egmla runs/mla --out runs/egmla/comparison.json");
  command->callback([options] {
    const Comparison comparison = compare_runs(options->run, options->other, options->overrides);
    if (!options->out.empty()) write_file(options->out, comparison_json(comparison));
    fmt::print("{}", options->json ? comparison_json(comparison) : comparison_text(comparison));
  });
}

}  // namespace egmla

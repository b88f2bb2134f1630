// egmla sweep: a grid of runs from one file, and one table at the end.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "lab/sweep.h"

namespace egmla {
namespace {

struct SweepCommand {
  std::string file;
  bool dry_run = false;
  SweepOptions options;
};

}  // namespace

void add_sweep_command(CLI::App& app) {
  const auto command = std::make_shared<SweepCommand>();
  CLI::App* sub = app.add_subcommand("sweep", "A grid of training runs; continues where it stopped, ends with a table");
  sub->add_option("SWEEP", command->file, "the sweep (YAML)")->required();
  sub->add_flag("--dry-run", command->dry_run, "print runs, parameters, tokens, time and disk; opens no data");
  sub->add_option("--jobs", command->options.jobs, "runs at a time: one GPU each, or the CPU's threads divided")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  sub->footer(
      "Example: egmla sweep configs/sweeps/tiny.yaml --jobs 2\n"
      "Ctrl-C or SIGTERM lets the runs save; the same command goes on from there. docs/sweeps.md describes the file.");
  sub->callback([command] {
    fmt::print("{}", command->dry_run ? sweep_overview(command->file, command->options)
                                      : run_sweep(command->file, command->options));
  });
}

}  // namespace egmla

// egmla sweep: grids of runs, each from one file, and a table for each.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "lab/sweep.h"

namespace egmla {
namespace {

struct SweepCommand {
  std::vector<std::string> files;
  bool dry_run = false;
  SweepOptions options;
};

}  // namespace

void add_sweep_command(CLI::App& app) {
  const auto command = std::make_shared<SweepCommand>();
  CLI::App* sub = app.add_subcommand("sweep", "A grid of training runs; continues where it stopped, ends with a table");
  sub->add_option("SWEEP", command->files, "sweeps (YAML), run in this order")->required();
  sub->add_flag("--dry-run", command->dry_run, "print runs, parameters, tokens, time and disk; opens no data");
  sub->add_option("--jobs", command->options.jobs, "runs at a time: one GPU each, or the CPU's threads divided")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  sub->add_flag("--share-gpus", command->options.share_gpus,
                "let several runs have the same GPU: small runs end sooner together, but their times mean little");
  sub->add_option("--time-limit", command->options.time_limit,
                  "seconds; start no run that would not end by then, going by the runs before it; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  sub->footer(
      "Example: egmla sweep configs/sweeps/tiny.yaml --jobs 2\n"
      "Ctrl-C or SIGTERM lets the runs save; the same command goes on from there. docs/sweeps.md describes the file.");
  sub->callback([command] {
    fmt::print("{}", command->dry_run ? sweep_overview(command->files, command->options)
                                      : run_sweeps(command->files, command->options));
  });
}

}  // namespace egmla

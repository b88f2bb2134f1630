// egmla config: the resolved configuration, every key with where its value came from.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/check.h"
#include "io/config.h"

namespace egmla {
namespace {

struct ConfigOptions {
  std::string file;
  std::vector<std::string> overrides;
  bool reference = false;
};

}  // namespace

void add_config_command(CLI::App& app) {
  const auto options = std::make_shared<ConfigOptions>();
  CLI::App* command = app.add_subcommand("config", "The resolved configuration and where each value came from");
  command->add_option("CONFIG", options->file, "configuration file (YAML)");
  command->add_option("OVERRIDES", options->overrides, "values in place of the file's")->type_name("KEY=VALUE");
  command->add_flag("--reference", options->reference, "print the reference of all keys (Markdown) instead");
  command->footer("Example: egmla config configs/quickstart.yaml train.max_steps=100");
  command->callback([options] {
    if (options->reference) {
      fmt::print("{}", configuration_reference());
      return;
    }
    check_usage(!options->file.empty(), "CONFIG is missing; give a configuration file, or --reference");
    fmt::print("{}", resolved_yaml(load_config(options->file, options->overrides), true));
  });
}

}  // namespace egmla

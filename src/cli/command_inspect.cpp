// egmla inspect: what a model costs before it runs.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "infer/trained_model.h"
#include "lab/inspect.h"

namespace egmla {
namespace {

struct InspectOptions {
  std::string path;
  std::vector<std::string> overrides;
  int processes = 1;
  bool json = false;
};

Config read_config(const InspectOptions& options) {
  const std::filesystem::path path = options.path;
  const bool trained = std::filesystem::is_directory(path) || path.extension() == ".h5";
  if (!trained) return load_config(options.path, options.overrides);
  const std::string checkpoint = find_checkpoint(options.path);
  return parse_config(CheckpointReader(checkpoint).config_yaml(), checkpoint, options.overrides);
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  const auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Parameters, cached elements, FLOPs and memory of a model; opens no data");
  command->add_option("CONFIG|RUN|CHECKPOINT", options->path, "configuration, run directory or checkpoint")->required();
  command->add_option("OVERRIDES", options->overrides, "for example model.attention.kv_lora_rank=64")
      ->type_name("KEY=VALUE");
  command->add_option("--processes", options->processes, "memory of one of so many; matters with parallel.zero_stage=1")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer("Example: egmla inspect configs/paper/120m_egmla_kv64.yaml");
  command->callback([options] {
    const Config config = read_config(*options);
    const Inspection found = inspect(config, options->processes);
    fmt::print("{}{}", options->json ? inspection_json(found) : inspection_text(config, found),
               options->json ? "\n" : "");
  });
}

}  // namespace egmla

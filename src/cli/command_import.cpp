// egmla import: a Hugging Face directory as a checkpoint, with a configuration that trains on from it.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "core/files.h"
#include "infer/hf_import.h"

namespace egmla {
namespace {

struct ImportOptions {
  std::string directory, out, config;
};

void run_import(const ImportOptions& options) {
  const Config config = import_hf(options.directory, options.out);
  if (!options.config.empty()) write_file(options.config, resolved_yaml(config, false));
  fmt::print("checkpoint  {}\n", options.out);
  if (options.config.empty()) return;
  fmt::print("config      {}\nnext        set data.train and train.max_steps there, then: egmla train {}\n",
             options.config, options.config);
}

}  // namespace

void add_import_command(CLI::App& app) {
  const auto options = std::make_shared<ImportOptions>();
  CLI::App* command =
      app.add_subcommand("import", "A Hugging Face directory (Llama, dense DeepSeek-V3, our exports) as a checkpoint");
  command->add_option("DIR", options->directory, "directory with config.json and safetensors")->required();
  command->add_option("--out", options->out, "checkpoint file to write, for example step-00000000.h5")->required();
  command->add_option("--config", options->config, "configuration to write that trains on from the checkpoint");
  command->footer("Example: egmla import exports/quickstart --out imported.h5 --config imported.yaml");
  command->callback([options] { run_import(*options); });
}

}  // namespace egmla

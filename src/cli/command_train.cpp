// egmla train: pre-training, from scratch or from where it stopped.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "io/config.h"
#include "train/trainer.h"

namespace egmla {
namespace {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;
};

}  // namespace

void add_train_command(CLI::App& app) {
  const auto options = std::make_shared<TrainOptions>();
  CLI::App* command =
      app.add_subcommand("train", "Pre-train a model; resumes by itself when the run directory has a checkpoint");
  command->add_option("CONFIG", options->config, "configuration (YAML)")->required();
  command->add_option("OVERRIDES", options->overrides, "overrides, for example train.max_steps=100")
      ->type_name("KEY=VALUE");
  command->footer(
      "Examples:\n"
      "  egmla train configs/quickstart.yaml\n"
      "  egmla train configs/quickstart.yaml run.name=wide model.hidden_size=256 train.max_steps=500\n"
      "  mpirun -n 4 egmla train configs/quickstart.yaml\n"
      "Ctrl-C or SIGTERM saves a checkpoint and leaves; the same command goes on from there.");
  command->callback([options] { train(load_config(options->config, options->overrides)); });
}

}  // namespace egmla

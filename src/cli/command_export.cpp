// egmla export: a checkpoint as a directory that transformers loads.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "infer/hf_export.h"

namespace egmla {
namespace {

struct ExportOptions {
  std::string path, out, format = "hf", dtype = "bf16";
};

void run_export(const ExportOptions& options) {
  const HfExportSummary done =
      export_hf(options.path, {.out = options.out, .dtype = options.dtype == "fp32" ? DType::f32 : DType::bf16});
  fmt::print("checkpoint  {}\nclass       {}{}\nweights     {} bytes in {} file{}, read back and verified\n",
             done.checkpoint, hf_class(done.architecture),
             done.architecture == HfArchitecture::egmla ? " (load it with trust_remote_code=True)" : "",
             done.weight_bytes, done.weight_files.size(), done.weight_files.size() == 1 ? "" : "s");
  if (!done.tokenizer) fmt::print("tokenizer   none: the run has no data.tokenizer; token ids in, token ids out\n");
  fmt::print("directory   {}\n", options.out);
}

}  // namespace

void add_export_command(CLI::App& app) {
  const auto options = std::make_shared<ExportOptions>();
  CLI::App* command = app.add_subcommand("export", "A trained model as a Hugging Face directory");
  command->add_option("RUN|CHECKPOINT", options->path, "run directory (its newest checkpoint) or a checkpoint")
      ->required();
  command->add_option("--format", options->format, "layout of the directory")
      ->check(CLI::IsMember({"hf"}))
      ->capture_default_str();
  command->add_option("--out", options->out, "directory to write; an earlier export there is replaced")->required();
  command->add_option("--dtype", options->dtype, "type of the weights")
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  command->footer("Example: egmla export runs/quickstart --format hf --out exports/quickstart --dtype fp32");
  command->callback([options] { run_export(*options); });
}

}  // namespace egmla

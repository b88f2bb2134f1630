// egmla eval: loss, perplexity and bits per byte on validation data.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/files.h"
#include "infer/evaluator.h"
#include "infer/trained_model.h"

namespace egmla {
namespace {

struct EvalOptions {
  std::string path, per_token;
  std::vector<std::string> overrides;
  bool json = false;
};

void print(const EvalOptions& options, const TrainedModel& trained, const Evaluation& result) {
  if (options.json) {
    nlohmann::ordered_json out = {{"checkpoint", trained.checkpoint},
                                  {"step", trained.state.step},
                                  {"loss", result.loss},
                                  {"perplexity", result.perplexity},
                                  {"tokens", result.tokens}};
    if (result.bits_per_byte) out["bits_per_byte"] = *result.bits_per_byte;
    fmt::print("{}\n", out.dump());
    return;
  }
  fmt::print(
      "checkpoint     {}\nstep           {}\ntokens         {}\nloss           {:.6f} nats per token\nperplexity     "
      "{:.4f}\n",
      trained.checkpoint, trained.state.step, result.tokens, result.loss, result.perplexity);
  if (result.bits_per_byte) fmt::print("bits per byte  {:.4f}\n", *result.bits_per_byte);
}

void run_eval(const EvalOptions& options) {
  TrainedModel trained = load_trained_model(options.path, options.overrides);
  const Config& config = trained.config;
  check_usage(!config.data.val.empty(), "data.val: no validation data; add data.val=SHARD");
  const ValidationSet data(config.data.val, config.data.sequence_length, config.model.vocab_size);
  std::optional<int32_t> border;
  if (config.data.mask_documents) border = trained.need_tokenizer().end_of_text();
  EvaluationOptions evaluation{.micro_batch_size = config.train.micro_batch_size, .batches = config.train.eval.batches};
  if (trained.tokenizer)
    evaluation.bytes_of = [&](int32_t id) { return static_cast<int64_t>(trained.tokenizer->bytes_of(id).size()); };
  std::string lines;
  if (!options.per_token.empty()) evaluation.per_token = [&](double loss) { lines += fmt::format("{:.9g}\n", loss); };
  const Evaluation result =
      evaluate(*trained.model, data, BatchBuilder(config.data.sequence_length, border), evaluation);
  if (!options.per_token.empty()) write_file(options.per_token, lines);
  print(options, trained, result);
}

}  // namespace

void add_eval_command(CLI::App& app) {
  const auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand("eval", "Validation loss, perplexity and bits per byte of a trained model");
  command->add_option("RUN|CHECKPOINT", options->path, "run directory (its newest checkpoint) or a checkpoint")
      ->required();
  command->add_option("OVERRIDES", options->overrides, "overrides, for example data.val=other.bin")
      ->type_name("KEY=VALUE");
  command->add_option("--per-token", options->per_token,
                      "file for each token's loss in nats, one a line, in data order");
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer("Example: egmla eval runs/quickstart --json");
  command->callback([options] { run_eval(*options); });
}

}  // namespace egmla

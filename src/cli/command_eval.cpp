// egmla eval: loss, perplexity and bits per byte on validation data; multiple-choice tasks.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/files.h"
#include "infer/eval_data.h"
#include "infer/evaluator.h"
#include "infer/task_results.h"
#include "infer/trained_model.h"

namespace egmla {
namespace {

using OrderedJson = nlohmann::ordered_json;

constexpr const char* kExamples =
    "With --tasks alone, the validation data is left out.\n"
    "Examples:\n"
    "  egmla eval runs/quickstart --json\n"
    "  egmla eval runs/quickstart --stride 64\n"
    "  egmla eval runs/quickstart data.sequence_length=128 --data notes.txt 'shards/*.bin'\n"
    "  egmla eval runs/quickstart --tasks data/tasks/wordnet.jsonl arc_easy=ARC-Easy-Test.jsonl";

struct EvalOptions {
  std::string path, per_token;
  std::vector<std::string> overrides, data, tasks;
  int64_t stride = 0, limit = 0;
  bool json = false;

  // Options that take several values also take the overrides behind them.
  void collect_overrides() {
    static constexpr std::array<std::string_view, 5> kSections = {"run.", "model.", "data.", "train.", "parallel."};
    for (std::vector<std::string>* values : {&data, &tasks}) {
      std::erase_if(*values, [&](const std::string& value) {
        const bool key = std::any_of(kSections.begin(), kSections.end(),
                                     [&](std::string_view section) { return value.starts_with(section); });
        const bool found = key && value.find('=') != std::string::npos && !std::filesystem::exists(value);
        if (found) overrides.push_back(value);
        return found;
      });
    }
  }

  bool wants_loss() const { return tasks.empty() || !data.empty() || !per_token.empty() || stride > 0; }
};

Evaluation evaluate_data(const EvalOptions& options, const TrainedModel& trained) {
  const Config& config = trained.config;
  std::vector<std::string> patterns = options.data;
  for (const DataSource& source : config.data.val) {
    if (options.data.empty()) patterns.push_back(source.path);
  }
  check_usage(!patterns.empty(), "data.val: no validation data; add --data FILE or data.val=SHARD");
  const int64_t T = config.data.sequence_length;
  const ValidationSet data(open_eval_data(patterns, trained), T, options.stride > 0 ? options.stride : T);
  std::optional<int32_t> border;
  if (config.data.mask_documents) border = trained.need_tokenizer().end_of_text();
  EvaluationOptions evaluation{.micro_batch_size = config.train.micro_batch_size};
  if (trained.tokenizer) evaluation.bytes_of = [&](int32_t id) { return trained.tokenizer->text_bytes(id); };
  std::string lines;
  if (!options.per_token.empty()) evaluation.per_token = [&](double loss) { lines += fmt::format("{:.9g}\n", loss); };
  const Evaluation result = evaluate(*trained.model, data, BatchBuilder(T, border), evaluation);
  if (!options.per_token.empty()) write_file(options.per_token, lines);
  return result;
}

void add_loss(OrderedJson& out, const Evaluation& result) {
  out["loss"] = result.loss;
  out["perplexity"] = result.perplexity;
  out["tokens"] = result.tokens;
  if (result.bits_per_byte) out["bits_per_byte"] = *result.bits_per_byte;
}

void print_loss(const Evaluation& result) {
  fmt::print("tokens         {}\nloss           {:.6f} nats per token\nperplexity     {:.4f}\n", result.tokens,
             result.loss, result.perplexity);
  if (result.bits_per_byte) fmt::print("bits per byte  {:.4f}\n", *result.bits_per_byte);
}

OrderedJson json_of(const ChoiceTask& task, const TaskResult& result) {
  OrderedJson out = {{"task", task.name},      {"layout", task.layout},
                     {"file", task.path},      {"questions", result.questions},
                     {"acc", result.acc.mean}, {"acc_stderr", result.acc.error}};
  if (result.acc_norm) {
    out["acc_norm"] = result.acc_norm->mean;
    out["acc_norm_stderr"] = result.acc_norm->error;
  }
  if (result.perplexity) out["perplexity"] = *result.perplexity;
  return out;
}

void print_task(const ChoiceTask& task, const TaskResult& result) {
  const auto share = [](const std::optional<Share>& of) {
    return of ? fmt::format("{:.4f} ± {:.4f}", of->mean, of->error) : std::string("-");
  };
  fmt::print("{:<20}  {:<10}  {:>9}  {:>15}  {:>15}  {:>10}\n", task.name, task.layout, result.questions,
             share(result.acc), share(result.acc_norm),
             result.perplexity ? fmt::format("{:.3f}", *result.perplexity) : "-");
}

void run_tasks(const EvalOptions& options, TrainedModel& trained, const std::vector<ChoiceTask>& tasks,
               OrderedJson& out) {
  const int64_t batch_tokens = trained.config.train.micro_batch_size * trained.config.data.sequence_length;
  if (!options.json)
    fmt::print("{:<20}  {:<10}  {:>9}  {:>15}  {:>15}  {:>10}\n", "task", "layout", "questions", "acc", "acc_norm",
               "perplexity");
  for (const ChoiceTask& task : tasks) {
    const TaskResult result = evaluate_task(*trained.model, trained.need_tokenizer(), task, batch_tokens);
    if (options.json) {
      out["tasks"].push_back(json_of(task, result));
    } else {
      print_task(task, result);
    }
  }
}

void run_eval(const EvalOptions& options) {
  std::vector<ChoiceTask> tasks;
  for (const std::string& spec : options.tasks) tasks.push_back(read_choice_task(spec, options.limit));
  TrainedModel trained = load_trained_model(options.path, options.overrides);
  OrderedJson out = {{"checkpoint", trained.checkpoint}, {"step", trained.state.step}};
  if (!options.json) fmt::print("checkpoint     {}\nstep           {}\n", trained.checkpoint, trained.state.step);
  if (options.wants_loss()) {
    const Evaluation result = evaluate_data(options, trained);
    options.json ? add_loss(out, result) : print_loss(result);
  }
  if (!tasks.empty()) run_tasks(options, trained, tasks, out);
  if (options.json) fmt::print("{}\n", out.dump());
}

}  // namespace

void add_eval_command(CLI::App& app) {
  const auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand(
      "eval", "Validation loss, perplexity and bits per byte of a trained model; multiple-choice tasks");
  command->add_option("RUN|CHECKPOINT", options->path, "run directory (its newest checkpoint) or a checkpoint")
      ->required();
  command->add_option("OVERRIDES", options->overrides, "overrides, for example data.val=other.bin")
      ->type_name("KEY=VALUE");
  command->add_option("--data", options->data,
                      "token shards or texts (also .jsonl, .gz, .zst) instead of data.val; patterns");
  command
      ->add_option("--stride", options->stride,
                   "tokens from one window to the next; each counts once, behind at least sequence_length - stride "
                   "tokens; default: data.sequence_length")
      ->check(CLI::PositiveNumber);
  command->add_option("--tasks", options->tasks, "JSONL files of multiple-choice questions: FILE or NAME=FILE");
  command->add_option("--limit", options->limit, "only so many questions of each task")->check(CLI::PositiveNumber);
  command->add_option("--per-token", options->per_token,
                      "file for each token's loss in nats, one a line, in data order");
  command->add_flag("--json", options->json, "print one JSON object");
  command->footer(kExamples);
  command->callback([options] {
    options->collect_overrides();
    run_eval(*options);
  });
}

}  // namespace egmla

// egmla generate: text from prompts, streamed as it is drawn.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/files.h"
#include "infer/decoder.h"
#include "infer/trained_model.h"

namespace egmla {
namespace {

struct GenerateOptions {
  std::string path, prompt, prompts;
  std::vector<std::string> overrides;
  GenerationOptions generation;
};

std::vector<std::string> read_prompts(const GenerateOptions& options) {
  if (options.prompts.empty()) return {options.prompt};
  std::vector<std::string> prompts;
  std::istringstream lines(read_file(options.prompts));
  for (std::string line; std::getline(lines, line);) {
    if (!line.empty()) prompts.push_back(line);
  }
  check_usage(!prompts.empty(), "{}: holds no prompt; write one a line", options.prompts);
  return prompts;
}

void emit(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

void run_generate(const GenerateOptions& options) {
  check_usage(options.prompt.empty() != options.prompts.empty(), "generate: give --prompt TEXT or --prompts FILE");
  check_sampling(options.generation.sampling);
  const std::vector<std::string> prompts = read_prompts(options);
  TrainedModel trained = load_trained_model(options.path, options.overrides);
  const Tokenizer& tokenizer = trained.need_tokenizer();
  GenerationOptions generation = options.generation;
  generation.end_of_text = tokenizer.end_of_text();
  generation.on_token = [&](int32_t id) {
    // A model may have more ids than its tokenizer (vocabularies rounded up); those stand for nothing.
    if (id < tokenizer.vocab_size()) emit(tokenizer.bytes_of(id));
  };
  for (const std::string& prompt : prompts) {
    emit(prompt);
    generate(*trained.model, tokenizer.encode(prompt), generation);
    emit("\n");
  }
}

}  // namespace

void add_generate_command(CLI::App& app) {
  const auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Text from a trained model");
  SamplingOptions& sampling = options->generation.sampling;
  command->add_option("RUN|CHECKPOINT", options->path, "run directory (its newest checkpoint) or a checkpoint")
      ->required();
  command->add_option("OVERRIDES", options->overrides, "overrides, for example run.device=cpu")->type_name("KEY=VALUE");
  command->add_option("--prompt", options->prompt, "text to go on from");
  command->add_option("--prompts", options->prompts, "file with one prompt a line");
  command->add_option("--max-new-tokens", options->generation.max_new_tokens, "at most so many tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0: always the most probable token")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "draw among the k most probable tokens; 0: all")
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "draw among the most probable tokens that reach p together")
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "the same seed gives the same text")->capture_default_str();
  command->footer(
      "Example: egmla generate runs/quickstart --prompt 'And God said' --max-new-tokens 100 --temperature 0.8 --top-k "
      "50");
  command->callback([options] { run_generate(*options); });
}

}  // namespace egmla

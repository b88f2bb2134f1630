// egmla generate: text from prompts, streamed as it is drawn.
#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/files.h"
#include "data/byte_source.h"
#include "infer/prompts.h"
#include "infer/text_generator.h"

namespace egmla {
namespace {

constexpr const char* kExamples =
    "Without a prompt it reads one from standard input: a line at a time from a terminal (Ctrl-D ends), all of it\n"
    "from a pipe or file. Speed and cache are told on standard error at the end. Prompt n draws with seed + n.\n"
    "Examples:\n"
    "  egmla generate runs/quickstart --prompt 'And God said' --max-new-tokens 100 --temperature 0.8 --top-k 50\n"
    "  egmla generate runs/quickstart --prompt 'And he said' --stop $'\\n' --repetition-penalty 1.2 --json\n"
    "  egmla generate runs/quickstart --prompts prompts.jsonl --temperature 0 >completions.jsonl\n"
    "  echo 'In the beginning' | egmla generate runs/quickstart\n"
    "  egmla generate runs/quickstart";

struct GenerateOptions {
  std::string path, prompt, prompts;
  bool prompt_given = false, json = false;
  std::vector<std::string> overrides;
  TextOptions text;
};

void emit(std::string_view text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  check(written, "stdout: writing failed: {}; the output is incomplete", system_error_text());
}

// All of standard input, without the line feed that ends it.
std::string piped_prompt() {
  ByteSource source("-");
  std::string text, block(1 << 16, '\0');
  while (const size_t count = source.read(block.data(), block.size())) text.append(block, 0, count);
  if (text.ends_with('\n')) text.pop_back();
  check_usage(!text.empty(), "generate: no prompt on standard input; give --prompt TEXT, --prompts FILE or a text");
  return text;
}

void print_streamed(TextGenerator& generator, const std::string& prompt) {
  emit(prompt);
  generator.complete(prompt, emit);
  emit("\n");
}

void print_json(TextGenerator& generator, const std::string& prompt) {
  const Completion done = generator.complete(prompt, [](std::string_view) {});
  const nlohmann::ordered_json row = {
      {"prompt", prompt}, {"completion", done.text}, {"tokens", done.tokens}, {"finish_reason", done.finish_reason}};
  emit(row.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

// A prompt a line until the end of input; one that cannot be continued is told, and the next is asked for.
void converse(TextGenerator& generator, bool json) {
  fmt::print(stderr, "A prompt a line; Ctrl-D ends.\n");
  std::string line;
  while (fmt::print(stderr, "> "), std::fflush(stderr), std::getline(std::cin, line)) {
    if (line.empty()) continue;
    if (const auto reason = generator.refusal(line)) {
      fmt::print(stderr, "{}\n", *reason);
      continue;
    }
    json ? print_json(generator, line) : print_streamed(generator, line);
  }
  fmt::print(stderr, "\n");
}

void print_cost(const TextGenerator& generator) {
  const GenerationCost& cost = generator.cost();
  if (cost.prompts == 0) return;
  // The first token of a prompt belongs to its prefill.
  const int64_t later = std::max<int64_t>(0, cost.tokens - cost.prompts);
  const double rest = cost.seconds - cost.first_seconds, per_token = static_cast<double>(cost.tokens) / cost.seconds;
  fmt::print(stderr, "{} tokens in {:.2f} s, {:.1f} tokens/s", cost.tokens, cost.seconds, per_token);
  if (later > 0 && rest > 0)
    fmt::print(stderr, " ({} prompt tokens to the first one in {:.3f} s, then {:.1f} tokens/s)", cost.prompt_tokens,
               cost.first_seconds, static_cast<double>(later) / rest);
  const int64_t bytes = generator.cache_bytes_per_token();
  fmt::print(stderr, "; cache {} bytes per token, {:.2f} MB for {} tokens\n", bytes,
             static_cast<double>(bytes * cost.longest) / 1e6, cost.longest);
}

void run_generate(const GenerateOptions& options) {
  check_usage(!options.prompt_given || options.prompts.empty(), "generate: --prompt and --prompts exclude each other");
  check_sampling(options.text.generation.sampling);
  const bool asked = options.prompt_given || !options.prompts.empty();
  const bool interactive = !asked && ::isatty(STDIN_FILENO) != 0;
  std::vector<Prompt> prompts;
  if (!options.prompts.empty()) prompts = read_prompts(options.prompts);
  if (options.prompt_given) prompts.push_back({options.prompt, "--prompt"});
  if (!asked && !interactive) prompts.push_back({piped_prompt(), "standard input"});
  TrainedModel trained = load_trained_model(options.path, options.overrides);
  TextGenerator generator(trained, options.text);
  for (const Prompt& prompt : prompts) {
    const auto reason = generator.refusal(prompt.text);
    check_usage(!reason, "{}: {}", prompt.place, reason.value_or(""));
  }
  const bool json = options.json || !options.prompts.empty();
  if (interactive) converse(generator, json);
  for (const Prompt& prompt : prompts)
    json ? print_json(generator, prompt.text) : print_streamed(generator, prompt.text);
  print_cost(generator);
}

void add_sampling_options(CLI::App& command, GenerationOptions& generation) {
  SamplingOptions& sampling = generation.sampling;
  command.add_option("--max-new-tokens", generation.max_new_tokens, "at most so many tokens")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--temperature", sampling.temperature, "0: always the most probable token")->capture_default_str();
  command.add_option("--top-k", sampling.top_k, "draw among the k most probable tokens; 0: all")->capture_default_str();
  command.add_option("--top-p", sampling.top_p, "draw among the most probable tokens that reach p together")
      ->capture_default_str();
  command
      .add_option("--repetition-penalty", sampling.repetition_penalty,
                  "makes tokens of prompt and text less probable where above 1")
      ->capture_default_str();
  command.add_option("--seed", sampling.seed, "the same seed gives the same text")->capture_default_str();
}

}  // namespace

void add_generate_command(CLI::App& app) {
  const auto options = std::make_shared<GenerateOptions>();
  CLI::App* command = app.add_subcommand("generate", "Text from a trained model");
  command->add_option("RUN|CHECKPOINT", options->path, "run directory (its newest checkpoint) or a checkpoint")
      ->required();
  command->add_option("OVERRIDES", options->overrides, "overrides, for example run.device=cpu")->type_name("KEY=VALUE");
  const CLI::Option* prompt =
      command->add_option("--prompt", options->prompt, "text to go on from; an empty one begins a new document");
  command->add_option("--prompts", options->prompts,
                      "file with one prompt a line, or JSONL with a string `prompt`; prints a JSON object a line");
  add_sampling_options(*command, options->text.generation);
  command
      ->add_option("--stop", options->text.stops,
                   "text that ends the completion and is not part of it; may be given several times")
      ->take_all()
      ->expected(1);
  command->add_flag("--json", options->json, "print a JSON object: prompt, completion, tokens, finish_reason");
  command->footer(kExamples);
  command->callback([options, prompt] {
    options->prompt_given = prompt->count() > 0;
    run_generate(*options);
  });
}

}  // namespace egmla

// egmla data prepare | stats.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/text_options.h"
#include "core/check.h"
#include "data/prepare.h"
#include "data/shard_stats.h"
#include "text/tokenizer.h"

namespace egmla {
namespace {

struct StatsOptions {
  std::vector<std::string> shards;
  std::string tokenizer;
  int32_t end_of_text = -1;
  bool json = false;
};

void print_split(const char* name, const SplitSummary& split) {
  fmt::print("{:<5}  {} tokens, {} documents, {} bytes, {} shards\n", name, split.tokens, split.documents, split.bytes,
             split.shards.size());
}

void add_prepare(CLI::App& parent) {
  const auto options = std::make_shared<PrepareOptions>();
  CLI::App* command = parent.add_subcommand("prepare", "Text to token shards");
  add_text_options(*command, options->inputs, options->format);
  command->add_option("--tokenizer", options->tokenizer, "tokenizer.json, encoder.json, or a directory with either")
      ->required();
  command->add_option("--out", options->out, "directory to make")->required();
  command
      ->add_option("--val-fraction", options->val_fraction,
                   "share of the documents kept for validation, the last ones of the input; of its lines, when the "
                   "share is less than one document (a text that is one document, say)")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command
      ->add_option_function<std::string>(
          "--val-split",
          [options](const std::string& word) { options->val_split = word == "hash" ? ValSplit::hash : ValSplit::last; },
          "last: the last documents are kept for validation; hash: those chosen by a hash of their content, all over\n"
          "the input and the same whatever else it holds")
      ->check(CLI::IsMember({"last", "hash"}))
      ->default_str("last");
  command->add_flag("--deduplicate", options->deduplicate,
                    "leave out documents that are byte for byte like an earlier one");
  command->add_option("--shard-tokens", options->shard_tokens, "most tokens in a shard")->capture_default_str();
  command->add_option("--threads", options->threads, "0: one for each core")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_flag("--force", options->force, "replace the shards in --out");
  command->footer(
      "Each document ends with <|endoftext|>; that string inside a text is read as plain text. A .jsonl line holds a\n"
      "document in its `text`.\n"
      "Example: egmla data prepare data/text/kjv.txt --tokenizer tokenizer.json --out data/kjv --val-fraction 0.1");
  command->callback([options] {
    const PrepareSummary summary = prepare_data(*options);
    print_split("train", summary.train);
    print_split("val", summary.val);
    if (options->deduplicate) {
      fmt::print("left out  {} duplicate documents, {} bytes\n", summary.duplicates, summary.duplicate_bytes);
    }
  });
}

void print_stats(const StatsOptions& options) {
  std::vector<std::string> paths;
  for (const std::string& pattern : options.shards) {
    const auto found = expand_glob(pattern);
    paths.insert(paths.end(), found.begin(), found.end());
  }
  std::string tokenizer = options.tokenizer;
  const auto beside = std::filesystem::path(paths.front()).parent_path() / "tokenizer.json";
  if (tokenizer.empty() && options.end_of_text < 0 && std::filesystem::exists(beside)) tokenizer = beside.string();
  const int32_t end_of_text = tokenizer.empty() ? options.end_of_text : Tokenizer::load(tokenizer).end_of_text();
  const ShardStats stats = shard_stats(paths, end_of_text);
  if (options.json) {
    nlohmann::ordered_json json = {{"tokens", stats.tokens},
                                   {"documents", nullptr},
                                   {"distinct_ids", stats.distinct},
                                   {"entropy_nats", stats.entropy_nats}};
    if (end_of_text >= 0) json["documents"] = stats.documents;
    fmt::print("{}\n", json.dump(2));
    return;
  }
  fmt::print("shards            {}\ntokens            {}\n", paths.size(), stats.tokens);
  fmt::print("documents         {}\n",
             end_of_text >= 0 ? std::to_string(stats.documents) : "unknown; give --end-of-text");
  fmt::print("distinct ids      {}\nunigram entropy   {:.4f} nats per token\n", stats.distinct, stats.entropy_nats);
}

void add_stats(CLI::App& parent) {
  const auto options = std::make_shared<StatsOptions>();
  CLI::App* command = parent.add_subcommand("stats", "Count what token shards hold");
  command->add_option("SHARD", options->shards, "files or patterns")->required();
  auto* tokenizer = command->add_option("--tokenizer", options->tokenizer,
                                        "names the end-of-text id; default: tokenizer.json beside the first shard");
  command->add_option("--end-of-text", options->end_of_text, "id that ends a document")
      ->check(CLI::NonNegativeNumber)
      ->excludes(tokenizer);
  command->add_flag("--json", options->json, "a JSON object");
  command->footer("Example: egmla data stats 'data/kjv/train_*.bin'");
  command->callback([options] { print_stats(*options); });
}

}  // namespace

void add_data_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("data", "Make and inspect token shards");
  command->require_subcommand(1);
  add_prepare(*command);
  add_stats(*command);
}

}  // namespace egmla

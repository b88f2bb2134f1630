// egmla tokenizer train | encode | decode.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/text_options.h"
#include "core/check.h"
#include "core/files.h"
#include "data/documents.h"
#include "data/progress_bar.h"
#include "text/bpe_trainer.h"
#include "text/tokenizer.h"

namespace egmla {
namespace {

struct TrainOptions {
  std::vector<std::string> inputs;
  DocumentFormat format;
  int64_t vocab_size = 0;
  std::string out;
};

struct CodingOptions {
  std::string tokenizer;
  std::optional<std::string> text;
  std::vector<int32_t> ids;
  bool json = false;
  bool plain = false;
};

std::string read_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

// Numbers apart by white space, or a JSON list.
std::vector<int32_t> parse_ids(const std::string& text) {
  if (text.find('[') != std::string::npos) {
    const auto list = nlohmann::json::parse(text, nullptr, false);
    const bool numbers = list.is_array() && std::all_of(list.begin(), list.end(), [](const auto& id) {
                           return id.is_number_integer() && id >= INT32_MIN && id <= INT32_MAX;
                         });
    check_usage(numbers, "standard input: not a JSON list of token ids");
    return list.get<std::vector<int32_t>>();
  }
  std::vector<int32_t> ids;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    ids.emplace_back();
    check_usage(CLI::detail::lexical_cast(word, ids.back()), "standard input: \"{}\" is no token id", word);
  }
  return ids;
}

void train(const TrainOptions& options) {
  BpeTrainer trainer;
  {
    ProgressBar bar("reading", total_bytes(options.inputs));
    read_documents(options.inputs, options.format,
                   {.text = [&](std::string_view text) { trainer.add(text); },
                    .end_document = [&] { trainer.end_document(); },
                    .progress = [&](int64_t bytes) { bar.update(bytes); }});
  }
  const Tokenizer tokenizer = trainer.train(options.vocab_size);
  if (tokenizer.vocab_size() < options.vocab_size) {
    spdlog::warn("the text gives {} tokens, not {}: no other pair occurs twice; set model.vocab_size to match",
                 tokenizer.vocab_size(), options.vocab_size);
  }
  write_file(options.out, tokenizer.to_json());
  fmt::print("{}: {} tokens\n", options.out, tokenizer.vocab_size());
}

void encode(const CodingOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const auto ids = tokenizer.encode(options.text ? *options.text : read_stdin(), !options.plain);
  const char* const separator = options.json ? ", " : " ";
  std::string line;
  for (const int32_t id : ids) fmt::format_to(std::back_inserter(line), "{}{}", line.empty() ? "" : separator, id);
  fmt::print("{}{}{}\n", options.json ? "[" : "", line, options.json ? "]" : "");
}

void decode(const CodingOptions& options) {
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const std::string text = tokenizer.decode(options.ids.empty() ? parse_ids(read_stdin()) : options.ids);
  check(std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0,
        "standard output: cannot be written: {}", system_error_text());
}

void add_train(CLI::App& parent) {
  const auto options = std::make_shared<TrainOptions>();
  CLI::App* command = parent.add_subcommand("train", "Learn a byte-level BPE vocabulary from text");
  add_text_options(*command, options->inputs, options->format);
  command->add_option("--vocab-size", options->vocab_size, "tokens, <|endoftext|> (id 0) and the 256 bytes included")
      ->required()
      ->check(CLI::Range(BpeTrainer::kSmallestVocabulary, int64_t{1} << 24));
  command->add_option("--out", options->out, "tokenizer.json to write")->required();
  command->footer("Example: egmla tokenizer train data/text/kjv.txt --vocab-size 2048 --out tokenizer.json");
  command->callback([options] { train(*options); });
}

void add_coding(CLI::App& parent) {
  const auto options = std::make_shared<CodingOptions>();
  CLI::App* encoder = parent.add_subcommand("encode", "Token ids of a text, on one line");
  CLI::App* decoder = parent.add_subcommand("decode", "Text of token ids, byte for byte");
  for (CLI::App* command : {encoder, decoder}) {
    command->add_option("--tokenizer", options->tokenizer, "tokenizer.json, encoder.json, or a directory with either")
        ->required();
  }
  encoder->add_option("TEXT", options->text, "text; default: standard input, its last line feed included");
  encoder->add_flag("--json", options->json, "a JSON list");
  encoder->add_flag("--plain", options->plain, "read special tokens such as <|endoftext|> as plain text");
  encoder->footer("Example: egmla tokenizer encode --tokenizer tokenizer.json \"In the beginning\"");
  encoder->callback([options] { encode(*options); });
  decoder->add_option("ID", options->ids, "token ids; default: standard input, as encode prints them");
  decoder->footer("Example: egmla tokenizer decode --tokenizer tokenizer.json 71 290 311");
  decoder->callback([options] { decode(*options); });
}

}  // namespace

void add_tokenizer_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("tokenizer", "Train a tokenizer; turn text into token ids and back");
  command->require_subcommand(1);
  add_train(*command);
  add_coding(*command);
}

}  // namespace egmla

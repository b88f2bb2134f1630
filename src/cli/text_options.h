// Options of commands that read text files.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "data/documents.h"

namespace egmla {

inline void add_text_options(CLI::App& command, std::vector<std::string>& inputs, DocumentFormat& format) {
  command.add_option("INPUT", inputs, "text or .jsonl files, also .gz and .zst; - is standard input")->required();
  const auto set_format = [&format](const std::string& word) {
    format.format = word == "text" ? TextFormat::text : word == "jsonl" ? TextFormat::jsonl : TextFormat::automatic;
  };
  command.add_option_function<std::string>("--format", set_format, "of the inputs; auto goes by the name")
      ->check(CLI::IsMember({"auto", "text", "jsonl"}));
  command.add_option("--separator", format.separator,
                     "line that parts documents of plain text; without it a file is one document");
}

}  // namespace egmla

// Prompts from a file: one a line, or a JSON object a line with a string `prompt`.
#pragma once

#include <string>
#include <vector>

namespace egmla {

struct Prompt {
  std::string text;
  std::string place;  // "FILE:LINE", for messages
};

// JSONL where the name says so (.jsonl, also .gz and .zst) or the first line is such an object; empty lines count for
// nothing. "-" is standard input.
std::vector<Prompt> read_prompts(const std::string& path);

}  // namespace egmla

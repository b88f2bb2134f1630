// Documents of text files, read as a stream: a file is one document, or it is split at lines equal to a separator,
// or each line of a .jsonl file is an object whose string `text` is one. Documents without text are left out.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace egmla {

enum class TextFormat : uint8_t { automatic, text, jsonl };  // automatic: by the file's name

struct DocumentFormat {
  TextFormat format = TextFormat::automatic;
  std::optional<std::string> separator;  // of plain text
};

struct DocumentHandlers {
  std::function<void(std::string_view)> text;  // the next part of a document, never empty
  std::function<void()> end_document;          // at least one part came before
  std::function<void(int64_t)> progress;       // bytes of the files consumed so far
};

// Reads the inputs in order; "-" is standard input. Errors name the file, for JSONL the line too.
void read_documents(const std::vector<std::string>& inputs, const DocumentFormat& format,
                    const DocumentHandlers& handlers);

// Sizes of the files together; 0 when standard input is among them.
int64_t total_bytes(const std::vector<std::string>& inputs);

}  // namespace egmla

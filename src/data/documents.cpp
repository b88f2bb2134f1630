#include "data/documents.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "data/byte_source.h"

namespace egmla {
namespace {

bool is_jsonl(const std::string& path, TextFormat format) {
  if (format != TextFormat::automatic) return format == TextFormat::jsonl;
  std::string name = path;
  for (const std::string_view packed : {".gz", ".zst"}) {
    if (name.ends_with(packed)) name.resize(name.size() - packed.size());
  }
  return name.ends_with(".jsonl");
}

std::string_view without_line_end(std::string_view line) {
  if (line.ends_with('\n')) line.remove_suffix(1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}

// The `text` of one line.
std::string text_of(std::string_view line, const std::string& path, int64_t number) {
  constexpr const char* kExpected = R"(expected an object with a string "text")";
  try {
    const auto object = nlohmann::json::parse(line);
    const auto text = object.find("text");
    check_usage(object.is_object() && text != object.end() && text->is_string(), "{}:{}: {}", path, number, kExpected);
    return text->get<std::string>();
  } catch (const nlohmann::json::exception& error) {
    fail_usage("{}:{}: not JSON ({}); {}", path, number, error.what(), kExpected);
  }
}

// Passes on text and ends of one input, and its progress on top of that of the inputs before it.
class InputReader {
 public:
  InputReader(const std::string& path, const DocumentHandlers& handlers, int64_t& consumed)
      : path_(path), source_(path), handlers_(handlers), consumed_(consumed), before_(consumed) {}

  void read_jsonl() {
    LineReader lines(source_);
    std::string_view line;
    for (int64_t number = 1; lines.next(line); ++number) {
      if (line.find_first_not_of(" \t\r\n") == std::string_view::npos) continue;
      pass(text_of(line, path_, number));
      end_document();
    }
  }

  void read_separated(const std::string& separator) {
    LineReader lines(source_);
    std::string_view line;
    while (lines.next(line)) {
      if (without_line_end(line) == separator) {
        end_document();
      } else {
        pass(line);
      }
    }
    end_document();
  }

  void read_whole() {
    std::vector<char> chunk(1 << 18);
    while (const size_t count = source_.read(chunk.data(), chunk.size())) pass({chunk.data(), count});
    end_document();
  }

 private:
  void pass(std::string_view text) {
    if (text.empty()) return;
    handlers_.text(text);
    open_ = true;
    const int64_t consumed = before_ + source_.consumed();
    if (consumed == consumed_) return;
    consumed_ = consumed;
    handlers_.progress(consumed);
  }

  void end_document() {
    if (open_) handlers_.end_document();
    open_ = false;
  }

  const std::string& path_;
  ByteSource source_;
  const DocumentHandlers& handlers_;
  int64_t& consumed_;
  const int64_t before_;
  bool open_ = false;  // a document has begun
};

}  // namespace

void read_documents(const std::vector<std::string>& inputs, const DocumentFormat& format,
                    const DocumentHandlers& handlers) {
  int64_t consumed = 0;
  for (const std::string& path : inputs) {
    InputReader reader(path, handlers, consumed);
    if (is_jsonl(path, format.format)) {
      reader.read_jsonl();
    } else if (format.separator) {
      reader.read_separated(*format.separator);
    } else {
      reader.read_whole();
    }
  }
}

int64_t total_bytes(const std::vector<std::string>& inputs) {
  int64_t total = 0;
  for (const std::string& path : inputs) {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(path, error);
    if (error) return 0;
    total += static_cast<int64_t>(bytes);
  }
  return total;
}

}  // namespace egmla

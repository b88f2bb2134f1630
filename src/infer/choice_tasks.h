// Multiple-choice questions from JSONL files: our own layout and those of public benchmarks, told apart by their
// fields, put into words as lm-evaluation-harness does without examples (docs/evaluation.md lists them).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace egmla {

// A text to be judged by its probability behind a context.
struct Choice {
  std::string context;
  std::string continuation;  // with the space that parts it from the context
  int64_t length = 1;        // characters of the choice, without that space: what acc_norm divides by
};

struct Question {
  std::vector<Choice> choices{};
  size_t answer = 0;
  int64_t line = 0;
};

// What a layout's results are.
enum class TaskKind : uint8_t {
  choice,             // acc
  normalized_choice,  // acc and acc_norm
  last_word,          // one choice: is it what greedy decoding writes, and its perplexity
};

struct ChoiceTask {
  std::string name;  // as it is shown
  std::string path;
  std::string layout;  // "hellaswag"
  TaskKind kind = TaskKind::choice;
  std::vector<Question> questions{};
};

// `spec` is FILE or NAME=FILE; without a name it is the file's. `limit` > 0: only so many questions. A usage error
// names file and line.
ChoiceTask read_choice_task(const std::string& spec, int64_t limit = 0);

}  // namespace egmla

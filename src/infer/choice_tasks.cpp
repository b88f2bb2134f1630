#include "infer/choice_tasks.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <optional>

#include "core/check.h"
#include "data/byte_source.h"
#include "infer/task_row.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

Choice behind_space(const std::string& context, const std::string& text) {
  return {.context = context, .continuation = " " + text, .length = character_count(text)};
}

Question question_of(const std::string& context, const std::vector<std::string>& choices, size_t answer) {
  Question out{.answer = answer};
  for (const std::string& text : choices) out.choices.push_back(behind_space(context, text));
  return out;
}

// {"context", "choices", "answer": index or text}: a space parts the two unless there is white space already.
Question read_plain(const TaskRow& row) {
  const std::string context = row.text("context");
  const std::vector<std::string> choices = row.texts("choices");
  const Json& answer = row.value("answer");
  Question out;
  if (answer.is_string()) {
    const auto found = std::find(choices.begin(), choices.end(), answer.get<std::string>());
    row.require(found != choices.end(), "answer", "its index, from 0, or one of the choices");
    out.answer = static_cast<size_t>(found - choices.begin());
  } else {
    out.answer = row.index("answer", 0, choices.size());
  }
  for (const std::string& text : choices) {
    const bool parted = context.empty() || ends_with_space(context) || begins_with_space(text);
    out.choices.push_back(
        {.context = context, .continuation = (parted ? "" : " ") + text, .length = character_count(text)});
  }
  return out;
}

Question read_hellaswag(const TaskRow& row) {
  const std::string context = row.text("ctx_a") + " " + capitalized(row.text("ctx_b"));
  std::vector<std::string> endings = row.texts("endings");
  for (std::string& ending : endings) ending = without_wikihow_marks(ending);
  return question_of(without_wikihow_marks(row.text("activity_label") + ": " + context), endings,
                     row.index("label", 0, endings.size()));
}

// AI2's own files nest {"stem", "choices": [{"text", "label"}]} in `question`; Hugging Face's have lists.
Question read_arc(const TaskRow& row) {
  std::vector<std::string> choices, labels;
  std::string stem;
  if (row.value("question").is_object()) {
    const TaskRow question = row.inner("question");
    stem = question.text("stem");
    for (const TaskRow& choice : question.rows("choices")) {
      choices.push_back(choice.text("text"));
      labels.push_back(choice.text("label"));
    }
  } else {
    stem = row.text("question");
    choices = row.inner("choices").texts("text");
    labels = row.inner("choices").texts("label");
  }
  const auto found = std::find(labels.begin(), labels.end(), row.text("answerKey"));
  const auto answer = static_cast<size_t>(found - labels.begin());
  row.require(answer < choices.size(), "answerKey", "the label of a choice");
  return question_of("Question: " + stem + "\nAnswer:", choices, answer);
}

Question read_piqa(const TaskRow& row) {
  return question_of("Question: " + row.text("goal") + "\nAnswer:", {row.text("sol1"), row.text("sol2")},
                     row.index("label", 0, 2));
}

// The contexts differ, the continuation behind the blank is the same.
Question read_winogrande(const TaskRow& row) {
  const std::string sentence = row.text("sentence");
  const size_t blank = sentence.find('_');
  row.require(blank != std::string::npos, "sentence", "a sentence with a blank, '_'");
  const std::string suffix = stripped(sentence.substr(blank + 1));
  Question out{.answer = row.index("answer", 1, 2)};
  for (const char* const option : {"option1", "option2"})
    out.choices.push_back(behind_space(sentence.substr(0, blank) + row.text(option), suffix));
  return out;
}

Question read_siqa(const TaskRow& row) {
  return question_of("Q: " + row.text("context") + " " + row.text("question") + "\nA:",
                     {row.text("answerA"), row.text("answerB"), row.text("answerC")}, row.index("label", 1, 3));
}

// The letters are what is judged.
Question read_mmlu(const TaskRow& row) {
  std::string context, subject = row.has("subject") ? row.text("subject") : "";
  std::replace(subject.begin(), subject.end(), '_', ' ');
  if (!subject.empty())
    context = "The following are multiple choice questions (with answers) about " + subject + ".\n\n";
  context += stripped(row.text("question")) + "\n";
  const std::vector<std::string> choices = row.texts("choices");
  std::vector<std::string> letters;
  for (const std::string& choice : choices) {
    letters.emplace_back(1, static_cast<char>('A' + letters.size()));
    context += letters.back() + ". " + choice + "\n";
  }
  const Json& answer = row.value("answer");
  const auto letter = std::find(letters.begin(), letters.end(), answer.is_string() ? answer.get<std::string>() : "");
  const size_t index =
      letter != letters.end() ? static_cast<size_t>(letter - letters.begin()) : row.index("answer", 0, letters.size());
  return question_of(context + "Answer:", letters, index);
}

Question read_lambada(const TaskRow& row) {
  const std::string text = row.text("text");
  const size_t space = text.rfind(' ');
  row.require(space != std::string::npos, "text", "at least two words");
  return question_of(text.substr(0, space), {text.substr(space + 1)}, 0);
}

struct Layout {
  const char* name;
  std::vector<const char*> fields;  // that tell it from the others
  TaskKind kind;
  Question (*read)(const TaskRow& row);
};

// The first whose fields a row has.
const std::array<Layout, 8>& layouts() {
  using enum TaskKind;
  static const std::array<Layout, 8> kLayouts = {{
      {"hellaswag", {"activity_label", "ctx_a", "ctx_b", "endings"}, normalized_choice, read_hellaswag},
      {"arc", {"question", "answerKey"}, normalized_choice, read_arc},
      {"piqa", {"goal", "sol1", "sol2"}, normalized_choice, read_piqa},
      {"winogrande", {"sentence", "option1", "option2"}, choice, read_winogrande},
      {"siqa", {"context", "question", "answerA", "answerB", "answerC"}, choice, read_siqa},
      {"choices", {"context", "choices", "answer"}, normalized_choice, read_plain},
      {"mmlu", {"question", "choices", "answer"}, choice, read_mmlu},
      {"lambada", {"text"}, last_word, read_lambada},
  }};
  return kLayouts;
}

const Layout& layout_of(const TaskRow& row) {
  for (const Layout& layout : layouts()) {
    if (std::all_of(layout.fields.begin(), layout.fields.end(), [&](const char* field) { return row.has(field); }))
      return layout;
  }
  fail_usage(
      "{}: the fields {} fit no known task; expected context, choices and answer, or a layout of "
      "docs/evaluation.md",
      row.place(), row.field_names());
}

// FILE, or NAME=FILE unless there is a file of that whole name.
std::pair<std::string, std::string> name_and_path(const std::string& spec) {
  const size_t sign = spec.find('=');
  if (sign != std::string::npos && sign > 0 && !fs::exists(spec)) return {spec.substr(0, sign), spec.substr(sign + 1)};
  std::string name = fs::path(spec).filename().string();
  return {name.substr(0, name.find('.')), spec};
}

// PIQA and SIQA publish a file NAME-labels.lst beside NAME.jsonl, a label a line.
std::vector<std::string> labels_beside(const std::string& path) {
  std::string stem = path.substr(0, path.rfind(".jsonl"));
  const std::string file = stem + "-labels.lst";
  std::vector<std::string> labels;
  if (!fs::exists(file)) return labels;
  ByteSource source(file);
  LineReader lines(source);
  for (std::string_view line; lines.next(line);) labels.push_back(stripped(std::string(line)));
  return labels;
}

}  // namespace

ChoiceTask read_choice_task(const std::string& spec, int64_t limit) {
  const auto [name, path] = name_and_path(spec);
  ChoiceTask task{.name = name, .path = path, .layout = {}};
  ByteSource source(path);
  LineReader lines(source);
  const std::vector<std::string> labels = labels_beside(path);
  const Layout* layout = nullptr;
  int64_t number = 0;
  size_t rows = 0;
  for (std::string_view line; lines.next(line) && (limit <= 0 || std::ssize(task.questions) < limit);) {
    ++number;
    if (stripped(std::string(line)).empty()) continue;
    TaskRow row(line, fmt::format("{}:{}", path, number));
    if (!labels.empty() && !row.has("label")) {
      check_usage(rows < labels.size(), "{}: has no label; the file of labels beside it has {} lines", row.place(),
                  labels.size());
      row.set("label", labels[rows]);
    }
    ++rows;
    if (layout == nullptr) layout = &layout_of(row);
    Question question = layout->read(row);
    question.line = number;
    for (const Choice& choice : question.choices)
      check_usage(choice.length > 0, "{}: a choice is empty; expected text", row.place());
    task.questions.push_back(std::move(question));
  }
  check_usage(layout != nullptr, "{}: holds no question; expected a JSON object a line", path);
  task.layout = layout->name;
  task.kind = layout->kind;
  return task;
}

}  // namespace egmla

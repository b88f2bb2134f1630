// Results of multiple-choice tasks, as lm-evaluation-harness defines them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "infer/choice_tasks.h"
#include "infer/continuations.h"

namespace egmla {

// A mean over questions and its standard error.
struct Share {
  double mean = 0, error = 0;
};

struct TaskResult {
  int64_t questions = 0;
  Share acc;  // choice: the answer has the largest log-likelihood; last_word: greedy decoding writes the word
  std::optional<Share> acc_norm;     // the same with log-likelihoods divided by the choices' lengths in characters
  std::optional<double> perplexity;  // last_word: exp of the mean negative log-likelihood of a word
};

// Of log-likelihoods in the order of questions and choices.
TaskResult task_result(const ChoiceTask& task, const std::vector<ContinuationScore>& scores);

TaskResult evaluate_task(Transformer& model, const Tokenizer& tokenizer, const ChoiceTask& task, int64_t batch_tokens);

}  // namespace egmla

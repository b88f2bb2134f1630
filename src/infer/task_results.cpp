#include "infer/task_results.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"

namespace egmla {
namespace {

// Counts the questions that come out right.
class Counter {
 public:
  void add(bool right) { right_ += right ? 1 : 0, ++all_; }
  // Of n values 0 or 1 with mean p the sample variance is n p (1 - p) / (n - 1), and that of the mean a n-th of it.
  Share share() const {
    const double p = right_ / all_;
    return {.mean = p, .error = all_ > 1 ? std::sqrt(p * (1 - p) / (all_ - 1)) : 0.0};
  }

 private:
  double right_ = 0, all_ = 0;
};

}  // namespace

TaskResult task_result(const ChoiceTask& task, const std::vector<ContinuationScore>& scores) {
  Counter acc, acc_norm;
  double sum = 0;
  auto score = scores.begin();
  for (const Question& question : task.questions) {
    std::vector<double> plain, by_length;
    for (const Choice& choice : question.choices) {
      plain.push_back(score->log_likelihood);
      by_length.push_back(score->log_likelihood / static_cast<double>(choice.length));
      sum += score->log_likelihood;
      ++score;
    }
    // Of equals the first.
    const auto best = [](const std::vector<double>& of) {
      return static_cast<size_t>(std::max_element(of.begin(), of.end()) - of.begin());
    };
    acc.add(task.kind == TaskKind::last_word ? std::prev(score)->greedy : best(plain) == question.answer);
    acc_norm.add(best(by_length) == question.answer);
  }
  TaskResult out{.questions = std::ssize(task.questions), .acc = acc.share(), .acc_norm = {}, .perplexity = {}};
  if (task.kind == TaskKind::normalized_choice) out.acc_norm = acc_norm.share();
  if (task.kind == TaskKind::last_word) out.perplexity = std::exp(-sum / static_cast<double>(out.questions));
  return out;
}

TaskResult evaluate_task(Transformer& model, const Tokenizer& tokenizer, const ChoiceTask& task, int64_t batch_tokens) {
  std::vector<Continuation> continuations;
  const int64_t positions = model.config().max_position_embeddings;
  for (const Question& question : task.questions) {
    for (const Choice& choice : question.choices) {
      continuations.push_back(encode_continuation(tokenizer, choice.context, choice.continuation));
      const int64_t ids = std::ssize(continuations.back().ids);
      check_usage(ids >= 1 && ids <= positions,
                  "{}:{}: a choice has {} tokens; expected 1 to model.max_position_embeddings, {}", task.path,
                  question.line, ids, positions);
    }
  }
  const ScoringOptions options{.batch_tokens = batch_tokens, .greedy = task.kind == TaskKind::last_word};
  return task_result(task, score_continuations(model, continuations, options));
}

}  // namespace egmla

#include "infer/continuations.h"

#include <algorithm>
#include <map>
#include <span>

#include "infer/host_values.h"
#include "infer/task_row.h"
#include "kernels/cross_entropy.h"

namespace egmla {
namespace {

constexpr int64_t kLogits = int64_t{1} << 24;  // at once

// A position of an input, the id that follows there, and whose it is.
struct Target {
  int32_t position, id;
  size_t continuation;
};

struct Input {
  std::vector<int32_t> ids;
  std::vector<Target> targets;
};

// Equal inputs once; the longest first, so that the first batch needs the most memory and neighbours pad little.
std::vector<Input> gather_inputs(const std::vector<Continuation>& continuations, int64_t positions) {
  std::vector<Input> inputs;
  std::map<std::vector<int32_t>, size_t> places;
  for (size_t i = 0; i < continuations.size(); ++i) {
    const Continuation& each = continuations[i];
    check(!each.context.empty() && !each.ids.empty() && std::ssize(each.ids) <= positions,
          "score: {} ids behind {}; expected 1 to {} behind at least one", each.ids.size(), each.context.size(),
          positions);
    std::vector<int32_t> ids = each.context;
    ids.insert(ids.end(), each.ids.begin(), each.ids.end() - 1);
    if (std::ssize(ids) > positions) ids.erase(ids.begin(), ids.end() - positions);
    const auto first = static_cast<int32_t>(ids.size() - each.ids.size());
    const auto [place, fresh] = places.emplace(ids, inputs.size());
    if (fresh) inputs.push_back({.ids = std::move(ids), .targets = {}});
    for (size_t t = 0; t < each.ids.size(); ++t)
      inputs[place->second].targets.push_back({first + static_cast<int32_t>(t), each.ids[t], i});
  }
  std::stable_sort(inputs.begin(), inputs.end(),
                   [](const Input& a, const Input& b) { return a.ids.size() > b.ids.size(); });
  return inputs;
}

// Adds the losses of targets [first, first + count) of a batch, whose hidden states are `states` [count, D].
void score_rows(Transformer& model, const Tensor& states, std::span<const Target> targets, bool greedy,
                std::vector<ContinuationScore>& scores) {
  Context& context = model.parameters().context();
  const Tensor logits = model.logits(states);
  const int64_t rows = std::ssize(targets), V = logits.shape().back();
  if (greedy) {
    const std::vector<double> values = host_values(logits);
    for (int64_t r = 0; r < rows; ++r) {
      const auto row = values.begin() + r * V;
      const Target& target = targets[static_cast<size_t>(r)];
      if (std::max_element(row, row + V) - row != target.id) scores[target.continuation].greedy = false;
    }
  }
  std::vector<int32_t> ids;
  for (const Target& target : targets) ids.push_back(target.id);
  const Tensor losses = Tensor::empty(context, Shape{rows}, logits.dtype() == DType::f64 ? DType::f64 : DType::f32);
  launch(context, CrossEntropy{.loss = losses.view(),
                               .logits = logits.view(),
                               .targets = Tensor::from(context, Shape{rows}, ids).view()});
  const std::vector<double> values = host_values(losses);
  for (size_t r = 0; r < targets.size(); ++r) scores[targets[r].continuation].log_likelihood -= values[r];
}

void score_batch(Transformer& model, std::span<const Input> inputs, bool greedy,
                 std::vector<ContinuationScore>& scores) {
  Context& context = model.parameters().context();
  const int64_t B = std::ssize(inputs), T = std::ssize(inputs.front().ids);
  std::vector<int32_t> ids(static_cast<size_t>(B * T)), rows;
  std::vector<Target> targets;
  for (int64_t b = 0; b < B; ++b) {
    const Input& input = inputs[static_cast<size_t>(b)];
    std::copy(input.ids.begin(), input.ids.end(), ids.begin() + b * T);
    for (const Target& target : input.targets) {
      rows.push_back(static_cast<int32_t>(b * T) + target.position);
      targets.push_back(target);
    }
  }
  Batch batch;
  batch.tokens = ops::make_token_index(context, ids, B, T, false);
  const Tensor states = model.hidden(batch, rows);
  const int64_t chunk = std::max<int64_t>(1, kLogits / model.config().vocab_size);
  for (int64_t first = 0; first < std::ssize(targets); first += chunk) {
    const int64_t count = std::min(chunk, std::ssize(targets) - first);
    score_rows(model, states.with_view(states.view().rows(first, count)),
               std::span(targets).subspan(static_cast<size_t>(first), static_cast<size_t>(count)), greedy, scores);
  }
}

}  // namespace

Continuation encode_continuation(const Tokenizer& tokenizer, std::string context, std::string continuation) {
  if (context.empty()) return {{tokenizer.end_of_text()}, tokenizer.encode(continuation)};
  const size_t kept = context.size() - trailing_space(context);
  continuation.insert(0, context.substr(kept));
  context.resize(kept);
  Continuation out{tokenizer.encode(context), tokenizer.encode(context + continuation)};
  out.ids.erase(out.ids.begin(), out.ids.begin() + std::min(std::ssize(out.context), std::ssize(out.ids)));
  if (out.context.empty()) out.context = {tokenizer.end_of_text()};
  return out;
}

std::vector<ContinuationScore> score_continuations(Transformer& model, const std::vector<Continuation>& continuations,
                                                   const ScoringOptions& options) {
  std::vector<ContinuationScore> scores(continuations.size(), {.log_likelihood = 0, .greedy = options.greedy});
  const std::vector<Input> inputs = gather_inputs(continuations, model.config().max_position_embeddings);
  for (size_t first = 0; first < inputs.size();) {
    const size_t longest = inputs[first].ids.size();
    const size_t fitting = std::max<size_t>(1, static_cast<size_t>(options.batch_tokens) / longest);
    const size_t count = std::min(fitting, inputs.size() - first);
    score_batch(model, std::span(inputs).subspan(first, count), options.greedy, scores);
    first += count;
  }
  return scores;
}

}  // namespace egmla

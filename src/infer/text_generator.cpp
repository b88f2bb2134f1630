#include "infer/text_generator.h"

#include <algorithm>

#include "infer/text_stream.h"

namespace egmla {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TextGenerator::TextGenerator(TrainedModel& trained, TextOptions options)
    : trained_(trained), options_(std::move(options)) {
  options_.generation.end_of_text = trained_.need_tokenizer().end_of_text();
}

std::vector<int32_t> TextGenerator::encode(const std::string& prompt) const {
  std::vector<int32_t> ids = trained_.need_tokenizer().encode(prompt);
  if (ids.empty()) ids = {options_.generation.end_of_text};
  return ids;
}

std::optional<std::string> TextGenerator::refusal(const std::string& prompt) const {
  const int64_t tokens = std::ssize(encode(prompt)), positions = trained_.config.model.max_position_embeddings;
  if (tokens < positions) return std::nullopt;
  return fmt::format("the prompt has {} tokens; expected at most {}, model.max_position_embeddings - 1; shorten it",
                     tokens, positions - 1);
}

Completion TextGenerator::complete(const std::string& prompt, const std::function<void(std::string_view)>& show) {
  const Tokenizer& tokenizer = *trained_.tokenizer;
  const std::vector<int32_t> ids = encode(prompt);
  Completion out;
  TextStream stream(options_.stops, [&](std::string_view text) {
    out.text += text;
    show(text);
  });
  const auto start = std::chrono::steady_clock::now();
  double first = -1;
  GenerationOptions generation = options_.generation;
  generation.sampling.seed += static_cast<uint64_t>(cost_.prompts);
  generation.on_token = [&](int32_t id) {
    if (first < 0) first = seconds_since(start);
    // A model may have more ids than its tokenizer (vocabularies rounded up); those stand for nothing.
    if (id < tokenizer.vocab_size()) stream.push(tokenizer.bytes_of(id));
  };
  generation.stopped = [&] { return stream.stopped(); };
  out.tokens = std::ssize(generate(*trained_.model, ids, generation));
  stream.finish();
  const double seconds = seconds_since(start);
  const int64_t given = std::ssize(ids), possible = trained_.config.model.max_position_embeddings - given + 1;
  const bool full = out.tokens == std::min(generation.max_new_tokens, possible);
  out.finish_reason = full && !stream.stopped() ? "length" : "stop";
  ++cost_.prompts;
  cost_.prompt_tokens += given;
  cost_.tokens += out.tokens;
  cost_.first_seconds += first < 0 ? seconds : first;
  cost_.seconds += seconds;
  cost_.longest = std::max(cost_.longest, given + out.tokens);
  return out;
}

int64_t TextGenerator::cache_bytes_per_token() const {
  return trained_.model->cache_elements() * static_cast<int64_t>(size_of(trained_.model->dtype()));
}

}  // namespace egmla

#include "infer/decoder.h"

#include <algorithm>

namespace egmla {
namespace {

void check_prompt(const std::vector<int32_t>& prompt, int64_t positions) {
  check_usage(!prompt.empty(), "generate: the prompt holds no token");
  check_usage(static_cast<int64_t>(prompt.size()) < positions,
              "generate: the prompt has {} tokens, model.max_position_embeddings is {}; shorten the prompt",
              prompt.size(), positions);
}

// One id a sequence that is still going on, after a prefill or a step. `seen`: each sequence's ids so far.
std::vector<int32_t> draw(BatchDecoder& decoder, const SamplingOptions& sampling, const std::vector<bool>& active,
                          const std::vector<std::vector<int32_t>>& seen) {
  if (sampling.temperature == 0 && sampling.repetition_penalty == 1) return decoder.most_probable();
  std::vector<int32_t> ids(active.size(), 0);
  for (size_t i = 0; i < active.size(); ++i) {
    if (!active[i]) continue;
    const auto sequence = static_cast<int64_t>(i);
    std::vector<float> logits = decoder.logits(sequence);
    penalize_repetition(logits, seen[i], sampling.repetition_penalty);
    ids[i] = sample(logits, sampling, static_cast<uint64_t>(decoder.length(sequence)));
  }
  return ids;
}

}  // namespace

std::vector<float> Decoder::feed(const std::vector<int32_t>& ids) {
  check(length() + static_cast<int64_t>(ids.size()) <= batch_.capacity(),
        "decoder: {} tokens on top of {} exceed its {}", ids.size(), length(), batch_.capacity());
  if (ids.size() == 1) {
    batch_.step(ids);
  } else {
    batch_.prefill(0, ids);
  }
  return batch_.logits(0);
}

std::vector<std::vector<int32_t>> generate_batch(Transformer& model, const std::vector<std::vector<int32_t>>& prompts,
                                                 const GenerationOptions& options) {
  const int64_t positions = model.config().max_position_embeddings;
  int64_t longest = 0;
  for (const std::vector<int32_t>& prompt : prompts) {
    check_prompt(prompt, positions);
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
  }
  std::vector<std::vector<int32_t>> out(prompts.size());
  if (prompts.empty() || options.max_new_tokens <= 0) return out;
  BatchDecoder decoder(model, static_cast<int64_t>(prompts.size()),
                       std::min(longest + options.max_new_tokens, positions));
  for (size_t i = 0; i < prompts.size(); ++i) decoder.prefill(static_cast<int64_t>(i), prompts[i]);
  std::vector<bool> active(prompts.size(), true);
  std::vector<std::vector<int32_t>> seen = prompts;
  for (;;) {
    const std::vector<int32_t> ids = draw(decoder, options.sampling, active, seen);
    bool any = false;
    for (size_t i = 0; i < prompts.size(); ++i) {
      if (!active[i]) continue;
      active[i] = ids[i] != options.end_of_text;
      if (!active[i]) continue;
      out[i].push_back(ids[i]);
      seen[i].push_back(ids[i]);
      if (options.on_token) options.on_token(ids[i]);
      if (options.on_prompt_token) options.on_prompt_token(i, ids[i]);
      active[i] = static_cast<int64_t>(out[i].size()) < options.max_new_tokens &&
                  decoder.length(static_cast<int64_t>(i)) < positions && !(options.stopped && options.stopped());
      any = any || active[i];
    }
    if (!any) return out;
    decoder.step(ids);
  }
}

std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerationOptions& options) {
  return generate_batch(model, {prompt}, options).front();
}

}  // namespace egmla

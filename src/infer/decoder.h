// Text from prompts, token by token, through a cache (infer/batch_decoder.h).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "infer/batch_decoder.h"
#include "infer/sampler.h"

namespace egmla {

// One sequence.
class Decoder {
 public:
  // Room for `capacity` tokens; raises a usage error beyond max_position_embeddings.
  Decoder(Transformer& model, int64_t capacity) : batch_(model, 1, capacity) {}

  // Feeds the next tokens and returns the logits [V] that follow the last.
  std::vector<float> feed(const std::vector<int32_t>& ids);
  int64_t length() const { return batch_.length(0); }

 private:
  BatchDecoder batch_;
};

struct GenerationOptions {
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  int32_t end_of_text = -1;                    // stops there; -1: never
  std::function<void(int32_t id)> on_token{};  // as soon as it is drawn
  std::function<bool()> stopped{};             // asked after on_token: true ends the text (of the prompt just served)
  // The same with several prompts: which of them, and the id.
  std::function<void(size_t prompt, int32_t id)> on_prompt_token{};
};

// The new ids after `prompt`, without the end-of-text id. A prompt longer than the model's positions is a usage error;
// the text ends where positions end.
std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt, const GenerationOptions& options);

// The same for several prompts in one batch. Each draws as if it were alone: what it draws is a pure function of its
// logits, the seed and the position.
std::vector<std::vector<int32_t>> generate_batch(Transformer& model, const std::vector<std::vector<int32_t>>& prompts,
                                                 const GenerationOptions& options);

}  // namespace egmla

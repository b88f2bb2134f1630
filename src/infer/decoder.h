// Text from a prompt, token by token, through a cache: latents and the rope key for MLA and EG-MLA, k and v for MHA,
// token ids once per sequence.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "infer/sampler.h"
#include "nn/transformer.h"

namespace egmla {

class Decoder {
 public:
  // Room for `capacity` tokens of one sequence; raises a usage error beyond max_position_embeddings.
  Decoder(Transformer& model, int64_t capacity);

  // Feeds the next tokens and returns the logits [V] that follow the last.
  std::vector<float> feed(const std::vector<int32_t>& ids);
  int64_t length() const { return static_cast<int64_t>(ids_.size()); }

 private:
  Transformer* model_;
  int64_t capacity_;
  std::vector<int32_t> ids_;
  std::vector<LayerCache> caches_;
};

struct GenerationOptions {
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
  int32_t end_of_text = -1;                    // stops there; -1: never
  std::function<void(int32_t id)> on_token{};  // as soon as it is drawn
  std::function<bool()> stopped{};             // asked after on_token: true ends the text
};

// The new ids after `prompt`, without the end-of-text id. A prompt longer than the model's positions is a usage error;
// the text ends where positions end.
std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt, const GenerationOptions& options);

}  // namespace egmla

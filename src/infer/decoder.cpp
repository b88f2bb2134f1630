#include "infer/decoder.h"

#include <algorithm>
#include <numeric>

#include "core/bf16.h"

namespace egmla {
namespace {

std::vector<float> host_floats(const Tensor& tensor) {
  if (tensor.dtype() == DType::f32) return tensor.to_host<float>();
  if (tensor.dtype() == DType::f64) {
    const std::vector<double> values = tensor.to_host<double>();
    return {values.begin(), values.end()};
  }
  std::vector<uint16_t> bits(static_cast<size_t>(tensor.shape().elements()));
  tensor.context().copy_to_host(bits.data(), tensor.view().data, tensor.view().bytes());
  std::vector<float> values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), float_from_bf16);
  return values;
}

}  // namespace

Decoder::Decoder(Transformer& model, int64_t capacity) : model_(&model), capacity_(capacity) {
  check_usage(capacity <= model.config().max_position_embeddings,
              "generate: {} tokens asked, model.max_position_embeddings is {}", capacity,
              model.config().max_position_embeddings);
  caches_ = model.make_caches(1, capacity);
}

std::vector<float> Decoder::feed(const std::vector<int32_t>& ids) {
  const int64_t T = static_cast<int64_t>(ids.size()), past = length();
  check(T > 0 && past + T <= capacity_, "decoder: {} tokens on top of {} exceed its {}", T, past, capacity_);
  for (int32_t id : ids)
    check_usage(id >= 0 && id < model_->config().vocab_size, "generate: id {} is outside the vocabulary of {}", id,
                model_->config().vocab_size);
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  Context& context = model_->parameters().context();
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(past));
  Batch batch;
  batch.tokens = ops::make_token_index(context, ids, 1, T, false);
  batch.all_tokens = ops::make_token_index(context, ids_, 1, past + T, false);
  batch.positions = Tensor::from(context, {1, T}, positions);
  batch.past = past;
  return host_floats(model_->next_logits(batch, caches_));
}

std::vector<int32_t> generate(Transformer& model, const std::vector<int32_t>& prompt,
                              const GenerationOptions& options) {
  check_usage(!prompt.empty(), "generate: the prompt holds no token");
  const int64_t given = static_cast<int64_t>(prompt.size()), positions = model.config().max_position_embeddings;
  check_usage(given < positions,
              "generate: the prompt has {} tokens, model.max_position_embeddings is {}; shorten the prompt", given,
              positions);
  Decoder decoder(model, std::min(given + options.max_new_tokens, positions));
  std::vector<int32_t> out;
  std::vector<int32_t> next = prompt, sequence = prompt;
  while (static_cast<int64_t>(out.size()) < options.max_new_tokens &&
         decoder.length() + static_cast<int64_t>(next.size()) <= positions) {
    std::vector<float> logits = decoder.feed(next);
    penalize_repetition(logits, sequence, options.sampling.repetition_penalty);
    const int32_t id = sample(logits, options.sampling, static_cast<uint64_t>(decoder.length()));
    if (id == options.end_of_text) break;
    out.push_back(id);
    if (options.on_token) options.on_token(id);
    if (options.stopped && options.stopped()) break;
    next = {id};
    sequence.push_back(id);
  }
  return out;
}

}  // namespace egmla

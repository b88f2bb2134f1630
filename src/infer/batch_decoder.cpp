#include "infer/batch_decoder.h"

#include <algorithm>
#include <numeric>

#include "infer/host_values.h"
#include "kernels/decode_cache.h"
#include "kernels/layout.h"

namespace egmla {
namespace {

// Folding pays where it multiplies fewer rows than the steps would, and where its tables leave most of the memory free.
bool folding_pays(Transformer& model, int64_t sequences, int64_t capacity) {
  constexpr int64_t kShareOfMemory = 4;
  const double rows = 0.5 * static_cast<double>(sequences) * static_cast<double>(capacity * capacity);
  return static_cast<double>(model.config().vocab_size) < rows &&
         folded_gate_bytes(model) <= model.parameters().context().free_memory() / kShareOfMemory;
}

DecodeState checked_state(const Transformer& model, int64_t sequences, int64_t capacity) {
  check_usage(capacity <= model.config().max_position_embeddings,
              "generate: {} tokens asked, model.max_position_embeddings is {}", capacity,
              model.config().max_position_embeddings);
  return model.make_decode_state(sequences, capacity);
}

}  // namespace

int64_t folded_gate_bytes(const Transformer& model) {
  return model.folded_features() * model.config().vocab_size * static_cast<int64_t>(size_of(model.dtype()));
}

BatchDecoder::BatchDecoder(Transformer& model, int64_t sequences, int64_t capacity)
    : model_(&model), state_(checked_state(model, sequences, capacity)), lengths_(static_cast<size_t>(sequences), 0) {
  const GateFolding folding = model.gate_folding();
  if (folding == GateFolding::never || model.folded_features() == 0) return;
  if (folding == GateFolding::always || folding_pays(model, sequences, capacity)) state_.tables = model.fold_gates();
}

void BatchDecoder::check_ids(const std::vector<int32_t>& ids) const {
  for (const int32_t id : ids)
    check_usage(id >= 0 && id < model_->config().vocab_size, "generate: id {} is outside the vocabulary of {}", id,
                model_->config().vocab_size);
}

void BatchDecoder::set_position(int64_t sequence, int64_t position) {
  const auto value = static_cast<int32_t>(position);
  state_.context().copy_from_host(state_.positions.view().rows(sequence, 1).data, &value, sizeof(value));
}

void BatchDecoder::prefill(int64_t sequence, const std::vector<int32_t>& ids) {
  Context& context = state_.context();
  const int64_t T = static_cast<int64_t>(ids.size()), past = length(sequence);
  check(T > 0 && past + T <= capacity(), "decoder: {} tokens on top of {} exceed its {}", T, past, capacity());
  check_ids(ids);
  std::vector<int32_t> positions(ids.size());
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(past));
  Batch batch;
  batch.tokens = ops::make_token_index(context, ids, 1, T, false);
  batch.positions = Tensor::from(context, {1, T}, positions);
  batch.past = past;
  if (state_.ids.defined()) {
    const View row = state_.ids.view().rows(sequence, 1);
    context.copy_from_host(row.columns(past, T).data, ids.data(), ids.size() * sizeof(int32_t));
    std::vector<int32_t> all(static_cast<size_t>(past + T));
    context.copy_to_host(all.data(), row.data, all.size() * sizeof(int32_t));
    batch.all_tokens = ops::make_token_index(context, all, 1, past + T, false);
  }
  std::vector<LayerCache> caches;
  for (const LayerCache& layer : state_.layers) caches.push_back(layer.sequence(sequence));
  const Tensor next = model_->next_logits(batch, caches);
  const View row = logits().rows(sequence, 1);
  launch(context, Copy{.out = row, .x = next.view().as_matrix()});
  set_position(sequence, past + T - 1);
  launch(context, GreedyStep{.tokens = state_.tokens.view().rows(sequence, 1),
                             .positions = state_.positions.view().rows(sequence, 1),
                             .logits = row,
                             .capacity = capacity()});
  lengths_[static_cast<size_t>(sequence)] = past + T;
}

void BatchDecoder::step(const std::vector<int32_t>& ids) {
  check(static_cast<int64_t>(ids.size()) == sequences(), "decoder: {} tokens for {} sequences", ids.size(),
        sequences());
  check_ids(ids);
  state_.context().copy_from_host(state_.tokens.view().data, ids.data(), ids.size() * sizeof(int32_t));
  run_step();
}

void BatchDecoder::step() {
  run_step();
}

void BatchDecoder::run_step() {
  graph_.run(state_.context(), [&] { model_->decode_step(state_); });
  for (int64_t& length : lengths_) length = std::min(length + 1, capacity());
}

View BatchDecoder::logits() {
  return state_.buffer("logits", {sequences(), model_->config().vocab_size});
}

std::vector<float> BatchDecoder::logits(int64_t sequence) {
  return host_values<float>(state_.context(), logits().rows(sequence, 1));
}

void BatchDecoder::spread(int64_t length) {
  check(length <= this->length(0), "decoder: sequence 0 has {} tokens, {} asked", this->length(0), length);
  const auto copy_rows = [&](const Tensor& tensor) {
    if (!tensor.defined()) return;
    const View source = tensor.view().rows(0, 1).middle(0, length);
    const size_t bytes = source.bytes();
    for (int64_t b = 1; b < sequences(); ++b) state_.context().copy(tensor.view().rows(b, 1).data, source.data, bytes);
  };
  copy_rows(state_.ids);
  for (const LayerCache& layer : state_.layers) {
    copy_rows(layer.rows);
    for (const auto* tensors : {&layer.mean, &layer.rstd}) {
      for (const Tensor& tensor : *tensors) copy_rows(tensor);
    }
  }
  for (int64_t b = 0; b < sequences(); ++b) set_position(b, length);
  std::fill(lengths_.begin(), lengths_.end(), length);
}

}  // namespace egmla

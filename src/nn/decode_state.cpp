#include "nn/decode_state.h"

#include <algorithm>
#include <utility>

namespace egmla {
namespace {

int64_t bytes_of_tensor(const Tensor& tensor) {
  return tensor.defined() ? static_cast<int64_t>(tensor.view().bytes()) : 0;
}

}  // namespace

LayerCache LayerCache::sequence(int64_t b) const {
  const auto row = [b](const Tensor& tensor) { return tensor.with_view(tensor.view().rows(b, 1)); };
  LayerCache out{row(rows), mean, rstd};
  for (auto* tensors : {&out.mean, &out.rstd}) std::transform(tensors->begin(), tensors->end(), tensors->begin(), row);
  return out;
}

DecodeState::DecodeState(Context& context, DType dtype, int64_t sequences, int64_t capacity)
    : context_(&context), dtype_(dtype), sequences_(sequences), capacity_(capacity) {
  tokens = Tensor::zeros(context, {sequences}, DType::i32);
  positions = Tensor::zeros(context, {sequences}, DType::i32);
  turn_ = Tensor::zeros(context, {1}, DType::i32);
}

View DecodeState::buffer(const std::string& name, const Shape& shape, DType dtype) {
  Tensor& tensor = buffers_[name];
  if (!tensor.defined()) tensor = Tensor::empty(*context_, shape, dtype);
  check(tensor.shape() == shape && tensor.dtype() == dtype, "decode: buffer {} is {} {}, asked for {} {}", name,
        name_of(tensor.dtype()), tensor.shape().text(), name_of(dtype), shape.text());
  return tensor.view();
}

void DecodeState::run_parts() {
  launch_chain(*context_, std::exchange(parts_, {}), turn_.view());
}

int64_t DecodeState::cache_bytes() const {
  int64_t sum = bytes_of_tensor(ids);
  for (const LayerCache& layer : layers) {
    sum += bytes_of_tensor(layer.rows);
    for (const auto* tensors : {&layer.mean, &layer.rstd}) {
      for (const Tensor& tensor : *tensors) sum += bytes_of_tensor(tensor);
    }
  }
  return sum;
}

int64_t DecodeState::buffer_bytes() const {
  int64_t sum = 0;
  for (const auto& [name, tensor] : buffers_) sum += bytes_of_tensor(tensor);
  return sum;
}

}  // namespace egmla

#include "core/tensor.h"

namespace egmla {

Tensor Tensor::empty(Context& context, const Shape& shape, DType dtype) {
  Tensor out;
  const size_t bytes = static_cast<size_t>(shape.elements()) * size_of(dtype);
  void* data = context.allocate(bytes);
  const MemoryCategory category = context.memory_category();
  context.memory().by_category[static_cast<size_t>(category)] += static_cast<int64_t>(bytes);
  out.storage_ = std::shared_ptr<Storage>(new Storage{&context, data, bytes, category});
  out.view_ = make_view(data, shape, dtype);
  return out;
}

Tensor Tensor::zeros(Context& context, const Shape& shape, DType dtype) {
  Tensor out = empty(context, shape, dtype);
  context.clear(out.view_.data, out.view_.bytes());
  return out;
}

Tensor Tensor::reshaped(const Shape& shape) const {
  check(view_.contiguous(), "tensor: reshape needs a contiguous tensor, shape {}", view_.shape.text());
  check(shape.elements() == view_.elements(), "tensor: cannot reshape {} to {}", view_.shape.text(), shape.text());
  return with_view(make_view(view_.data, shape, view_.dtype));
}

}  // namespace egmla

// Tensor: a value that shares storage; row-major unless it is a slice of another tensor.
#pragma once

#include <memory>
#include <vector>

#include "core/context.h"
#include "core/view.h"

namespace egmla {

class Tensor {
 public:
  Tensor() = default;

  // Uninitialised memory from the context's pool.
  static Tensor empty(Context& context, const Shape& shape, DType dtype);
  static Tensor zeros(Context& context, const Shape& shape, DType dtype);
  // Copies `values` (row-major, exactly shape.elements() of them) to the context.
  template <class T>
  static Tensor from(Context& context, const Shape& shape, const std::vector<T>& values) {
    check(static_cast<int64_t>(values.size()) == shape.elements(), "tensor: {} values for shape {}", values.size(),
          shape.text());
    Tensor out = empty(context, shape, DTypeOf<T>::value);
    context.copy_from_host(out.view_.data, values.data(), out.view_.bytes());
    return out;
  }

  bool defined() const { return view_.defined(); }
  const View& view() const { return view_; }
  const Shape& shape() const { return view_.shape; }
  DType dtype() const { return view_.dtype; }
  Context& context() const { return *storage_->context; }
  // True when no other tensor shares this storage.
  bool unique() const { return storage_.use_count() == 1; }

  // The same storage seen through another view (a slice or another shape).
  Tensor with_view(const View& view) const {
    Tensor out = *this;
    out.view_ = view;
    return out;
  }
  // Row-major tensor under another shape of equal size.
  Tensor reshaped(const Shape& shape) const;

  // Copies to the host. The tensor must be contiguous and of type T.
  template <class T>
  std::vector<T> to_host() const {
    check(view_.contiguous(), "tensor: to_host needs a contiguous tensor, shape {}", view_.shape.text());
    std::vector<T> out(static_cast<size_t>(view_.elements()));
    context().copy_to_host(out.data(), view_.as<T>(), view_.bytes());
    return out;
  }

 private:
  struct Storage {
    Context* context;
    void* data;
    size_t bytes;
    MemoryCategory category;
    ~Storage() {
      context->memory().by_category[static_cast<size_t>(category)] -= static_cast<int64_t>(bytes);
      context->release(data, bytes);
    }
  };

  std::shared_ptr<Storage> storage_;
  View view_;
};

}  // namespace egmla

// View: typed, strided window onto memory owned elsewhere; all that kernels see. The last axis is always contiguous.
#pragma once

#include "core/dtype.h"
#include "core/shape.h"

namespace egmla {

struct View {
  void* data = nullptr;
  Shape shape;
  Shape strides;  // in elements; strides.back() == 1
  DType dtype = DType::f32;

  bool defined() const { return data != nullptr; }
  int rank() const { return shape.rank(); }
  int64_t size(int axis) const { return shape[axis]; }
  int64_t stride(int axis) const { return strides[axis]; }
  int64_t elements() const { return shape.elements(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }

  // Typed pointer; raises when the dtype differs.
  template <class T>
  T* as() const {
    check(dtype == DTypeOf<T>::value, "view: holds {}, asked for {}", name_of(dtype), name_of(DTypeOf<T>::value));
    return static_cast<T*>(data);
  }

  bool contiguous() const {
    int64_t expected = 1;
    for (int i = rank() - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) return false;
      expected *= shape[i];
    }
    return true;
  }

  // Columns [begin, begin + width) of the last axis.
  View columns(int64_t begin, int64_t width) const {
    View out = *this;
    out.data = static_cast<char*>(data) + static_cast<size_t>(begin) * size_of(dtype);
    out.shape[-1] = width;
    return out;
  }

  // Rows [begin, begin + count) of the first axis.
  View rows(int64_t begin, int64_t count) const {
    View out = *this;
    out.data = static_cast<char*>(data) + static_cast<size_t>(begin * strides[0]) * size_of(dtype);
    out.shape[0] = count;
    return out;
  }

  // Rows [begin, begin + count) of the second axis.
  View middle(int64_t begin, int64_t count) const {
    View out = *this;
    out.data = static_cast<char*>(data) + static_cast<size_t>(begin * strides[1]) * size_of(dtype);
    out.shape[1] = count;
    return out;
  }

  // [..., C] seen as [rows, C]; raises when the leading axes do not collapse into one stride.
  View as_matrix() const {
    check(rank() >= 1, "view: a scalar has no rows");
    View out = *this;
    const int64_t columns_count = shape.back();
    out.shape = {columns_count ? elements() / columns_count : 0, columns_count};
    int64_t row_stride = columns_count;
    for (int i = rank() - 2; i >= 0; --i) {
      if (shape[i] == 1) continue;
      row_stride = strides[i];
      break;
    }
    int64_t expected = row_stride;
    for (int i = rank() - 2, seen = 0; i >= 0; --i) {
      if (shape[i] == 1 && !seen) continue;
      seen = 1;
      check(shape[i] == 1 || strides[i] == expected, "view: leading axes of {} do not collapse", shape.text());
      expected *= shape[i];
    }
    out.strides = {row_stride, 1};
    return out;
  }

  // The last axis C split into [heads, C / heads].
  View split_heads(int64_t heads) const {
    View out = *this;
    const int64_t width = shape.back() / heads;
    Shape new_shape, new_strides;
    new_shape = shape.rank() == 3   ? Shape{shape[0], shape[1], heads, width}
                : shape.rank() == 2 ? Shape{shape[0], heads, width}
                                    : Shape{heads, width};
    new_strides = shape.rank() == 3   ? Shape{strides[0], strides[1], width, 1}
                  : shape.rank() == 2 ? Shape{strides[0], width, 1}
                                      : Shape{width, 1};
    out.shape = new_shape;
    out.strides = new_strides;
    return out;
  }
};

// Row-major strides of a shape.
inline Shape row_major_strides(const Shape& shape) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = shape.rank() - 1; i >= 0; --i) {
    strides[i] = step;
    step *= shape[i];
  }
  return strides;
}

inline View make_view(void* data, const Shape& shape, DType dtype) {
  return View{data, shape, row_major_strides(shape), dtype};
}

}  // namespace egmla

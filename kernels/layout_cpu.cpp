#include <cstring>

#include "kernels/cpu_utils.h"
#include "kernels/layout.h"

namespace egmla {

void run(CpuContext&, const Copy& k) {
  check(k.out.shape == k.x.shape && k.out.dtype == k.x.dtype,
        "copy: shapes and dtypes must agree; out is {} {}, x is {} {}", k.out.shape.text(), name_of(k.out.dtype),
        k.x.shape.text(), name_of(k.x.dtype));
  const int rank = k.x.rank();
  const size_t item = size_of(k.x.dtype);
  const int64_t width = k.x.shape.back(), rows = width ? k.x.elements() / width : 0;
  const auto offset = [&](const View& view, int64_t row) {
    int64_t position = 0;
    for (int axis = rank - 2; axis >= 0; --axis) {
      position += row % view.size(axis) * view.stride(axis);
      row /= view.size(axis);
    }
    return static_cast<size_t>(position) * item;
  };
  cpu::parallel_ranges(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      std::memcpy(static_cast<char*>(k.out.data) + offset(k.out, row),
                  static_cast<const char*>(k.x.data) + offset(k.x, row), static_cast<size_t>(width) * item);
  });
}

}  // namespace egmla

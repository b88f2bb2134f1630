// A device's floats on the host, whatever it computes in.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace egmla {

// T: float or double. The view is f64, f32 or bf16, contiguous.
template <class T>
std::vector<T> host_values(Context& context, const View& view);

inline std::vector<double> host_values(const Tensor& tensor) {
  return host_values<double>(tensor.context(), tensor.view());
}

}  // namespace egmla

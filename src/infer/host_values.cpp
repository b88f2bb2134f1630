#include "infer/host_values.h"

#include <algorithm>

#include "core/bf16.h"

namespace egmla {

std::vector<double> host_values(const Tensor& tensor) {
  if (tensor.dtype() == DType::f64) return tensor.to_host<double>();
  if (tensor.dtype() == DType::f32) {
    const std::vector<float> values = tensor.to_host<float>();
    return {values.begin(), values.end()};
  }
  check(tensor.dtype() == DType::bf16 && tensor.view().contiguous(), "host_values: needs contiguous floats, found {}",
        name_of(tensor.dtype()));
  std::vector<uint16_t> bits(static_cast<size_t>(tensor.shape().elements()));
  tensor.context().copy_to_host(bits.data(), tensor.view().data, tensor.view().bytes());
  std::vector<double> values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), float_from_bf16);
  return values;
}

}  // namespace egmla

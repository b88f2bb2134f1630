#include "infer/host_values.h"

#include <algorithm>

#include "core/bf16.h"

namespace egmla {
namespace {

template <class T>
std::vector<T> copy_of(Context& context, const View& view) {
  std::vector<T> values(static_cast<size_t>(view.elements()));
  context.copy_to_host(values.data(), view.data, view.bytes());
  return values;
}

}  // namespace

template <class T>
std::vector<T> host_values(Context& context, const View& view) {
  check(view.contiguous(), "host_values: needs contiguous values, found {}", view.shape.text());
  const auto convert = [&]<class S>(const std::vector<S>& stored) {
    if constexpr (std::is_same_v<S, T>) {
      return stored;
    } else {
      std::vector<T> values(stored.size());
      std::transform(stored.begin(), stored.end(), values.begin(), [](S value) { return static_cast<T>(value); });
      return values;
    }
  };
  if (view.dtype == DType::f64) return convert(copy_of<double>(context, view));
  if (view.dtype == DType::f32) return convert(copy_of<float>(context, view));
  check(view.dtype == DType::bf16, "host_values: needs floats, found {}", name_of(view.dtype));
  const std::vector<uint16_t> bits = copy_of<uint16_t>(context, view);
  std::vector<T> values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), float_from_bf16);
  return values;
}

template std::vector<float> host_values(Context& context, const View& view);
template std::vector<double> host_values(Context& context, const View& view);

}  // namespace egmla

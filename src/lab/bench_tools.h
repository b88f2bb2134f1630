// What the benchmarks share: random operands, the time of a body of work, and the rate of a plain copy.
#pragma once

#include <functional>

#include "core/tensor.h"

namespace egmla {

// Fresh memory seen through a view of `like`'s shape, strides, dtype and alignment: standard normal values, zeros for
// integers. Undefined for an undefined view.
Tensor random_like(Context& context, const View& like);
// The same, contiguous.
Tensor random_tensor(Context& context, const Shape& shape, DType dtype);

// Seconds of one run of `body` when it is repeated without a pause, so that the device never waits for the host: the
// median of several rounds.
double seconds_of(Context& context, const std::function<void()>& body);

// Bytes a second, read and written together, of the faster of the device's own copy and our copy kernel.
double copy_bandwidth(Context& context);

}  // namespace egmla

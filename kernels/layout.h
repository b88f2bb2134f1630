// Moving data between strided views.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out = x element by element, equal shapes and dtypes, rank up to 4, both strided.
struct Copy {
  static constexpr const char* kName = "copy";
  View out, x;
};

EGMLA_DECLARE_KERNEL(Copy);

}  // namespace egmla

// Moving data between strided views.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// out = x element by element, equal shapes and dtypes, rank up to 4, both strided.
struct Copy {
  static constexpr const char* kName = "copy";
  View out, x;
};

inline KernelViews views_of(const Copy& k) {
  return {.written = {{"out", k.out}}, .read = {{"x", k.x}}};
}

EGMLA_DECLARE_KERNEL(Copy);

}  // namespace egmla

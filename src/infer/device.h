// Which device a run uses and what it computes in.
#pragma once

#include <memory>

#include "core/context.h"
#include "core/dtype.h"
#include "io/config.h"

namespace egmla {

// `auto`: a CUDA device when this build and this machine have one, else the CPU. Asking for what is not there is a
// usage error.
std::unique_ptr<Context> open_device(DeviceChoice device);

// `auto`: bf16 on CUDA, fp32 on the CPU.
DType compute_dtype(Precision precision, const Context& context);

}  // namespace egmla

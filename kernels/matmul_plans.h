// cuBLASLt's algorithms, and attention's kernels (kernels/attention_choice.h), are chosen by measurement when a shape
// is first met. A plan file carries the choices to later runs, so that they start at once and repeat bit for bit on the
// same card and library.
#pragma once

#include <string>

#include "core/context_cuda.h"

namespace egmla {

// Takes over the plans of a file written by save_matmul_plans(). A missing file, or one of another card, driver or
// cuBLASLt, holds none. Returns how many were taken; one that the library refuses later is measured anew.
int load_matmul_plans(CudaContext& context, const std::string& path);

// Writes every plan of this process.
void save_matmul_plans(CudaContext& context, const std::string& path);

}  // namespace egmla

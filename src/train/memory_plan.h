// What training a configuration holds in memory, told without allocating: one micro-batch runs forward and backward on
// a plan, which counts bytes as the device's pool would.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"
#include "io/config.h"

namespace egmla {

struct MemoryPlan {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;  // bytes; activations of one micro-batch
  int64_t total() const { return weights + gradients + optimizer + activations; }
};

// Of one of so many `processes`, which with parallel.zero_stage share the optimizer's state out.
MemoryPlan plan_memory(const Config& config, bool for_cpu, DType dtype, int64_t micro_batch_size, int processes = 1);

// What to do when `capacity` bytes are too few for a micro-batch: the largest one that divides `sequences` (what one
// process has of a step) and fits, else the key that lowers the rest.
std::string memory_advice(const Config& config, bool for_cpu, DType dtype, int64_t micro_batch_size, int64_t sequences,
                          int64_t capacity, int processes = 1);

}  // namespace egmla

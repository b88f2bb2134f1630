// What a configuration costs, told without data and without memory: parameters, cache, FLOPs, bytes.
#pragma once

#include <string>

#include "io/config.h"
#include "train/memory_plan.h"

namespace egmla {

struct Inspection {
  int64_t parameters = 0, embedding = 0, attention = 0, ffn = 0, norms = 0, gate_tables = 0, matmul = 0;
  int64_t cache_elements = 0;          // per token, all layers
  int64_t mha_cache_elements = 0;      // of MHA with the same heads and value width
  int64_t cache_bytes = 0;             // per token in the compute type
  int64_t cache_statistics_bytes = 0;  // beside them, of the gates' norms, when decoding (f32)
  double flops_per_token = 0;          // forward and backward, matrix products alone
  MemoryPlan memory;
  int processes = 1;
  bool for_cpu = true;
  std::string dtype;
};

// Runs one forward and backward pass on a plan of the device that run.device and run.precision ask for; memory is that
// of one of so many `processes`.
Inspection inspect(const Config& config, int processes = 1);

std::string inspection_text(const Config& config, const Inspection& found);
std::string inspection_json(const Inspection& found);

}  // namespace egmla

// stats.json of a run directory: what the model is and what it was trained on, for reports.
#pragma once

#include <string>

#include "nn/transformer.h"

namespace egmla {

// Sets parameters, gate_tables, cache_elements, flops_per_token, hardware and commit; other keys of the file stay.
void write_run_stats(const std::string& path, const Transformer& model, int64_t sequence_length,
                     const std::string& device);

}  // namespace egmla

// The part of a step that training and benchmarks share.
#pragma once

#include <vector>

#include "data/batches.h"
#include "nn/transformer.h"

namespace egmla {

// Forward and backward of every micro-batch; leaves the gradients of the mean loss over all counted targets in the
// parameter store and returns the parts of that loss, one [1] a micro-batch.
std::vector<Tensor> accumulate_gradients(Transformer& model, const std::vector<HostBatch>& batches);

}  // namespace egmla

// The part of a step that training and benchmarks share.
#pragma once

#include <vector>

#include "data/batches.h"
#include "dist/gradient_sync.h"
#include "nn/transformer.h"

namespace egmla {

// Forward and backward of every micro-batch; leaves the gradients of the mean loss over all counted targets in the
// parameter store and returns the parts of that loss, one [1] a micro-batch. With `sync` the mean is over the batches
// of all ranks, and so are the gradients, which leave bucket by bucket during the last backward; the returned parts are
// this rank's.
std::vector<Tensor> accumulate_gradients(Transformer& model, const std::vector<HostBatch>& batches,
                                         GradientSync* sync = nullptr);

}  // namespace egmla

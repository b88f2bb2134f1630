// Data parallelism: each rank has gradients of its share of a step's samples, and all of them need the sum.
// The flat gradient buffer is reduced bucket by bucket; each element is summed alone, so buckets change no bit.
#pragma once

#include "dist/communicator.h"
#include "nn/parameter_store.h"

namespace egmla {

class GradientSync {
 public:
  GradientSync(ParameterStore& store, Communicator& communicator, int64_t bucket_mb);

  Communicator& communicator() { return *communicator_; }
  // Sums all gradients over the ranks; called when a step's last micro-batch is through.
  void reduce();

 private:
  ParameterStore* store_;
  Communicator* communicator_;
  int64_t bucket_;  // elements
};

}  // namespace egmla

// The flat buffers of a model cut into buckets that processes exchange as a whole, in the order in which backward
// completes them: the last layers first, the embedding last. Equal on every rank, since it follows from the model
// alone.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/communicator.h"
#include "nn/parameter_store.h"

namespace egmla {

// Neighbours in the buffers, of one group.
struct Bucket {
  Span span;
  ParameterGroup group = ParameterGroup::matrix;
  std::vector<const Parameter*> parameters;  // whose gradients it waits for
};

// Buckets of at most `elements`, except for larger parameters, which have one each. Together they cover the buffers
// once.
std::vector<Bucket> plan_buckets(ParameterStore& store, int64_t elements);

// A rank's part of each bucket, for ParameterStore::allocate: the first bucket that forward reads comes first.
std::vector<OwnPart> own_parts(const std::vector<Bucket>& buckets, const Rank& rank);

// The same as parallel.zero_stage asks for; empty where every process updates everything.
std::vector<OwnPart> parts_to_update(const std::vector<Bucket>& buckets, const Rank& rank, int64_t zero_stage);

}  // namespace egmla

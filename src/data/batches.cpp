#include "data/batches.h"

#include "kernels/cross_entropy.h"

namespace egmla {

void BatchBuilder::append(HostBatch& batch, const int32_t* ids, int64_t count, int64_t first_counted) const {
  batch.T = sequence_length_;
  ++batch.B;
  int32_t start = 0;
  for (int64_t t = 0; t < sequence_length_; ++t) {
    const bool inside = t + 1 < count;
    if (inside && end_of_text_ && t > 0 && ids[t - 1] == *end_of_text_) start = static_cast<int32_t>(t);
    const bool masked = !inside || t < first_counted || (end_of_text_ && ids[t] == *end_of_text_);
    batch.inputs.push_back(inside ? ids[t] : 0);
    batch.targets.push_back(masked ? kIgnoreIndex : ids[t + 1]);
    batch.counted += masked ? 0 : 1;
    if (end_of_text_) batch.document_start.push_back(start);
  }
}

Batch to_device(Context& context, const HostBatch& batch, bool training) {
  Batch out;
  out.tokens = ops::make_token_index(context, batch.inputs, batch.B, batch.T, training);
  out.targets = Tensor::from(context, {batch.B, batch.T}, batch.targets);
  if (!batch.document_start.empty())
    out.document_start = Tensor::from(context, {batch.B, batch.T}, batch.document_start);
  return out;
}

}  // namespace egmla

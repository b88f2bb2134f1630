// From token ids to what the model reads.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "nn/batch.h"

namespace egmla {

// B sequences of T + 1 ids, some perhaps shorter, on their way to the device.
struct HostBatch {
  int64_t B = 0, T = 0;
  std::vector<int32_t> inputs, targets;  // [B T]; targets kIgnoreIndex where nothing is to be predicted
  std::vector<int32_t> document_start;   // [B T], empty when documents are not masked
  int64_t counted = 0;                   // targets that count
};

class BatchBuilder {
 public:
  // With `end_of_text`, attention stops at document borders and the first token of a document is not predicted from
  // the one before (data.mask_documents).
  BatchBuilder(int64_t sequence_length, std::optional<int32_t> end_of_text)
      : sequence_length_(sequence_length), end_of_text_(end_of_text) {}

  int64_t sequence_length() const { return sequence_length_; }
  // Appends a sequence of `count` ids, 2 <= count <= T + 1. Targets before the position `first_counted` are context
  // alone.
  void append(HostBatch& batch, const int32_t* ids, int64_t count, int64_t first_counted = 0) const;

 private:
  int64_t sequence_length_;
  std::optional<int32_t> end_of_text_;
};

// Copies to the device; `training` groups tokens by id, which gradients need.
Batch to_device(Context& context, const HostBatch& batch, bool training);

}  // namespace egmla

// cuDNN's attention: the graphs it fuses into one kernel, and the memory they need. bf16, causal, as many keys as
// queries, no documents. MLA's shared rope key is copied behind every head's own key first, since cuDNN wants whole
// keys. The backward graph stores dS whole (B H T^2 bf16 of scratch), which makes it deterministic.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/attention.h"

namespace egmla {

// Direction, sizes and strides: all that an engine's suitability and speed depend on.
using AttentionKey = std::vector<int64_t>;
AttentionKey key_of(const AttentionForward& kernel);
AttentionKey key_of(const AttentionBackward& kernel);

class CudnnAttention {
 public:
  virtual ~CudnnAttention() = default;
  virtual int64_t version() const = 0;
  // Whether run() may be called: some engine takes this shape and there is room for its scratch. Builds the plan; a
  // refusal is logged once.
  virtual bool accepts(const AttentionForward& kernel) = 0;
  virtual bool accepts(const AttentionBackward& kernel) = 0;
  virtual void run(CudaContext& context, const AttentionForward& kernel) = 0;
  virtual void run(CudaContext& context, const AttentionBackward& kernel) = 0;
};

// Null where this build or this machine has no cuDNN; the reason is logged.
std::shared_ptr<CudnnAttention> open_cudnn(CudaContext& context);

// k_rope_grad[b, t, 0, c] = sum over heads h of per_head[b, t, h, c], in f32 and in the order of the heads. bf16.
void sum_rope_gradient(CudaContext& context, const View& k_rope_grad, const View& per_head);

}  // namespace egmla

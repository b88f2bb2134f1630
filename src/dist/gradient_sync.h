// Data parallelism: each rank has gradients of its share of a step's samples, and all of them need the sum.
// The flat gradients are summed bucket by bucket, each as soon as the last micro-step's backward has completed it,
// while backward goes on; an element is summed alone, so buckets change no bit. Where processes share the optimizer's
// state out (ZeRO 1), each receives its part of the sums and sends its part of the new weights, which the next forward
// awaits.
#pragma once

#include <cstdint>
#include <vector>

#include "dist/buckets.h"
#include "optim/adamw.h"

namespace egmla {

class GradientSync final : public ParameterObserver {
 public:
  // The store is allocated, with the own_parts() of these buckets where its state is to be shared out. One process
  // alone exchanges nothing.
  GradientSync(ParameterStore& store, Communicator& communicator, std::vector<Bucket> buckets);
  GradientSync(const GradientSync&) = delete;
  GradientSync& operator=(const GradientSync&) = delete;
  ~GradientSync() override;

  Communicator& communicator() { return *communicator_; }
  // The optimizer measures the norm over all ranks, and its new weights reach all.
  void attach(AdamWOptimizer& optimizer);

  // The backward that follows is the step's last: buckets may leave from now on.
  void begin_last_backward();
  // Sends what is left, in particular parameters that no op used; kernels launched from now on see the sums.
  void finish();
  // Kernels launched from now on see all weights.
  void finish_weights();

  // The whole master weights, and a whole moment in master precision. Where a rank holds its part alone, or in bf16,
  // the whole lies in the memory of the gradients until the next step. Every rank calls them.
  const Tensor& collect_master();
  const Tensor& collect(const Tensor& own);

  // Exchanges nothing, for measuring what the exchange costs.
  void set_silent(bool silent) { silent_ = silent; }
  // Buckets sent before backward was over, in the last step.
  int64_t overlapped() const { return overlapped_; }
  size_t buckets() const { return buckets_.size(); }

  void before_read(const Parameter& parameter) override;
  void gradient_ready(const Parameter& parameter) override;

 private:
  bool alone() const { return communicator_->size() == 1; }
  void send(size_t bucket);
  void gather_weights(size_t part);

  ParameterStore* store_;
  Communicator* communicator_;
  std::vector<Bucket> buckets_;
  std::vector<int32_t> bucket_of_;  // by Parameter::ordinal
  std::vector<int64_t> missing_;    // gradients each bucket still waits for; kSent once it has left
  int64_t sent_ = 0;
  bool last_backward_ = false, silent_ = false;
  int64_t overlapped_ = 0;
  // Weights leave in the opposite order of buckets; those before `arrived_` need not be awaited any more.
  size_t gathered_ = 0, arrived_ = 0;
};

}  // namespace egmla

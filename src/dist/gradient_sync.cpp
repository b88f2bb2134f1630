#include "dist/gradient_sync.h"

#include <algorithm>

namespace egmla {

GradientSync::GradientSync(ParameterStore& store, Communicator& communicator, int64_t bucket_mb)
    : store_(&store),
      communicator_(&communicator),
      bucket_((bucket_mb << 20) / static_cast<int64_t>(size_of(store.grad().dtype()))) {}

void GradientSync::reduce() {
  if (communicator_->size() == 1) return;
  const int64_t n = store_->grad().shape().elements();
  for (int64_t begin = 0; begin < n; begin += bucket_)
    communicator_->all_reduce_sum(store_->slice(store_->grad(), {begin, std::min(bucket_, n - begin)}));
  communicator_->wait();
}

}  // namespace egmla

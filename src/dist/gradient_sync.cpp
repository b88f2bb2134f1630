#include "dist/gradient_sync.h"

#include <algorithm>

namespace egmla {
namespace {

constexpr int64_t kSent = -1;

}  // namespace

GradientSync::GradientSync(ParameterStore& store, Communicator& communicator, std::vector<Bucket> buckets)
    : store_(&store), communicator_(&communicator), buckets_(std::move(buckets)), missing_(buckets_.size()) {
  if (alone()) return;
  for (const PlacedParameter& place : store.places()) {
    for (Parameter* parameter : place.trained) {
      parameter->observer = this;
      bucket_of_.resize(std::max(bucket_of_.size(), static_cast<size_t>(parameter->ordinal) + 1), -1);
    }
  }
  for (size_t i = 0; i < buckets_.size(); ++i) {
    for (const Parameter* parameter : buckets_[i].parameters)
      bucket_of_[static_cast<size_t>(parameter->ordinal)] = static_cast<int32_t>(i);
  }
}

GradientSync::~GradientSync() {
  if (alone()) return;
  for (const PlacedParameter& place : store_->places()) {
    for (Parameter* parameter : place.trained) parameter->observer = nullptr;
  }
}

void GradientSync::attach(AdamWOptimizer& optimizer) {
  if (alone()) return;
  const int rank = communicator_->rank().number;
  NormShare share{.spans = {}, .rank = rank, .ranks = communicator_->size(), .gather = {}};
  for (const OwnPart& part : own_parts(buckets_, communicator_->rank())) share.spans.push_back(part.span);
  share.gather = [this](const View& values) {
    if (silent_) return;
    communicator_->all_gather(values);
    communicator_->wait();
  };
  optimizer.share_norm(std::move(share));
  if (store_->shared_out()) optimizer.on_updated([this](size_t part) { gather_weights(part); });
}

void GradientSync::begin_last_backward() {
  if (alone()) return;
  for (size_t i = 0; i < buckets_.size(); ++i) missing_[i] = static_cast<int64_t>(buckets_[i].parameters.size());
  sent_ = 0;
  last_backward_ = true;
}

void GradientSync::gradient_ready(const Parameter& parameter) {
  if (!last_backward_) return;
  const auto bucket = static_cast<size_t>(bucket_of_[static_cast<size_t>(parameter.ordinal)]);
  int64_t& missing = missing_[bucket];
  check(missing > 0, "gradient sync: {} was written again after its gradient was complete", parameter.name);
  if (--missing == 0) send(bucket);
}

// All ranks run the same backward, so buckets are complete in the same order everywhere.
void GradientSync::send(size_t bucket) {
  missing_[bucket] = kSent;
  ++sent_;
  if (silent_) return;
  const View gradients = store_->slice(store_->grad(), buckets_[bucket].span);
  if (store_->shared_out()) return communicator_->reduce_scatter_sum(gradients);
  communicator_->all_reduce_sum(gradients);
}

void GradientSync::finish() {
  if (alone()) return;
  last_backward_ = false;
  overlapped_ = sent_;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    if (missing_[i] != kSent) send(i);
  }
  if (!silent_) communicator_->wait();
}

// Part i of the own parts is of bucket (last - i).
void GradientSync::gather_weights(size_t part) {
  if (silent_) return;
  const Tensor& weights = store_->working().defined() ? store_->working() : store_->master();
  communicator_->all_gather(store_->slice(weights, buckets_[buckets_.size() - 1 - part].span));
  communicator_->mark(part);
  gathered_ = part + 1;
  arrived_ = 0;
}

void GradientSync::before_read(const Parameter& parameter) {
  if (arrived_ >= gathered_) return;
  const size_t part = buckets_.size() - 1 - static_cast<size_t>(bucket_of_[static_cast<size_t>(parameter.ordinal)]);
  if (part < arrived_) return;
  communicator_->wait_for(part);
  arrived_ = part + 1;
}

void GradientSync::finish_weights() {
  communicator_->wait();
  arrived_ = gathered_;
}

const Tensor& GradientSync::collect_master() {
  return store_->keeps_whole_master() ? store_->master() : collect(store_->master());
}

const Tensor& GradientSync::collect(const Tensor& own) {
  const Tensor& whole = store_->grad();
  if (!store_->shared_out() && own.dtype() == whole.dtype()) return own;
  store_->spread_own(own, whole);
  if (!store_->shared_out()) return whole;
  for (const Bucket& bucket : buckets_) communicator_->all_gather(store_->slice(whole, bucket.span));
  communicator_->wait();
  return whole;
}

}  // namespace egmla

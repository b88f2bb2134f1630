#include "optim/adamw.h"

#include "kernels/adamw.h"
#include "kernels/cross_entropy.h"

namespace egmla {
namespace {

constexpr int64_t kSharePartials = 256;  // sums of squares of each span of a share
constexpr int64_t kSumStride = 64;       // elements between the sums of two ranks: what a part is rounded to

}  // namespace

AdamWOptimizer::AdamWOptimizer(ParameterStore& store, const OptimizerConfig& config, double gate_lr_scale,
                               double gate_weight_decay, uint64_t seed)
    : store_(&store),
      config_(config),
      gate_lr_scale_(gate_lr_scale),
      gate_weight_decay_(gate_weight_decay),
      seed_(seed) {
  Context& context = store.context();
  const DType master = store.master().dtype();
  const MemoryScope scope(context, MemoryCategory::optimizer);
  const DType moments = config.state_dtype == StateDtype::bf16 ? DType::bf16 : master;
  exp_avg_ = Tensor::zeros(context, {store.own_elements()}, moments);
  exp_avg_sq_ = Tensor::zeros(context, {store.own_elements()}, moments);
  partials_ = Tensor::zeros(context, {kSquareSumPartials}, master);
  norm_ = Tensor::zeros(context, {1}, master);
}

void AdamWOptimizer::share_norm(NormShare share) {
  share_ = std::move(share);
  const DType dtype = norm_.dtype();
  const auto spans = static_cast<int64_t>(share_.spans.size());
  const MemoryScope scope(store_->context(), MemoryCategory::optimizer);
  partials_ = Tensor::zeros(store_->context(), {spans * kSharePartials}, dtype);
  shared_sums_ = Tensor::zeros(store_->context(), {share_.ranks * kSumStride}, dtype);
}

const Tensor& AdamWOptimizer::measure_grad_norm(bool halt) {
  Context& context = store_->context();
  if (share_.ranks > 1) {
    measure_shared_sums();
  } else {
    launch(context, SquareSum{.partials = partials_.view(), .x = store_->grad().view()});
  }
  const Tensor& sums = share_.ranks > 1 ? shared_sums_ : partials_;
  launch(context, GradNorm{.norm = norm_.view(), .partials = sums.view(), .halt = halt});
  return norm_;
}

void AdamWOptimizer::measure_shared_sums() {
  Context& context = store_->context();
  for (size_t i = 0; i < share_.spans.size(); ++i) {
    const Span partials{static_cast<int64_t>(i) * kSharePartials, kSharePartials};
    launch(context, SquareSum{.partials = store_->slice(partials_, partials),
                              .x = store_->slice(store_->grad(), share_.spans[i])});
  }
  const View own = store_->slice(shared_sums_, {share_.rank * kSumStride, 1});
  launch(context, Sum{.out = own, .x = partials_.view()});
  share_.gather(shared_sums_.view());
}

void AdamWOptimizer::step(double lr, int64_t step, double max_norm) {
  const std::vector<OwnPart>& own = store_->own();
  for (size_t i = 0; i < own.size(); ++i) {
    const OwnPart& part = own[i];
    const Span moments{part.at, part.span.size};
    const bool table = part.group == ParameterGroup::gate_table;
    const double decay = part.group == ParameterGroup::matrix ? config_.weight_decay : table ? gate_weight_decay_ : 0.0;
    if (part.span.size > 0) {
      launch(store_->context(),
             AdamW{.master = store_->master_part(part),
                   .exp_avg = store_->slice(exp_avg_, moments),
                   .exp_avg_sq = store_->slice(exp_avg_sq_, moments),
                   .working = store_->working().defined() ? store_->slice(store_->working(), part.span) : View{},
                   .grad = store_->slice(store_->grad(), part.span),
                   .grad_norm = norm_.view(),
                   .max_norm = max_norm,
                   .lr = table ? lr * gate_lr_scale_ : lr,
                   .beta1 = config_.betas[0],
                   .beta2 = config_.betas[1],
                   .eps = config_.eps,
                   .weight_decay = decay,
                   .step = step,
                   .seed = seed_,
                   .first = part.span.begin});
    }
    if (updated_) updated_(i);
  }
}

}  // namespace egmla

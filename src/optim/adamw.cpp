#include "optim/adamw.h"

#include "kernels/adamw.h"

namespace egmla {

AdamWOptimizer::AdamWOptimizer(ParameterStore& store, const OptimizerConfig& config, double gate_lr_scale,
                               double gate_weight_decay)
    : store_(&store), config_(config), gate_lr_scale_(gate_lr_scale), gate_weight_decay_(gate_weight_decay) {
  Context& context = store.context();
  const DType master = store.master().dtype();
  const MemoryScope scope(context, MemoryCategory::optimizer);
  exp_avg_ = Tensor::zeros(context, store.master().shape(), master);
  exp_avg_sq_ = Tensor::zeros(context, store.master().shape(), master);
  partials_ = Tensor::zeros(context, {kSquareSumPartials}, master);
  norm_ = Tensor::zeros(context, {1}, master);
}

const Tensor& AdamWOptimizer::measure_grad_norm(bool halt) {
  launch(store_->context(), SquareSum{.partials = partials_.view(), .x = store_->grad().view()});
  launch(store_->context(), GradNorm{.norm = norm_.view(), .partials = partials_.view(), .halt = halt});
  return norm_;
}

void AdamWOptimizer::step(double lr, int64_t step, double max_norm) {
  for (const auto group : {ParameterGroup::matrix, ParameterGroup::vector, ParameterGroup::gate_table}) {
    const Span span = store_->span(group);
    if (span.size == 0) continue;
    const bool table = group == ParameterGroup::gate_table;
    const double decay = group == ParameterGroup::matrix ? config_.weight_decay : table ? gate_weight_decay_ : 0.0;
    launch(store_->context(),
           AdamW{.master = store_->slice(store_->master(), span),
                 .exp_avg = store_->slice(exp_avg_, span),
                 .exp_avg_sq = store_->slice(exp_avg_sq_, span),
                 .working = store_->working().defined() ? store_->slice(store_->working(), span) : View{},
                 .grad = store_->slice(store_->grad(), span),
                 .grad_norm = norm_.view(),
                 .max_norm = max_norm,
                 .lr = table ? lr * gate_lr_scale_ : lr,
                 .beta1 = config_.betas[0],
                 .beta2 = config_.betas[1],
                 .eps = config_.eps,
                 .weight_decay = decay,
                 .step = step});
  }
}

}  // namespace egmla

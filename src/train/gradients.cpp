#include "train/gradients.h"

namespace egmla {

std::vector<Tensor> accumulate_gradients(Transformer& model, const std::vector<HostBatch>& batches,
                                         GradientSync* sync) {
  Context& context = model.parameters().context();
  int64_t counted = 0;
  for (const HostBatch& batch : batches) counted += batch.counted;
  if (sync) counted = sync->communicator().sum(counted);
  check(counted > 0, "train: the step holds no token to predict");
  std::vector<Tensor> losses;
  model.parameters().begin_step();
  for (const HostBatch& batch : batches) {
    const bool leaves = sync && &batch == &batches.back();
    if (leaves) sync->begin_last_backward();
    Tape tape(context);
    // The embedding's gradient, the largest, is complete last: it travels beside the first layer's products.
    tape.set_postpones(leaves && sync->communicator().size() > 1);
    const Var loss = model.loss(tape, to_device(context, batch, true), 1.0 / static_cast<double>(counted)).loss;
    tape.backward(loss);
    losses.push_back(loss.value);
  }
  model.parameters().end_step();
  if (sync) sync->finish();
  return losses;
}

}  // namespace egmla

#include "train/memory_plan.h"

#include "data/batches.h"
#include "dist/buckets.h"
#include "nn/transformer.h"
#include "optim/adamw.h"

namespace egmla {
namespace {

// One micro-batch forward and backward on the plan; the memory it needs beyond what is held for good.
int64_t activation_bytes(const Config& config, Context& plan, Transformer& model, int64_t B) {
  const int64_t T = config.data.sequence_length, held = plan.memory().in_use;
  HostBatch host{.B = B, .T = T, .inputs = {}, .targets = {}, .document_start = {}, .counted = B * T};
  host.inputs.assign(static_cast<size_t>(B * T), 0);
  host.targets = host.inputs;
  if (config.data.mask_documents) host.document_start = host.inputs;
  Tape tape(plan);
  tape.backward(model.loss(tape, to_device(plan, host, true), 1.0).loss);
  return plan.memory().peak - held;
}

}  // namespace

MemoryPlan plan_memory(const Config& config, bool for_cpu, DType dtype, int64_t micro_batch_size, int processes) {
  Context plan{PlanContext(for_cpu)};
  Transformer model(config.model);
  model.set_recompute(config.train.recompute);
  model.set_fp8(config.run.precision == Precision::fp8);
  const int64_t bucket = (config.parallel.bucket_mb << 20) / int64_t{sizeof(float)};
  const Rank last{.number = processes - 1, .count = processes};  // its part is the largest
  model.allocate(plan, dtype,
                 parts_to_update(plan_buckets(model.parameters(), bucket), last, config.parallel.zero_stage));
  const AdamWOptimizer optimizer(model.parameters(), config.train.optimizer, 1, 0);
  const auto held = [&](MemoryCategory category) { return plan.memory().by_category[static_cast<size_t>(category)]; };
  const int64_t weights = held(MemoryCategory::weights);
  MemoryPlan out{.gradients = held(MemoryCategory::gradients), .optimizer = held(MemoryCategory::optimizer)};
  out.activations = activation_bytes(config, plan, model, micro_batch_size);
  out.weights = held(MemoryCategory::weights);  // copies in e4m3 come with the first pass
  out.activations -= out.weights - weights;
  return out;
}

std::string memory_advice(const Config& config, bool for_cpu, DType dtype, int64_t micro_batch_size, int64_t sequences,
                          int64_t capacity, int processes) {
  for (int64_t smaller = micro_batch_size - 1; smaller > 0; --smaller) {
    if (sequences % smaller == 0 && plan_memory(config, for_cpu, dtype, smaller, processes).total() <= capacity)
      return fmt::format("train.micro_batch_size={} fits", smaller);
  }
  if (config.train.recompute != Recompute::full) return "set train.recompute=full, which keeps blocks' inputs alone";
  return fmt::format(
      "a micro-batch of one sequence needs {:.3f} GiB: shorten data.sequence_length or take a smaller model",
      static_cast<double>(plan_memory(config, for_cpu, dtype, 1, processes).total()) / (1 << 30));
}

}  // namespace egmla

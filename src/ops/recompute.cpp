// Memory for time: a region keeps its inputs alone. Its backward runs it again on a tape of its own, so weight
// gradients are summed in the order they would have been without.
#include "ops/ops.h"

namespace egmla::ops {

std::vector<Var> recompute(const std::vector<Var>& inputs, const Region& region) {
  check(!inputs.empty(), "recompute: a region needs an input");
  Tape& tape = *inputs.front().tape;
  if (!tape.recording()) return region(inputs);
  Tape forward(tape.context(), Tape::Mode::inference);
  forward.set_frugal(tape.frugal());
  forward.set_fp8(tape.fp8());
  forward.set_counts_uses(tape.counts_uses());
  std::vector<Var> constants, outputs;
  std::vector<Activation> kept;
  std::vector<VarId> input_ids, output_ids;
  for (const Var& x : inputs) {
    constants.push_back({x.value, &forward, kNoGrad, x.again});
    kept.push_back(x.activation());
    input_ids.push_back(x.id);
  }
  for (const Var& y : region(constants)) {
    outputs.push_back(tape.output(y.value));
    outputs.back().again = y.again;
    output_ids.push_back(outputs.back().id);
  }
  tape.record("recompute", [=](Tape& t) {
    Tape again(t.context());
    again.set_fp8(t.fp8());
    again.set_counts_uses(false);
    std::vector<Var> leaves;
    for (size_t i = 0; i < kept.size(); ++i)
      leaves.push_back(input_ids[i] == kNoGrad ? again.constant(kept[i].get()) : again.variable(kept[i].get()));
    const std::vector<Var> results = region(leaves);
    std::vector<std::pair<Var, Tensor>> roots;
    for (size_t i = 0; i < results.size(); ++i) {
      if (t.has(output_ids[i])) roots.emplace_back(results[i], t.take(output_ids[i]));
    }
    again.backward(roots);
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (again.has(leaves[i].id)) t.give(input_ids[i], again.grad_of(leaves[i]));
    }
  });
  return outputs;
}

}  // namespace egmla::ops

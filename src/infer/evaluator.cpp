#include "infer/evaluator.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "infer/host_values.h"
#include "kernels/cross_entropy.h"

namespace egmla {

Evaluation evaluate(Transformer& model, const ValidationSet& data, const BatchBuilder& builder,
                    const EvaluationOptions& options) {
  const int64_t T = builder.sequence_length(), sequences = data.sequences();
  std::vector<int32_t> ids(static_cast<size_t>(T + 1));
  Evaluation result;
  double sum = 0;
  int64_t bytes = 0, batches = 0;
  const Rank rank = options.communicator ? options.communicator->rank() : Rank{};
  for (int64_t first = 0; first < sequences && (options.batches == 0 || batches < options.batches);
       first += options.micro_batch_size, ++batches) {
    if (batches % rank.count != rank.number) continue;
    HostBatch host;
    for (int64_t i = first; i < std::min(sequences, first + options.micro_batch_size); ++i) {
      const ValidationSet::Window window = data.read(i, ids.data());
      builder.append(host, ids.data(), window.count, window.first_counted);
    }
    Tape tape(model.parameters().context(), Tape::Mode::inference);
    const Tensor per_token = model.loss(tape, to_device(tape.context(), host, false), 1.0).per_token;
    const std::vector<double> losses = host_values(per_token);
    for (size_t n = 0; n < losses.size(); ++n) {
      if (host.targets[n] == kIgnoreIndex) continue;
      sum += losses[n];
      ++result.tokens;
      if (options.bytes_of) bytes += options.bytes_of(host.targets[n]);
      if (options.per_token) options.per_token(losses[n]);
    }
  }
  if (options.communicator) {
    sum = options.communicator->sum(sum);
    result.tokens = options.communicator->sum(result.tokens);
    bytes = options.communicator->sum(bytes);
  }
  result.loss = result.tokens ? sum / static_cast<double>(result.tokens) : std::nan("");
  result.perplexity = std::exp(result.loss);
  if (bytes > 0) result.bits_per_byte = sum / std::numbers::ln2 / static_cast<double>(bytes);
  return result;
}

}  // namespace egmla

// Loss of a model on validation data: every token once.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "data/batches.h"
#include "data/token_loader.h"
#include "dist/communicator.h"
#include "nn/transformer.h"

namespace egmla {

struct Evaluation {
  double loss = 0;  // nats per token
  double perplexity = 0;
  int64_t tokens = 0;  // targets counted
  std::optional<double> bits_per_byte;
};

struct EvaluationOptions {
  int64_t micro_batch_size = 1;
  int64_t batches = 0;                            // micro-batches; 0: all
  std::function<int64_t(int32_t id)> bytes_of{};  // length of a token in bytes, for bits per byte
  std::function<void(double loss)> per_token{};   // called for every counted token, in data order
  // Micro-batches are dealt out to its ranks, and every rank receives the whole result; per_token sees a rank's own.
  Communicator* communicator = nullptr;
};

Evaluation evaluate(Transformer& model, const ValidationSet& data, const BatchBuilder& builder,
                    const EvaluationOptions& options);

}  // namespace egmla

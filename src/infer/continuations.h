// Log-likelihoods of texts behind contexts, many at once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "nn/transformer.h"
#include "text/tokenizer.h"

namespace egmla {

struct Continuation {
  std::vector<int32_t> context;  // at least one id
  std::vector<int32_t> ids;      // what follows it
};

// Ids where lm-evaluation-harness parts them: white space at the end of the context goes to the continuation, both are
// encoded as one text, and the context keeps as many ids as it has alone. An empty context is the end-of-text id.
Continuation encode_continuation(const Tokenizer& tokenizer, std::string context, std::string continuation);

struct ContinuationScore {
  double log_likelihood = 0;  // nats, summed over the continuation
  bool greedy = false;        // each of its ids is the most probable one; only where asked for
};

struct ScoringOptions {
  int64_t batch_tokens = 4096;  // ids in a batch, padding included
  bool greedy = false;
};

// In the order given. Contexts lose their first ids where positions end. Texts of similar length share a batch, padded
// at the end, and equal inputs run once. A continuation must be no longer than max_position_embeddings.
std::vector<ContinuationScore> score_continuations(Transformer& model, const std::vector<Continuation>& continuations,
                                                   const ScoringOptions& options);

}  // namespace egmla

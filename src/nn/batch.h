// What every layer may see of a batch beside its activations.
#pragma once

#include "ops/ops.h"

namespace egmla {

struct Batch {
  ops::TokenIndex tokens;  // the ids of this forward pass, [B, T]
  Tensor targets;          // [B, T] i32, the next ids; undefined without a loss
  Tensor document_start;   // [B, T] i32, first position of each token's document; undefined: one document
  Tensor positions;        // [B, T] i32, undefined: 0, 1, 2, ...
  // With a cache: ids of all tokens seen so far and now, [B, past + T].
  ops::TokenIndex all_tokens;
  int64_t past = 0;

  int64_t rows() const { return tokens.ids.shape()[0]; }
  int64_t length() const { return tokens.ids.shape()[1]; }
};

}  // namespace egmla

// Small models of every kind, shared by the tests of models on every back end.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "nn/transformer.h"

namespace egmla::test {

struct Variant {
  std::string name;
  ModelConfig model;
};

// How test names show a variant.
inline std::ostream& operator<<(std::ostream& out, const Variant& shown) {
  return out << shown.name;
}

// MHA with and without groups, MLA with and without a query latent, EG-MLA with every gate key, both norms, both
// feed-forwards, tied and untied.
std::vector<Variant> all_variants();
Variant variant(const std::string& name);

// A batch of ids [B, T] and the ids that follow them. `document_length` > 0 masks documents of that length.
Batch make_batch(Context& context, const std::vector<int32_t>& ids, int64_t B, int64_t T, int64_t document_length = 0);
// B (T + 1) ids drawn uniformly.
std::vector<int32_t> batch_ids(const ModelConfig& model, int64_t B, int64_t T, uint64_t seed);

// A model on `context`, initialised from `seed`.
std::unique_ptr<Transformer> build(const ModelConfig& config, Context& context, DType dtype, uint64_t seed = 1);

// Mean loss of a batch, with gradients left in the store.
double loss_and_gradients(Transformer& model, const Batch& batch);
// Loss of each token, without gradients.
std::vector<double> token_losses(Transformer& model, const Batch& batch);

}  // namespace egmla::test

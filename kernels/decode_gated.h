// EG-MLA's attention of one new token a sequence (gate behind the up-projection): keys and values are rebuilt from the
// cached latent c_j and the token id x_j while attention runs, and never stored:
//   u = W^UKV_h c_j;  a = act(offset + W^UE_h E[x_j]);  y = u a;  k | v = (y - mean_j) rstd_j weight + bias
//   score_j = scale (q^C . k + q^R . k^R_j);  partials as DecodeAttention leaves them (kernels/decode_attention.h)
// The statistics of a token's norm are computed once (GateStatistics) and cached, so heads are independent. As they
// enter linearly, CUDA sums q . (weight y) and p . y alone and adds mean and bias at the end.
#pragma once

#include "kernels/gate.h"

namespace egmla {

// How the keys or the values of all heads are gated and normalised.
struct GateSide {
  View up;                // W^UKV's rows of this side, [H, w, d_c], strided
  View gate{};            // W^UE's rows of this side, [H, w, d_e], strided; undefined: not gated, or a table is given
  View table{};           // W^UE E of every token, [V, H, w], strided, or undefined
  View mean{}, rstd{};    // [B, capacity, G] f32/f64, G 1 or H; undefined without a norm
  View weight{}, bias{};  // [H, w], strided; undefined without a norm
};

struct GatedDecodeAttention {
  static constexpr const char* kName = "gated_decode_attention";
  View partials;   // [B, H, S, d_v + 2] f32/f64
  View scores;     // [B, H, capacity] f32/f64 workspace
  View q;          // [B, H, d_n + d_r], rotated
  View cache;      // [B, capacity, d_c + d_r], strided: c, then k^R
  View ids;        // [B, capacity] i32
  View positions;  // [B] i32: attention reaches over tokens 0 to positions[b]
  View embedding;  // E_l [V, d_e]
  GateSide k, v;
  double scale = 1.0, offset = 0;
  GateActivation activation = GateActivation::none;
};

// Mean and 1 / standard deviation of the new tokens' y = u act(offset + g), as GateForward computes them, to
// [b, positions[b], group]. The gate's projection is g, or the table's row of the token.
struct GateStatistics {
  static constexpr const char* kName = "gate_statistics";
  View mean, rstd;  // [B, capacity, G] f32/f64: G 1 (all heads together) or H
  View u;           // [B, H, w], strided
  View g{};         // [B, H, w], strided, or undefined
  View table{};     // [V, H, w], strided, or undefined
  View tokens;      // [B] i32
  View positions;   // [B] i32
  double offset = 0;
  double eps = 1e-6;
  GateActivation activation = GateActivation::none;
};

inline KernelViews views_of(const GatedDecodeAttention& k) {
  KernelViews views{.written = {{"partials", k.partials}},
                    .read = {{"q", k.q}, {"cache", k.cache}, {"ids", k.ids}, {"positions", k.positions}}};
  views.read.push_back({"embedding", k.embedding});
  for (const GateSide* side : {&k.k, &k.v}) {
    for (const NamedView& view :
         {NamedView{"up", side->up}, NamedView{"gate", side->gate}, NamedView{"table", side->table},
          NamedView{"weight", side->weight}, NamedView{"bias", side->bias}})
      views.read.push_back(view);
  }
  return views;
}
inline KernelViews views_of(const GateStatistics& k) {
  return {.written = {},
          .read = {{"u", k.u}, {"g", k.g}, {"table", k.table}, {"tokens", k.tokens}, {"positions", k.positions}}};
}

// The whole capacity once, with a row of the embedding or of the folded tables for each token; scores stay in the
// cache.
inline int64_t bytes_of(const GatedDecodeAttention& k) {
  const int64_t tokens = k.ids.elements();
  auto sum = static_cast<int64_t>(k.partials.bytes() + k.q.bytes() + k.cache.bytes() + k.ids.bytes());
  bool product = false;
  for (const GateSide* side : {&k.k, &k.v}) {
    sum += static_cast<int64_t>(side->up.bytes());
    if (side->mean.defined()) sum += static_cast<int64_t>(side->mean.bytes() + side->rstd.bytes());
    if (side->gate.defined()) sum += static_cast<int64_t>(side->gate.bytes());
    if (side->table.defined())
      sum += tokens * side->table.size(1) * side->table.size(2) * static_cast<int64_t>(size_of(side->table.dtype));
    product = product || side->gate.defined();
  }
  if (product) sum += tokens * k.embedding.size(1) * static_cast<int64_t>(size_of(k.embedding.dtype));
  return sum;
}
// The new tokens' features.
inline int64_t bytes_of(const GateStatistics& k) {
  return static_cast<int64_t>(2 * k.u.bytes());
}

EGMLA_DECLARE_KERNEL(GatedDecodeAttention);
EGMLA_DECLARE_KERNEL(GateStatistics);

// Tokens whose keys and values exist at a time in a block of the CUDA kernel; what splits are multiples of.
constexpr int64_t kGatedTile = 128;

}  // namespace egmla

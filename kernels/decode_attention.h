// Attention of one new token a sequence over its cache, in two passes: each split of the context leaves its softmax
// unfinished, and DecodeCombine adds the splits in their order, so results repeat bit for bit.
//   partials[b, h, s] = [ sum_j exp(score_j - m) v_j | m | sum_j exp(score_j - m) ],  m the largest score of the split
// Query head h reads key head h / (H / Hkv). MLA decodes absorbed: one key head whose rows are [c | k^R] and whose
// values are those rows' first d_c columns.
#pragma once

#include "kernels/launch.h"

namespace egmla {

constexpr double kNoScore = -1e30;  // m of a split without tokens; finite, so that scans for infinities stay silent

struct DecodeAttention {
  static constexpr const char* kName = "decode_attention";
  View partials;   // [B, H, S, dv + 2] f32/f64
  View q;          // [B, H, dk]
  View k;          // [B, capacity, Hkv, dk], strided
  View v;          // [B, capacity, Hkv, dv], strided; k's first columns for MLA
  View positions;  // [B] i32: attention reaches over tokens 0 to positions[b]
  double scale = 1.0;
};

// out[b, h] = the softmax-weighted mean over all splits.
struct DecodeCombine {
  static constexpr const char* kName = "decode_combine";
  View out;       // [B, H, dv], strided
  View partials;  // [B, H, S, dv + 2] f32/f64
};

inline KernelViews views_of(const DecodeAttention& k) {
  return {.written = {{"partials", k.partials}},
          .read = {{"q", k.q}, {"k", k.k}, {"v", k.v}, {"positions", k.positions}}};
}
inline KernelViews views_of(const DecodeCombine& k) {
  return {.written = {{"out", k.out}}, .read = {{"partials", k.partials}}};
}

// The whole capacity: where sequences end is known on the device alone. MLA's values lie within its keys.
inline int64_t bytes_of(const DecodeAttention& k) {
  const bool shared = k.k.data == k.v.data;
  return static_cast<int64_t>(k.partials.bytes() + k.q.bytes() + k.k.bytes() + (shared ? 0 : k.v.bytes()));
}

EGMLA_DECLARE_KERNEL(DecodeAttention);
EGMLA_DECLARE_KERNEL(DecodeCombine);

// How many splits of the context keep the device busy with `tasks` independent blocks of work on up to `capacity`
// tokens: the least rounds of blocks, each as long as its tiles of `tile` tokens and a fixed `overhead` (in tiles).
int64_t decode_splits(Context& context, int64_t tasks, int64_t capacity, int64_t tile, double overhead,
                      int64_t blocks_on_a_unit);
// The same for one sequence in a chain (kernels/decode_chain.h): a block a head and split.
int64_t decode_splits_of_one(Context& context, int64_t heads);

}  // namespace egmla

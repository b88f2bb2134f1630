// What a decoding step does around attention: it notes the new token, stores its row in a layer's cache, and picks the
// most probable next token.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// ids[b, positions[b]] = tokens[b]
struct RecordToken {
  static constexpr const char* kName = "record_token";
  View ids;        // [B, capacity] i32
  View tokens;     // [B] i32
  View positions;  // [B] i32
};

// cache[b, positions[b]] = rows[b], of whose columns the first n are normalised (RMSNorm; MLA's latent) where
// norm_weight [n] is defined, and key_heads x d columns from key_begin on are rotated; q is rotated into q_out.
struct DecodeAppend {
  static constexpr const char* kName = "decode_append";
  View cache;          // [B, capacity, w], strided
  View q_out;          // [B, H, d], strided; may be q
  View q;              // [B, H, d], strided: the rotated part of the queries
  View rows;           // [B, w], row stride allowed
  View norm_weight{};  // [n] or undefined
  View cos, sin;       // [P, d/2] f32/f64
  View positions;      // [B] i32
  int64_t key_begin = 0, key_heads = 1;
  double eps = 1e-6;
  bool interleave = false;
};

// tokens[b] = argmax of logits[b] (the first of equals); positions[b] moves on, up to capacity - 1.
struct GreedyStep {
  static constexpr const char* kName = "greedy_step";
  View tokens, positions;  // [B] i32
  View logits;             // [B, V]
  int64_t capacity = 0;
};

inline KernelViews views_of(const RecordToken& k) {
  return {.written = {{"ids", k.ids}}, .read = {{"tokens", k.tokens}, {"positions", k.positions}}};
}
inline KernelViews views_of(const DecodeAppend& k) {
  return {.written = {{"cache", k.cache}, {"q_out", k.q_out}},
          .read = {{"q", k.q},
                   {"rows", k.rows},
                   {"norm_weight", k.norm_weight},
                   {"cos", k.cos},
                   {"sin", k.sin},
                   {"positions", k.positions}}};
}
inline KernelViews views_of(const GreedyStep& k) {
  return {.written = {{"tokens", k.tokens}, {"positions", k.positions}},
          .read = {{"logits", k.logits}, {"positions", k.positions}}};
}

// One row of a cache is written for each sequence.
inline int64_t bytes_of(const RecordToken& k) {
  return static_cast<int64_t>(2 * k.tokens.bytes() + k.positions.bytes());
}
inline int64_t bytes_of(const DecodeAppend& k) {
  return static_cast<int64_t>(2 * k.rows.bytes() + 2 * k.q.bytes());
}

EGMLA_DECLARE_KERNEL(RecordToken);
EGMLA_DECLARE_KERNEL(DecodeAppend);
EGMLA_DECLARE_KERNEL(GreedyStep);

}  // namespace egmla

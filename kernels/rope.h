// Rotary position embedding (Su et al. 2021), in place on strided heads.
#pragma once

#include "kernels/launch.h"

namespace egmla {

// Pair p of a head at position t turns by the angle whose cosine and sine stand at [t, p]; inverse turns back (the
// gradient). interleave: pairs are (2p, 2p+1), DeepSeek-V3's layout; otherwise (p, p + d/2), Llama's.
struct Rope {
  static constexpr const char* kName = "rope";
  View x;          // [B, T, H, d], strided; changed in place
  View cos, sin;   // [P, d/2] f32 (f64 for f64 x)
  View positions;  // [B, T] i32 or undefined: t itself, so the tables must hold T rows
  bool interleave = false;
  bool inverse = false;
};

inline KernelViews views_of(const Rope& k) {
  return {.written = {{"x", k.x}}, .read = {{"x", k.x}, {"cos", k.cos}, {"sin", k.sin}, {"positions", k.positions}}};
}

EGMLA_DECLARE_KERNEL(Rope);

}  // namespace egmla

// train.recompute: what backward computes again instead of keeping it.
#pragma once

#include <cstdint>

namespace egmla {

// none: nothing. light: what is cheap for its size: norms, activations, and what MLA and the gate project from the
// latent and the ids. full: whole blocks, of which only the residual stream is kept.
enum class Recompute : uint8_t { none, light, full };

}  // namespace egmla

// run.fold_gate: whether decoding multiplies out W^UE E_l into one table a layer, [V, gated features].
#pragma once

#include <cstdint>

namespace egmla {

enum class GateFolding : uint8_t { automatic, always, never };

}  // namespace egmla

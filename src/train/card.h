// Peak rates of known cards, for model FLOPs utilisation.
#pragma once

#include <optional>
#include <string>

namespace egmla {

// Dense bf16 FLOP/s of a card by its name, as its maker states it; nothing for unknown cards and CPUs.
std::optional<double> peak_flops(const std::string& card);

}  // namespace egmla

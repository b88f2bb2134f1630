// Peak rates of known cards, for model FLOPs utilisation.
#pragma once

#include <optional>
#include <string>

namespace egmla {

// Dense bf16 FLOP/s: `tflops` (run.peak_tflops) when positive, else those of a card by its name, as its maker states
// them; nothing for unknown cards and CPUs.
std::optional<double> peak_flops(const std::string& card, double tflops);

}  // namespace egmla

#include "train/card.h"

#include <array>
#include <utility>

namespace egmla {

std::optional<double> peak_flops(const std::string& card, double tflops) {
  if (tflops > 0) return tflops * 1e12;
  // The first name that occurs in the card's wins: longer names stand before their prefixes.
  static constexpr std::array<std::pair<const char*, double>, 9> kCards = {{{"H100 PCIe", 756e12},
                                                                            {"H100 NVL", 835e12},
                                                                            {"H100", 989.4e12},
                                                                            {"H200 NVL", 835e12},
                                                                            {"H200", 989.4e12},
                                                                            {"A100", 312e12},
                                                                            {"L40S", 362e12},
                                                                            {"RTX 4090", 165.2e12},
                                                                            {"B200", 2250e12}}};
  for (const auto& [name, flops] : kCards) {
    if (card.find(name) != std::string::npos) return flops;
  }
  return std::nullopt;
}

}  // namespace egmla

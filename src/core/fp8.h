// e4m3 on the host: sign, 4 bits of exponent (bias 7), 3 of mantissa; largest 448, no infinity, 0x7f is NaN
// (Micikevicius et al. 2022, FP8 formats). Conversion rounds to nearest even and saturates, as the hardware's does.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace egmla {

inline uint8_t e4m3_from_float(float value) {
  constexpr uint32_t kNan = 0x7f, kLargest = 0x7e;
  uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 24 & 0x80u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return kNan;
  const float size = std::bit_cast<float>(bits);
  if (size < 0x1p-6f) return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(size * 0x1p9f)));
  bits += 0x7ffffu + (bits >> 20 & 1u);
  const uint32_t code = (bits >> 20) - ((127u - 7u) << 3);
  return static_cast<uint8_t>(sign | (code < kLargest ? code : kLargest));
}

inline float float_from_e4m3(uint8_t value) {
  const int exponent = value >> 3 & 15, mantissa = value & 7;
  if ((value & 0x7f) == 0x7f) return std::bit_cast<float>(0x7fc00000u);
  const float size = exponent ? std::ldexp(static_cast<float>(8 + mantissa), exponent - 10)
                              : std::ldexp(static_cast<float>(mantissa), -9);
  return value & 0x80 ? -size : size;
}

}  // namespace egmla

// Counter-based randomness (Philox 4x32-10, Salmon et al. 2011): a value is a pure function of (key, counter), so
// state is two integers and any element can be drawn alone, on any device, in any order.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace egmla {

constexpr std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter, uint64_t stream = 0) {
  std::array<uint32_t, 4> x = {static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32),
                               static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * x[0], p1 = uint64_t{0xCD9E8D57u} * x[2];
    x = {static_cast<uint32_t>(p1 >> 32) ^ x[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ x[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return x;
}

// Uniform in [0, 1) with 53 bits.
inline double uniform(uint64_t key, uint64_t counter, uint64_t stream = 0) {
  const auto x = philox(key, counter, stream);
  return static_cast<double>(((uint64_t{x[0]} << 32) | x[1]) >> 11) * 0x1.0p-53;
}

// Standard normal by Box-Muller.
inline double normal(uint64_t key, uint64_t counter, uint64_t stream = 0) {
  const auto x = philox(key, counter, stream);
  const double u = (static_cast<double>(((uint64_t{x[0]} << 32) | x[1]) >> 11) + 0.5) * 0x1.0p-53;
  const double v = static_cast<double>(((uint64_t{x[2]} << 32) | x[3]) >> 11) * 0x1.0p-53;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

// FNV-1a: a stable stream number from a name.
constexpr uint64_t stream_of(std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
  return hash;
}

}  // namespace egmla

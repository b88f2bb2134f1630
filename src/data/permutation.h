// A seeded permutation of [0, n) whose every value is computed alone: a Feistel network over the next power of four,
// walked until the value falls inside (Black and Rogaway 2002). Shuffling needs no memory and no state.
#pragma once

#include <cstdint>

#include "core/rng.h"

namespace egmla {

class Permutation {
 public:
  Permutation(int64_t size, uint64_t seed, uint64_t stream) : size_(size), seed_(seed), stream_(stream) {
    while ((int64_t{1} << (2 * half_bits_)) < size) ++half_bits_;
  }

  int64_t operator[](int64_t index) const {
    if (size_ <= 1) return 0;
    uint64_t value = static_cast<uint64_t>(index);
    do {
      value = encrypt(value);
    } while (value >= static_cast<uint64_t>(size_));
    return static_cast<int64_t>(value);
  }

 private:
  uint64_t encrypt(uint64_t value) const {
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    uint64_t left = value >> half_bits_, right = value & mask;
    for (uint64_t round = 0; round < 6; ++round) {
      const uint64_t mixed = philox(seed_, right | (round << 32), stream_)[0] & mask;
      const uint64_t next = left ^ mixed;
      left = right;
      right = next;
    }
    return (left << half_bits_) | right;
  }

  int64_t size_;
  uint64_t seed_, stream_;
  int half_bits_ = 1;
};

}  // namespace egmla

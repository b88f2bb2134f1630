// bfloat16 as its bits: conversion with round-to-nearest-even on the host, stochastic rounding on host and device.
#pragma once

#include <bit>
#include <cstdint>

#include "core/dtype.h"

namespace egmla {

template <>
struct DTypeOf<uint16_t> {
  static constexpr DType value = DType::bf16;
};

inline uint16_t bf16_from_float(float value) {
  uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // keep NaN a NaN
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(bits >> 16);
}

// One of the two neighbours of a value, by 16 random bits (the low ones): of 65,536 draws as many give the upper one as
// the value lies above the lower one, so that the mean is the value. What bf16 holds stays, infinities included, and a
// NaN stays one.
constexpr uint16_t bf16_stochastic(float value, uint32_t random) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + (random & 0xffffu)) >> 16);
}

inline float float_from_bf16(uint16_t value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value) << 16);
}

}  // namespace egmla

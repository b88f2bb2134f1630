// bf16 -> e4m3 for products on Hopper, which want both operands with the summed axis innermost: one reading of a matrix
// gives its copy and its transpose. A block of 128 along the summed axis, or 128 x 128 elements, shares a factor
//   s = 2^k, the least with |x| / s <= 448 throughout;  q = e4m3(x / s);  x ~ s q
// A power of two, so that scaling rounds nothing. A block with a NaN or an infinity has the factor NaN.
#pragma once

#include <cstdint>

#include "kernels/launch.h"

namespace egmla {

constexpr int64_t kFp8Block = 128;

constexpr int64_t fp8_blocks(int64_t elements) {
  return (elements + kFp8Block - 1) / kFp8Block;
}
// The summed axis of a copy is padded with zeros to whole blocks.
constexpr int64_t fp8_padded(int64_t elements) {
  return fp8_blocks(elements) * kFp8Block;
}

// Shape of the factors of a copy [outer, fp8_padded(inner)], in cuBLASLt's layouts: 1 x 128 blocks lie with the outer
// axis innermost; 128 x 128 blocks with the summed axis innermost, its count rounded up to 4.
inline Shape fp8_scale_shape(int64_t outer, int64_t inner, bool square) {
  if (!square) return {fp8_blocks(inner), outer};
  return {fp8_blocks(outer), (fp8_blocks(inner) + 3) / 4 * 4};
}

// A matrix [R, C] and its transpose in e4m3; values that are undefined are not wanted.
struct QuantizedViews {
  View rows;            // [R, fp8_padded(C)]
  View row_scales;      // fp8_scale_shape(R, C, square)
  View columns;         // [C, fp8_padded(R)]
  View column_scales;   // fp8_scale_shape(C, R, square)
  bool square = false;  // blocks of 128 x 128, else of 128 along each copy's summed axis
};

// Copies of x.
struct Quantize {
  static constexpr const char* kName = "quantize";
  QuantizedViews out;
  View x;  // [R, C] bf16 (f32 or f64 on the CPU), with a row stride
};

// Copies of SwigluForward's result as bf16 holds it.
struct QuantizeSwiglu {
  static constexpr const char* kName = "quantize_swiglu";
  QuantizedViews out;
  View gate_up;  // [R, 2 C]: gate, then up
};

// Copies of SwigluBackward's gate_up_grad as bf16 holds it.
struct QuantizeSwigluBackward {
  static constexpr const char* kName = "quantize_swiglu_backward";
  QuantizedViews out;
  View out_grad;  // [R, C / 2]
  View gate_up;   // [R, C]
};

// Factors stand first, so that a search for what is not finite meets them.
inline KernelViews views_of(const Quantize& k) {
  return {.written = {{"row_scales", k.out.row_scales},
                      {"column_scales", k.out.column_scales},
                      {"rows", k.out.rows},
                      {"columns", k.out.columns}},
          .read = {{"x", k.x}}};
}
inline KernelViews views_of(const QuantizeSwiglu& k) {
  KernelViews views = views_of(Quantize{.out = k.out, .x = {}});
  views.read = {{"gate_up", k.gate_up}};
  return views;
}
inline KernelViews views_of(const QuantizeSwigluBackward& k) {
  KernelViews views = views_of(Quantize{.out = k.out, .x = {}});
  views.read = {{"out_grad", k.out_grad}, {"gate_up", k.gate_up}};
  return views;
}

EGMLA_DECLARE_KERNEL(Quantize);
EGMLA_DECLARE_KERNEL(QuantizeSwiglu);
EGMLA_DECLARE_KERNEL(QuantizeSwigluBackward);

// Raises unless the copies fit a matrix [R, C].
void check_copies(const char* kernel, const QuantizedViews& out, int64_t R, int64_t C);

// The bits of s as f32, from those of the largest magnitude of a block.
constexpr uint32_t fp8_scale_bits(uint32_t largest) {
  constexpr uint32_t kInfinity = 0x7f800000u, kNan = 0x7fc00000u;
  if (largest >= kInfinity) return kNan;
  const uint32_t exponent = (largest >> 23) + ((largest & 0x7fffffu) > 0x600000u ? 1u : 0u);  // 448 = 1.75 x 2^8
  return (exponent > 9u ? exponent - 8u : 1u) << 23;
}
// The bits of 1 / s.
constexpr uint32_t fp8_inverse_bits(uint32_t scale) {
  return scale > 0x7f800000u ? scale : (254u << 23) - scale;
}

}  // namespace egmla

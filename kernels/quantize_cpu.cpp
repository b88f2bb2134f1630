#include "kernels/quantize.h"

#include "core/fp8.h"
#include "kernels/cpu_utils.h"

namespace egmla {
namespace {

constexpr int64_t kB = kFp8Block;

// An element of x seen along one copy: outer and summed axis, zero in the padding.
template <class T>
struct Source {
  const T* x;
  int64_t outer_stride, inner_stride, outer, inner;

  float at(int64_t o, int64_t i) const {
    return o < outer && i < inner ? static_cast<float>(x[o * outer_stride + i * inner_stride]) : 0.0f;
  }
};

uint32_t magnitude(float value) {
  return std::bit_cast<uint32_t>(value) & 0x7fffffffu;
}

// Fills rows [first, last) of a copy and their factors.
template <class T>
void quantize_rows(const Source<T>& source, const View& values, const View& scales, bool square, int64_t first,
                   int64_t last) {
  for (int64_t block = 0; block < fp8_blocks(source.inner); ++block) {
    uint32_t largest = 0;
    const auto widen = [&](int64_t o) {
      for (int64_t i = block * kB; i < (block + 1) * kB; ++i)
        largest = std::max(largest, magnitude(source.at(o, i)));
    };
    for (int64_t o = first; square && o < last; ++o) widen(o);
    for (int64_t o = first; o < last; ++o) {
      if (!square) {
        largest = 0;
        widen(o);
      }
      const uint32_t scale = fp8_scale_bits(largest);
      const float inverse = std::bit_cast<float>(fp8_inverse_bits(scale));
      float* const target = scales.as<float>();
      target[square ? o / kB * scales.stride(0) + block : block * scales.stride(0) + o] = std::bit_cast<float>(scale);
      uint8_t* const row = values.as<uint8_t>() + o * values.stride(0);
      for (int64_t i = block * kB; i < (block + 1) * kB; ++i) row[i] = e4m3_from_float(source.at(o, i) * inverse);
    }
  }
}

template <class T>
void quantize(const Source<T>& source, const View& values, const View& scales, bool square) {
  if (!values.defined()) return;
  cpu::parallel_ranges(fp8_blocks(source.outer), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      quantize_rows(source, values, scales, square, block * kB, std::min(source.outer, (block + 1) * kB));
  });
}

}  // namespace

void check_views(const Quantize& k) {
  const int64_t R = k.x.size(0), C = k.x.size(1);
  const auto fits = [&](const View& values, const View& scales, int64_t outer, int64_t inner) {
    return !values.defined() ||
           (values.dtype == DType::e4m3 && scales.dtype == DType::f32 && values.shape == Shape{outer, fp8_padded(inner)} &&
            scales.shape == fp8_scale_shape(outer, inner, k.square) && values.contiguous() && scales.contiguous());
  };
  check(fits(k.rows, k.row_scales, R, C) && fits(k.columns, k.column_scales, C, R),
        "quantize: copies must be e4m3 [R,C'] and [C,R'] of whole blocks, with their factors; x is {}, copies are {} "
        "and {}, factors {} and {}",
        k.x.shape.text(), k.rows.shape.text(), k.columns.shape.text(), k.row_scales.shape.text(),
        k.column_scales.shape.text());
}

void run(CpuContext&, const Quantize& k) {
  check_views(k);
  cpu::for_float(k.x.dtype, Quantize::kName, [&](auto t) {
    using T = decltype(t);
    const T* x = k.x.as<T>();
    const int64_t R = k.x.size(0), C = k.x.size(1), stride = k.x.stride(0);
    quantize(Source<T>{x, stride, 1, R, C}, k.rows, k.row_scales, k.square);
    quantize(Source<T>{x, 1, stride, C, R}, k.columns, k.column_scales, k.square);
  });
}

}  // namespace egmla

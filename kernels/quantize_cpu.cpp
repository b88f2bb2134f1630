#include "core/fp8.h"
#include "kernels/cpu_utils.h"
#include "kernels/quantize.h"

namespace egmla {
namespace {

constexpr int64_t kB = kFp8Block;

uint32_t magnitude(float value) {
  return std::bit_cast<uint32_t>(value) & 0x7fffffffu;
}

// value(o, i) by outer and summed axis; zero in the padding.
template <class Value>
struct Source {
  Value value;
  int64_t outer, inner;

  float at(int64_t o, int64_t i) const { return i < inner ? value(o, i) : 0.0f; }
};

// Fills rows [first, last) of a copy and their factors.
template <class Value>
void quantize_rows(const Source<Value>& source, const View& values, const View& scales, bool square, int64_t first,
                   int64_t last) {
  for (int64_t block = 0; block < fp8_blocks(source.inner); ++block) {
    uint32_t largest = 0;
    const auto widen = [&](int64_t o) {
      for (int64_t i = block * kB; i < (block + 1) * kB; ++i) largest = std::max(largest, magnitude(source.at(o, i)));
    };
    for (int64_t o = first; square && o < last; ++o) widen(o);
    for (int64_t o = first; o < last; ++o) {
      if (!square) {
        largest = 0;
        widen(o);
      }
      const uint32_t scale = fp8_scale_bits(largest);
      const float inverse = std::bit_cast<float>(fp8_inverse_bits(scale));
      scales.as<float>()[square ? o / kB * scales.stride(0) + block : block * scales.stride(0) + o] =
          std::bit_cast<float>(scale);
      uint8_t* const row = values.as<uint8_t>() + o * values.stride(0);
      for (int64_t i = block * kB; i < (block + 1) * kB; ++i) row[i] = e4m3_from_float(source.at(o, i) * inverse);
    }
  }
}

template <class Value>
void fill(const Source<Value>& source, const View& values, const View& scales, bool square) {
  if (!values.defined()) return;
  cpu::parallel_ranges(fp8_blocks(source.outer), 1, [&](int64_t first, int64_t last) {
    for (int64_t block = first; block < last; ++block)
      quantize_rows(source, values, scales, square, block * kB, std::min(source.outer, (block + 1) * kB));
  });
}

// Both copies of the matrix value(r, c).
template <class Value>
void fill_copies(const QuantizedViews& out, int64_t R, int64_t C, const Value& value) {
  const auto transposed = [&](int64_t c, int64_t r) { return value(r, c); };
  fill(Source<Value>{value, R, C}, out.rows, out.row_scales, out.square);
  fill(Source<decltype(transposed)>{transposed, C, R}, out.columns, out.column_scales, out.square);
}

}  // namespace

void check_copies(const char* kernel, const QuantizedViews& out, int64_t R, int64_t C) {
  const auto fits = [&](const View& values, const View& scales, int64_t outer, int64_t inner) {
    return !values.defined() || (values.dtype == DType::e4m3 && scales.dtype == DType::f32 &&
                                 values.shape == Shape{outer, fp8_padded(inner)} && values.contiguous() &&
                                 scales.shape == fp8_scale_shape(outer, inner, out.square) && scales.contiguous());
  };
  check(fits(out.rows, out.row_scales, R, C) && fits(out.columns, out.column_scales, C, R),
        "{}: copies of [{},{}] must be e4m3 in whole blocks, with f32 factors; found {} and {}, factors {} and {}",
        kernel, R, C, out.rows.shape.text(), out.columns.shape.text(), out.row_scales.shape.text(),
        out.column_scales.shape.text());
}

void run(CpuContext&, const Quantize& k) {
  const int64_t R = k.x.size(0), C = k.x.size(1), stride = k.x.stride(0);
  check_copies(Quantize::kName, k.out, R, C);
  cpu::for_float(k.x.dtype, Quantize::kName, [&](auto t) {
    const auto* x = k.x.as<decltype(t)>();
    fill_copies(k.out, R, C, [=](int64_t r, int64_t c) { return static_cast<float>(x[r * stride + c]); });
  });
}

void run(CpuContext&, const QuantizeSwiglu& k) {
  const int64_t R = k.gate_up.size(0), C = k.gate_up.size(1) / 2, stride = k.gate_up.stride(0);
  check_copies(QuantizeSwiglu::kName, k.out, R, C);
  cpu::for_float(k.gate_up.dtype, QuantizeSwiglu::kName, [&](auto t) {
    const auto* x = k.gate_up.as<decltype(t)>();
    fill_copies(k.out, R, C, [=](int64_t r, int64_t c) {
      const auto g = x[r * stride + c], u = x[r * stride + C + c];
      return static_cast<float>(g * cpu::sigmoid(g) * u);
    });
  });
}

void run(CpuContext&, const QuantizeSwigluBackward& k) {
  const int64_t R = k.gate_up.size(0), C = k.gate_up.size(1), F = C / 2;
  check_copies(QuantizeSwigluBackward::kName, k.out, R, C);
  cpu::for_float(k.gate_up.dtype, QuantizeSwigluBackward::kName, [&](auto t) {
    using T = decltype(t);
    const T *x = k.gate_up.as<T>(), *dy = k.out_grad.as<T>();
    fill_copies(k.out, R, C, [=, stride = k.gate_up.stride(0), dy_stride = k.out_grad.stride(0)](int64_t r, int64_t c) {
      const int64_t f = c % F;
      const T d = dy[r * dy_stride + f], g = x[r * stride + f], u = x[r * stride + F + f], s = cpu::sigmoid(g);
      return static_cast<float>(c < F ? d * u * s * (T(1) + g * (T(1) - s)) : d * g * s);
    });
  });
}

}  // namespace egmla

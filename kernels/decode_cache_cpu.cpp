#include <vector>

#include "kernels/cpu_utils.h"
#include "kernels/decode_cache.h"

namespace egmla {
namespace {

template <class T>
void rotate(T* target, const T* source, const T* cos, const T* sin, int64_t d, bool interleave) {
  for (int64_t p = 0; p < d / 2; ++p) {
    const int64_t i = interleave ? 2 * p : p, j = interleave ? 2 * p + 1 : p + d / 2;
    const T x = source[i], y = source[j];
    target[i] = x * cos[p] - y * sin[p];
    target[j] = x * sin[p] + y * cos[p];
  }
}

template <class T>
void append(const DecodeAppend& k) {
  const int64_t B = k.rows.size(0), w = k.rows.size(1), H = k.q.size(1), d = k.q.size(2);
  for (int64_t b = 0; b < B; ++b) {
    const int64_t position = k.positions.as<int32_t>()[b];
    const T* cos = k.cos.as<T>() + position * (d / 2);
    const T* sin = k.sin.as<T>() + position * (d / 2);
    const T* source = k.rows.as<T>() + b * k.rows.stride(0);
    T* row = k.cache.as<T>() + b * k.cache.stride(0) + position * k.cache.stride(1);
    std::copy(source, source + w, row);
    if (k.norm_weight.defined()) {
      const int64_t n = k.norm_weight.size(0);
      T squares = 0;
      for (int64_t i = 0; i < n; ++i) squares += row[i] * row[i];
      const T rstd = T(1) / std::sqrt(squares / static_cast<T>(n) + static_cast<T>(k.eps));
      for (int64_t i = 0; i < n; ++i) row[i] *= rstd * k.norm_weight.as<T>()[i];
    }
    for (int64_t h = 0; h < k.key_heads; ++h) {
      const int64_t column = k.key_begin + h * d;
      rotate(row + column, source + column, cos, sin, d, k.interleave);
    }
    for (int64_t h = 0; h < H; ++h) {
      const T* q = k.q.as<T>() + b * k.q.stride(0) + h * k.q.stride(1);
      rotate(k.q_out.as<T>() + b * k.q_out.stride(0) + h * k.q_out.stride(1), q, cos, sin, d, k.interleave);
    }
  }
}

}  // namespace

void run(CpuContext&, const RecordToken& k) {
  for (int64_t b = 0; b < k.tokens.size(0); ++b)
    k.ids.as<int32_t>()[b * k.ids.stride(0) + k.positions.as<int32_t>()[b]] = k.tokens.as<int32_t>()[b];
}

void run(CpuContext&, const DecodeAppend& k) {
  cpu::for_float(k.rows.dtype, DecodeAppend::kName, [&](auto t) { append<decltype(t)>(k); });
}

void run(CpuContext&, const GreedyStep& k) {
  cpu::for_float(k.logits.dtype, GreedyStep::kName, [&](auto t) {
    using T = decltype(t);
    for (int64_t b = 0; b < k.logits.size(0); ++b) {
      const T* row = k.logits.as<T>() + b * k.logits.stride(0);
      k.tokens.as<int32_t>()[b] = static_cast<int32_t>(std::max_element(row, row + k.logits.size(1)) - row);
      int32_t& position = k.positions.as<int32_t>()[b];
      position = std::min(position + 1, static_cast<int32_t>(k.capacity) - 1);
    }
  });
}

}  // namespace egmla

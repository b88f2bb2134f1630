// Shared by the CPU kernels: dtype dispatch, a static parallel loop, and exp that compilers can vectorise.
// Work is cut by size alone, never by the number of threads, wherever sums are involved.
#pragma once

#include <omp.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "core/view.h"

namespace egmla::cpu {

// Calls function(T{}) with T = float or double.
template <class F>
void for_float(DType dtype, const char* kernel, F&& function) {
  if (dtype == DType::f32) return function(float{});
  if (dtype == DType::f64) return function(double{});
  fail("{}: the CPU back end computes in f32 or f64, found {}", kernel, name_of(dtype));
}

// Multiplications that take longer than handing them to another thread, some 50 microseconds.
constexpr int64_t kProductsWorthAThread = 1 << 19;

// function(begin, end) over [0, n) cut into even ranges, one per thread; serial below `grain` items.
template <class F>
void parallel_ranges(int64_t n, int64_t grain, F&& function) {
  const int threads =
      static_cast<int>(std::min<int64_t>(omp_get_max_threads(), (n + grain - 1) / std::max<int64_t>(grain, 1)));
  if (threads <= 1 || omp_in_parallel()) {
    if (n > 0) function(int64_t{0}, n);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int64_t t = omp_get_thread_num(), count = omp_get_num_threads();
    function(n * t / count, n * (t + 1) / count);
  }
}

// exp to about 1 ulp in branch-free arithmetic (range reduction by ln 2, Cephes' polynomial); 0 below -87.
inline float exp_of(float x) {
  const float clamped = std::min(std::max(x, -87.0f), 88.0f);
  const float n = std::floor(clamped * 1.44269504088896341f + 0.5f);
  const float r = clamped - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  const float scaled = y * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : scaled;
}
inline double exp_of(double x) {
  return std::exp(x);
}

template <class T>
T sigmoid(T x) {
  return T(1) / (T(1) + exp_of(-x));
}

template <class T>
T tanh_of(T x) {
  return T(1) - T(2) / (exp_of(T(2) * x) + T(1));
}

}  // namespace egmla::cpu

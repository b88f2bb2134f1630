// One dot product an output, over the weight's rows in parallel: its order depends on K alone, so a row's result does
// not depend on the rows beside it.
#include <vector>

#include "kernels/cpu_utils.h"
#include "kernels/decode_linear.h"

namespace egmla {
namespace {

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// The input's row m after sum and norm.
template <class T>
void prepare_row(const DecodeLinear& k, int64_t m, T* row) {
  const int64_t K = k.x.size(1), source = k.ids.defined() ? k.ids.as<int32_t>()[m] : m;
  const T* x = k.x.as<T>() + source * k.x.stride(0);
  std::copy(x, x + K, row);
  if (k.delta.defined()) {
    const T* delta = k.delta.as<T>() + m * k.delta.stride(0);
    for (int64_t i = 0; i < K; ++i) row[i] += delta[i];
  }
  if (k.sum.defined()) std::copy(row, row + K, k.sum.as<T>() + m * k.sum.stride(0));
  if (!k.norm_weight.defined()) return;
  const T* weight = k.norm_weight.as<T>();
  T mean = 0;
  if (k.norm_bias.defined()) {
    for (int64_t i = 0; i < K; ++i) mean += row[i];
    mean /= static_cast<T>(K);
  }
  T squares = 0;
  for (int64_t i = 0; i < K; ++i) squares += (row[i] - mean) * (row[i] - mean);
  const T rstd = T(1) / std::sqrt(squares / static_cast<T>(K) + static_cast<T>(k.eps));
  for (int64_t i = 0; i < K; ++i) row[i] = (row[i] - mean) * rstd * weight[i];
  if (!k.norm_bias.defined()) return;
  for (int64_t i = 0; i < K; ++i) row[i] += k.norm_bias.as<T>()[i];
}

template <class T>
void decode_linear(const DecodeLinear& k) {
  const int64_t M = k.out.size(0), N = k.out.size(1), K = k.x.size(1);
  std::vector<T> rows(static_cast<size_t>(M * K));
  for (int64_t m = 0; m < M; ++m) prepare_row(k, m, rows.data() + m * K);

  const int64_t grain = std::max<int64_t>(1, cpu::kProductsWorthAThread / std::max<int64_t>(1, M * K));
  cpu::parallel_ranges(N, grain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* weight = k.weight.as<T>() + n * k.weight.stride(0);
      const T* up = k.swiglu ? weight + N * k.weight.stride(0) : nullptr;
      for (int64_t m = 0; m < M; ++m) {
        T y = dot(rows.data() + m * K, weight, K);
        if (up) y = y * cpu::sigmoid(y) * dot(rows.data() + m * K, up, K);
        k.out.as<T>()[m * k.out.stride(0) + n] = y;
      }
    }
  });
}

}  // namespace

void run(CpuContext&, const DecodeLinear& k) {
  check_decode_linear(k);
  cpu::for_float(k.out.dtype, DecodeLinear::kName, [&](auto t) { decode_linear<decltype(t)>(k); });
}

}  // namespace egmla

#include "kernels/cpu_utils.h"
#include "kernels/cross_entropy.h"

namespace egmla {
namespace {

// Replaces the row by exp(row - max) and returns {log-sum-exp, sum}.
template <class T>
std::pair<T, T> exponentiate(T* row, int64_t V) {
  T largest = row[0];
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < V; ++i) largest = row[i] > largest ? row[i] : largest;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < V; ++i) {
    row[i] = cpu::exp_of(row[i] - largest);
    sum += row[i];
  }
  return {largest + std::log(sum), sum};
}

}  // namespace

void run(CpuContext&, const CrossEntropy& k) {
  cpu::for_float(k.logits.dtype, CrossEntropy::kName, [&](auto t) {
    using T = decltype(t);
    const int64_t N = k.logits.size(0), V = k.logits.size(1);
    const int32_t* targets = k.targets.as<int32_t>();
    T* loss = k.loss.as<T>();
    cpu::parallel_ranges(N, 4, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        T* row = k.logits.as<T>() + n * k.logits.stride(0);
        const int32_t target = targets[n];
        if (target == kIgnoreIndex) {
          loss[n] = 0;
          if (k.write_grad) std::fill(row, row + V, T(0));
          continue;
        }
        const T score = row[target];
        const auto [lse, sum] = exponentiate(row, V);
        loss[n] = lse - score;
        if (!k.write_grad) continue;
        const T scale = static_cast<T>(k.grad_scale) / sum;
#pragma omp simd
        for (int64_t i = 0; i < V; ++i) row[i] *= scale;
        row[target] -= static_cast<T>(k.grad_scale);
      }
    });
  });
}

void run(CpuContext&, const Sum& k) {
  cpu::for_float(k.x.dtype, Sum::kName, [&](auto t) {
    using T = decltype(t);
    double sum = 0;
    for (int64_t i = 0; i < k.x.elements(); ++i) sum += static_cast<double>(k.x.as<T>()[i]);
    *k.out.as<T>() = static_cast<T>(sum * k.scale);
  });
}

}  // namespace egmla

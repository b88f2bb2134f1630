#include "kernels/adamw.h"
#include "kernels/cpu_utils.h"

namespace egmla {

void run(CpuContext&, const SquareSum& k) {
  cpu::for_float(k.x.dtype, SquareSum::kName, [&](auto t) {
    using T = decltype(t);
    const int64_t n = k.x.elements(), count = k.partials.elements();
    const T* x = k.x.as<T>();
    T* partials = k.partials.as<T>();
    cpu::parallel_ranges(count, 8, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = n * p / count; i < n * (p + 1) / count; ++i) sum += x[i] * x[i];
        partials[p] = sum;
      }
    });
  });
}

void run(CpuContext&, const GradNorm& k) {
  cpu::for_float(k.norm.dtype, GradNorm::kName, [&](auto t) {
    using T = decltype(t);
    if (k.halt && !std::isfinite(*k.norm.as<T>())) return;
    double sum = 0;
    for (int64_t p = 0; p < k.partials.elements(); ++p) sum += static_cast<double>(k.partials.as<T>()[p]);
    *k.norm.as<T>() = static_cast<T>(std::sqrt(sum));
  });
}

void run(CpuContext&, const AdamW& k) {
  cpu::for_float(k.master.dtype, AdamW::kName, [&](auto t) {
    using T = decltype(t);
    const T norm = *k.grad_norm.as<T>();
    if (!std::isfinite(norm)) return;
    const T scale = k.max_norm > 0 && norm > static_cast<T>(k.max_norm) ? static_cast<T>(k.max_norm) / norm : T(1);
    const T b1 = static_cast<T>(k.beta1), b2 = static_cast<T>(k.beta2), eps = static_cast<T>(k.eps);
    const T correction1 = static_cast<T>(1.0 / (1.0 - std::pow(k.beta1, static_cast<double>(k.step))));
    const T correction2 = static_cast<T>(1.0 / (1.0 - std::pow(k.beta2, static_cast<double>(k.step))));
    const T lr = static_cast<T>(k.lr), decay = static_cast<T>(k.lr * k.weight_decay);
    T* w = k.master.as<T>();
    T* m = k.exp_avg.as<T>();
    T* v = k.exp_avg_sq.as<T>();
    const T* grad = k.grad.as<T>();
    cpu::parallel_ranges(k.master.elements(), 1 << 14, [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const T g = grad[i] * scale;
        m[i] = b1 * m[i] + (T(1) - b1) * g;
        v[i] = b2 * v[i] + (T(1) - b2) * g * g;
        w[i] -= lr * (m[i] * correction1) / (std::sqrt(v[i] * correction2) + eps) + decay * w[i];
      }
    });
  });
}

}  // namespace egmla

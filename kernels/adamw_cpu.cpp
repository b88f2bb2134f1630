#include "core/bf16.h"
#include "kernels/adamw.h"
#include "kernels/cpu_utils.h"

namespace egmla {
namespace {

template <class T>
struct Update {
  T scale, b1, b2, eps, correction1, correction2, lr, decay;

  void operator()(T* w, T* m, T* v, const T* grad, int64_t n) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const T g = grad[i] * scale;
      m[i] = b1 * m[i] + (T(1) - b1) * g;
      v[i] = b2 * v[i] + (T(1) - b2) * g * g;
      w[i] -= lr * (m[i] * correction1) / (std::sqrt(v[i] * correction2) + eps) + decay * w[i];
    }
  }
};

// Blocks of the moments are widened, updated and rounded.
template <class T>
void update_bf16(const AdamW& k, const Update<T>& update) {
  constexpr int64_t kBlock = 64;
  uint16_t *m = k.exp_avg.as<uint16_t>(), *v = k.exp_avg_sq.as<uint16_t>();
  const int64_t n = k.master.elements();
  cpu::parallel_ranges((n + kBlock - 1) / kBlock, (1 << 14) / kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin * kBlock; at < std::min(end * kBlock, n); at += kBlock) {
      const int64_t count = std::min(kBlock, n - at);
      T wide_m[kBlock], wide_v[kBlock];
      for (int64_t i = 0; i < count; ++i) {
        wide_m[i] = static_cast<T>(float_from_bf16(m[at + i]));
        wide_v[i] = static_cast<T>(float_from_bf16(v[at + i]));
      }
      update(k.master.as<T>() + at, wide_m, wide_v, k.grad.as<T>() + at, count);
      std::array<uint32_t, kRoundingWidth> bits{};
      for (int64_t i = 0; i < count; ++i) {
        if (i % kRoundingWidth == 0) bits = rounding_bits(k.seed, k.step, (k.first + at + i) / kRoundingWidth);
        const uint32_t word = bits[static_cast<size_t>(i % kRoundingWidth)];
        m[at + i] = bf16_stochastic(static_cast<float>(wide_m[i]), word);
        v[at + i] = bf16_stochastic(static_cast<float>(wide_v[i]), word >> 16);
      }
    }
  });
}

}  // namespace

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
    const double step = static_cast<double>(k.step);
    const Update<T> update{
        .scale = k.max_norm > 0 && norm > static_cast<T>(k.max_norm) ? static_cast<T>(k.max_norm) / norm : T(1),
        .b1 = static_cast<T>(k.beta1),
        .b2 = static_cast<T>(k.beta2),
        .eps = static_cast<T>(k.eps),
        .correction1 = static_cast<T>(1.0 / (1.0 - std::pow(k.beta1, step))),
        .correction2 = static_cast<T>(1.0 / (1.0 - std::pow(k.beta2, step))),
        .lr = static_cast<T>(k.lr),
        .decay = static_cast<T>(k.lr * k.weight_decay)};
    if (k.exp_avg.dtype == DType::bf16) return update_bf16(k, update);
    T *w = k.master.as<T>(), *m = k.exp_avg.as<T>(), *v = k.exp_avg_sq.as<T>();
    const T* grad = k.grad.as<T>();
    cpu::parallel_ranges(k.master.elements(), 1 << 14, [&](int64_t begin, int64_t end) {
      update(w + begin, m + begin, v + begin, grad + begin, end - begin);
    });
  });
}

}  // namespace egmla

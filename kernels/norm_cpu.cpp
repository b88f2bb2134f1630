// One body for RMSNorm and LayerNorm: RMSNorm is LayerNorm without mean and bias.
// Backward, with xhat = (x - mean) rstd and d = weight * out_grad:  x_grad = rstd (d - [mean(d)] - xhat mean(d xhat)).
#include "kernels/cpu_utils.h"
#include "kernels/norm.h"

namespace egmla {
namespace {

constexpr int64_t kRowGrain = 16;

template <class T, bool kCenter, class Kernel>
void forward(const Kernel& k, const View& mean_out, const View& bias_in) {
  const View out = k.out.as_matrix(), x = k.x.as_matrix();
  const View residual = k.residual.defined() ? k.residual.as_matrix() : View{};
  const View sum = k.residual.defined() ? k.residual_out.as_matrix() : View{};
  const int64_t N = x.size(0), C = x.size(1);
  const T* weight = k.weight.template as<T>();
  const T* bias = kCenter ? bias_in.as<T>() : nullptr;
  T* rstd_out = k.rstd.template as<T>();
  cpu::parallel_ranges(N, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const T* row = x.as<T>() + n * x.stride(0);
      if (residual.defined()) {
        const T* other = residual.as<T>() + n * residual.stride(0);
        T* s = sum.as<T>() + n * sum.stride(0);
#pragma omp simd
        for (int64_t i = 0; i < C; ++i) s[i] = row[i] + other[i];
        row = s;
      }
      T mean = 0;
      if constexpr (kCenter) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < C; ++i) mean += row[i];
        mean /= static_cast<T>(C);
        mean_out.as<T>()[n] = mean;
      }
      T square = 0;
#pragma omp simd reduction(+ : square)
      for (int64_t i = 0; i < C; ++i) square += (row[i] - mean) * (row[i] - mean);
      const T rstd = T(1) / std::sqrt(square / static_cast<T>(C) + static_cast<T>(k.eps));
      rstd_out[n] = rstd;
      T* o = out.as<T>() + n * out.stride(0);
#pragma omp simd
      for (int64_t i = 0; i < C; ++i) o[i] = (row[i] - mean) * rstd * weight[i] + (kCenter ? bias[i] : T(0));
    }
  });
}

// partials[p] holds the weight sums (and, behind them, the bias sums) of rows [N p / P, N (p + 1) / P).
template <class T, bool kCenter, class Kernel>
void backward(const Kernel& k, const View& mean_in, const View& bias_grad) {
  const View grad = k.x_grad.as_matrix(), dout = k.out_grad.as_matrix(), x = k.x.as_matrix();
  const View residual = k.residual_grad.defined() ? k.residual_grad.as_matrix() : View{};
  const int64_t N = x.size(0), C = x.size(1), width = kCenter ? 2 * C : C;
  const T* weight = k.weight.template as<T>();
  const T* rstds = k.rstd.template as<T>();
  T* partials = k.partials.template as<T>();
  cpu::parallel_ranges(kNormPartials, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      T* sums = partials + p * width;
      std::fill(sums, sums + width, T(0));
      for (int64_t n = N * p / kNormPartials; n < N * (p + 1) / kNormPartials; ++n) {
        const T* row = x.as<T>() + n * x.stride(0);
        const T* dy = dout.as<T>() + n * dout.stride(0);
        const T* extra = residual.defined() ? residual.as<T>() + n * residual.stride(0) : nullptr;
        T* dx = grad.as<T>() + n * grad.stride(0);
        const T rstd = rstds[n], mean = kCenter ? mean_in.as<T>()[n] : T(0);
        T d_sum = 0, dx_sum = 0;
#pragma omp simd reduction(+ : d_sum, dx_sum)
        for (int64_t i = 0; i < C; ++i) {
          const T xhat = (row[i] - mean) * rstd, d = dy[i] * weight[i];
          d_sum += d;
          dx_sum += d * xhat;
          sums[i] += dy[i] * xhat;
          if constexpr (kCenter) sums[C + i] += dy[i];
        }
        const T d_mean = kCenter ? d_sum / static_cast<T>(C) : T(0), dx_mean = dx_sum / static_cast<T>(C);
        if (extra) {
#pragma omp simd
          for (int64_t i = 0; i < C; ++i)
            dx[i] = extra[i] + rstd * (dy[i] * weight[i] - d_mean - (row[i] - mean) * rstd * dx_mean);
        } else {
#pragma omp simd
          for (int64_t i = 0; i < C; ++i)
            dx[i] = rstd * (dy[i] * weight[i] - d_mean - (row[i] - mean) * rstd * dx_mean);
        }
      }
    }
  });
  T* dw = k.weight_grad.template as<T>();
  T* db = kCenter ? bias_grad.as<T>() : nullptr;
  for (int64_t i = 0; i < width; ++i) {
    T* target = i < C ? dw + i : db + (i - C);
    T sum = k.accumulate ? *target : T(0);
    for (int64_t p = 0; p < kNormPartials; ++p) sum += partials[p * width + i];
    *target = sum;
  }
}

}  // namespace

void run(CpuContext&, const RmsNormForward& k) {
  cpu::for_float(k.x.dtype, RmsNormForward::kName, [&](auto t) { forward<decltype(t), false>(k, View{}, View{}); });
}

void run(CpuContext&, const RmsNormBackward& k) {
  cpu::for_float(k.x.dtype, RmsNormBackward::kName, [&](auto t) { backward<decltype(t), false>(k, View{}, View{}); });
}

void run(CpuContext&, const LayerNormForward& k) {
  cpu::for_float(k.x.dtype, LayerNormForward::kName, [&](auto t) { forward<decltype(t), true>(k, k.mean, k.bias); });
}

void run(CpuContext&, const LayerNormBackward& k) {
  cpu::for_float(k.x.dtype, LayerNormBackward::kName,
                 [&](auto t) { backward<decltype(t), true>(k, k.mean, k.bias_grad); });
}

}  // namespace egmla

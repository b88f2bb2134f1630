// Forward, per token: y = u a, a = act(offset + g); LayerNorm(y) over the token (joint) or over each head.
// Backward: with yhat = (y - mean) rstd and d = weight out_grad,  dy = rstd (d - mean(d) - yhat mean(d yhat));
//           u_grad = dy a;  g_grad = dy u act'(offset + g).
#include "kernels/cpu_utils.h"
#include "kernels/gate.h"

namespace egmla {
namespace {

// act(x) and its derivative.
template <class T, GateActivation kActivation>
inline void activate(T x, T& value, T& slope) {
  if constexpr (kActivation == GateActivation::none) {
    value = x;
    slope = T(1);
  } else if constexpr (kActivation == GateActivation::sigmoid) {
    value = cpu::sigmoid(x);
    slope = value * (T(1) - value);
  } else if constexpr (kActivation == GateActivation::tanh) {
    value = cpu::tanh_of(x);
    slope = T(1) - value * value;
  } else {
    const T s = cpu::sigmoid(x);
    value = x * s;
    slope = s * (T(1) + x * (T(1) - s));
  }
}

template <class F>
void for_activation(GateActivation activation, F&& function) {
  switch (activation) {
    case GateActivation::none:
      return function(std::integral_constant<GateActivation, GateActivation::none>{});
    case GateActivation::sigmoid:
      return function(std::integral_constant<GateActivation, GateActivation::sigmoid>{});
    case GateActivation::tanh:
      return function(std::integral_constant<GateActivation, GateActivation::tanh>{});
    case GateActivation::silu:
      return function(std::integral_constant<GateActivation, GateActivation::silu>{});
  }
}

template <class T>
T* at(const View& view, int64_t n, int64_t h) {
  return view.as<T>() + n * view.stride(0) + h * view.stride(1);
}

template <class T, GateActivation kActivation>
void forward(const GateForward& k) {
  const int64_t N = k.u.size(0), H = k.u.size(1), w = k.u.size(2);
  const int64_t groups = k.norm == GateNorm::per_head ? H : 1, heads = H / groups, features = heads * w;
  const T offset = static_cast<T>(k.offset);
  cpu::parallel_ranges(N, 8, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      for (int64_t group = 0; group < groups; ++group) {
        T sum = 0;
        for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
          const T* u = at<T>(k.u, n, h);
          const T* g = at<T>(k.g, n, h);
          T* out = at<T>(k.out, n, h);
#pragma omp simd reduction(+ : sum)
          for (int64_t i = 0; i < w; ++i) {
            T a, slope;
            activate<T, kActivation>(offset + g[i], a, slope);
            out[i] = u[i] * a;
            sum += out[i];
          }
        }
        if (k.norm == GateNorm::none) continue;
        const T mean = sum / static_cast<T>(features);
        T square = 0;
        for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
          const T* out = at<T>(k.out, n, h);
#pragma omp simd reduction(+ : square)
          for (int64_t i = 0; i < w; ++i) square += (out[i] - mean) * (out[i] - mean);
        }
        const T rstd = T(1) / std::sqrt(square / static_cast<T>(features) + static_cast<T>(k.eps));
        k.mean.as<T>()[n * groups + group] = mean;
        k.rstd.as<T>()[n * groups + group] = rstd;
        for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
          T* out = at<T>(k.out, n, h);
          const T* weight = k.weight.as<T>() + h * k.weight.stride(0);
          const T* bias = k.bias.as<T>() + h * k.bias.stride(0);
#pragma omp simd
          for (int64_t i = 0; i < w; ++i) out[i] = (out[i] - mean) * rstd * weight[i] + bias[i];
        }
      }
    }
  });
}

// One token's group of heads; sums (weight sums, then bias sums, [H w] each) is null without a norm.
template <class T, GateActivation kActivation>
void backward_group(const GateBackward& k, int64_t n, int64_t group, int64_t groups, T* sums) {
  const int64_t H = k.u.size(1), w = k.u.size(2), heads = H / groups;
  const T offset = static_cast<T>(k.offset);
  T mean = 0, rstd = 1, d_mean = 0, dy_mean = 0;
  if (sums) {
    mean = k.mean.as<T>()[n * groups + group];
    rstd = k.rstd.as<T>()[n * groups + group];
    T d_sum = 0, dy_sum = 0;
    for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
      const T* u = at<T>(k.u, n, h);
      const T* g = at<T>(k.g, n, h);
      const T* dout = at<T>(k.out_grad, n, h);
      const T* weight = k.weight.as<T>() + h * k.weight.stride(0);
      T* weight_sums = sums + h * w;
      T* bias_sums = sums + (H + h) * w;
#pragma omp simd reduction(+ : d_sum, dy_sum)
      for (int64_t i = 0; i < w; ++i) {
        T a, slope;
        activate<T, kActivation>(offset + g[i], a, slope);
        const T yhat = (u[i] * a - mean) * rstd, d = dout[i] * weight[i];
        d_sum += d;
        dy_sum += d * yhat;
        weight_sums[i] += dout[i] * yhat;
        bias_sums[i] += dout[i];
      }
    }
    d_mean = d_sum / static_cast<T>(heads * w);
    dy_mean = dy_sum / static_cast<T>(heads * w);
  }
  for (int64_t h = group * heads; h < (group + 1) * heads; ++h) {
    const T* u = at<T>(k.u, n, h);
    const T* g = at<T>(k.g, n, h);
    const T* dout = at<T>(k.out_grad, n, h);
    const T* weight = sums ? k.weight.as<T>() + h * k.weight.stride(0) : nullptr;
    T* du = at<T>(k.u_grad, n, h);
    T* dg = at<T>(k.g_grad, n, h);
#pragma omp simd
    for (int64_t i = 0; i < w; ++i) {
      T a, slope;
      activate<T, kActivation>(offset + g[i], a, slope);
      const T x = u[i];
      const T dy = weight ? rstd * (dout[i] * weight[i] - d_mean - (x * a - mean) * rstd * dy_mean) : dout[i];
      du[i] = dy * a;
      dg[i] = dy * x * slope;
    }
  }
}

template <class T, GateActivation kActivation>
void backward(const GateBackward& k) {
  const int64_t N = k.u.size(0), H = k.u.size(1), w = k.u.size(2), features = H * w;
  const int64_t groups = k.norm == GateNorm::per_head ? H : 1;
  const bool normed = k.norm != GateNorm::none;
  T* partials = normed ? k.partials.as<T>() : nullptr;
  cpu::parallel_ranges(kNormPartials, 1, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      T* sums = normed ? partials + p * 2 * features : nullptr;
      if (sums) std::fill(sums, sums + 2 * features, T(0));
      for (int64_t n = N * p / kNormPartials; n < N * (p + 1) / kNormPartials; ++n) {
        for (int64_t group = 0; group < groups; ++group) backward_group<T, kActivation>(k, n, group, groups, sums);
      }
    }
  });
  if (!normed) return;
  for (int64_t h = 0; h < H; ++h) {
    for (int64_t i = 0; i < w; ++i) {
      T* dw = k.weight_grad.as<T>() + h * k.weight_grad.stride(0) + i;
      T* db = k.bias_grad.as<T>() + h * k.bias_grad.stride(0) + i;
      T weight_sum = k.accumulate ? *dw : T(0), bias_sum = k.accumulate ? *db : T(0);
      for (int64_t p = 0; p < kNormPartials; ++p) {
        weight_sum += partials[p * 2 * features + h * w + i];
        bias_sum += partials[p * 2 * features + features + h * w + i];
      }
      *dw = weight_sum;
      *db = bias_sum;
    }
  }
}

}  // namespace

void run(CpuContext&, const GateForward& k) {
  cpu::for_float(k.u.dtype, GateForward::kName, [&](auto t) {
    for_activation(k.activation, [&](auto activation) { forward<decltype(t), activation.value>(k); });
  });
}

void run(CpuContext&, const GateBackward& k) {
  cpu::for_float(k.u.dtype, GateBackward::kName, [&](auto t) {
    for_activation(k.activation, [&](auto activation) { backward<decltype(t), activation.value>(k); });
  });
}

}  // namespace egmla

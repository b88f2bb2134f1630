// The optimizer moves 28 bytes an element (read w, m, v, g; write w, m, v), 20 with bf16 moments, and 2 more for the
// bf16 copy, once.
#include <cmath>

#include "core/bf16.h"
#include "kernels/adamw.h"
#include "kernels/cuda_utils.cuh"

namespace egmla {
namespace {

constexpr int kThreads = 256;
constexpr int kWidth = 4;  // f32 elements a thread handles at once: one 16-byte access an array

// Reads 4 bytes an element. Block p owns packets [n p / P, n (p + 1) / P).
__global__ void square_sum_kernel(float* partials, const float* x, int64_t n, bool wide) {
  const int64_t packets = gpu::ceil_div(n, kWidth);
  const int64_t begin = packets * blockIdx.x / gridDim.x, end = packets * (blockIdx.x + 1) / gridDim.x;
  float sum = 0;
  for (int64_t p = begin + threadIdx.x; p < end; p += kThreads) {
    const int count = static_cast<int>(min(int64_t{kWidth}, n - p * kWidth));
    const auto packet = gpu::load<kWidth>(x + p * kWidth, wide, count);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += packet[i] * packet[i];
  }
  sum = gpu::block_sum(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void grad_norm_kernel(float* norm, const float* partials, int count, bool halt) {
  if (halt && !isfinite(*norm)) return;
  double sum = 0;
  for (int p = static_cast<int>(threadIdx.x); p < count; p += kThreads) sum += static_cast<double>(partials[p]);
  sum = gpu::block_sum(sum);
  if (threadIdx.x == 0) *norm = static_cast<float>(sqrt(sum));
}

template <class S>
struct AdamWArgs {
  float* master;
  S* exp_avg;
  S* exp_avg_sq;
  bf16* working;  // or null
  const float* grad;
  const float* grad_norm;
  int64_t n;
  float max_norm, lr, beta1, beta2, rest1, rest2, eps, decay;  // rest = 1 - beta, decay = lr weight_decay
  float correction1, correction2;                              // 1 / (1 - beta^step)
  uint64_t seed;
  int64_t step, first;
  bool wide;
};

static_assert(kWidth == kRoundingWidth);

// The bits of `random` from `shift` on round a moment that is bf16.
template <class S>
__device__ void store_moment(S* target, const float (&values)[kWidth], const std::array<uint32_t, kWidth>& random,
                             int shift, bool wide, int count) {
  if constexpr (std::is_same_v<S, float>) {
    gpu::store_floats(target, values, wide, count);
  } else {
    gpu::Packet<bf16, kWidth> packet;
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      packet.set(i, __ushort_as_bfloat16(bf16_stochastic(values[i], random[static_cast<size_t>(i)] >> shift)));
    gpu::store(target, packet, wide, count);
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamWArgs<S> a) {
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kWidth;
  if (at >= a.n) return;
  const float norm = *a.grad_norm;
  if (!isfinite(norm)) return;
  const float scale = a.max_norm > 0 && norm > a.max_norm ? a.max_norm / norm : 1.0f;
  const int count = static_cast<int>(min(int64_t{kWidth}, a.n - at));
  const auto grad = gpu::load<kWidth>(a.grad + at, a.wide, count);
  auto w = gpu::load<kWidth>(a.master + at, a.wide, count);
  const auto old_m = gpu::load<kWidth>(a.exp_avg + at, a.wide, count);
  const auto old_v = gpu::load<kWidth>(a.exp_avg_sq + at, a.wide, count);
  float m[kWidth], v[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const float g = grad[i] * scale;
    m[i] = a.beta1 * old_m[i] + a.rest1 * g;
    v[i] = a.beta2 * old_v[i] + a.rest2 * g * g;
    const float update = m[i] * a.correction1 / (sqrtf(v[i] * a.correction2) + a.eps);
    w.values[i] -= a.lr * update + a.decay * w.values[i];
  }
  std::array<uint32_t, kWidth> random{};
  if constexpr (std::is_same_v<S, bf16>) random = rounding_bits(a.seed, a.step, (a.first + at) / kWidth);
  gpu::store(a.master + at, w, a.wide, count);
  store_moment(a.exp_avg + at, m, random, 0, a.wide, count);
  store_moment(a.exp_avg_sq + at, v, random, 16, a.wide, count);
  if (a.working) gpu::store_floats(a.working + at, w.values, a.wide, count);
}

}  // namespace

void run(CudaContext& context, const SquareSum& k) {
  launch_kernel(context, SquareSum::kName, static_cast<unsigned>(k.partials.elements()), kThreads, 0, square_sum_kernel,
                k.partials.as<float>(), k.x.as<float>(), k.x.elements(), gpu::aligned(k.x));
}

void run(CudaContext& context, const GradNorm& k) {
  launch_kernel(context, GradNorm::kName, 1, kThreads, 0, grad_norm_kernel, k.norm.as<float>(), k.partials.as<float>(),
                static_cast<int>(k.partials.elements()), k.halt);
}

void run(CudaContext& context, const AdamW& k) {
  const double step = static_cast<double>(k.step);
  gpu::for_float(k.exp_avg.dtype, AdamW::kName, [&](auto s) {
    using S = decltype(s);
    const AdamWArgs<S> args{.master = k.master.as<float>(),
                            .exp_avg = k.exp_avg.as<S>(),
                            .exp_avg_sq = k.exp_avg_sq.as<S>(),
                            .working = k.working.defined() ? k.working.as<bf16>() : nullptr,
                            .grad = k.grad.as<float>(),
                            .grad_norm = k.grad_norm.as<float>(),
                            .n = k.master.elements(),
                            .max_norm = static_cast<float>(k.max_norm),
                            .lr = static_cast<float>(k.lr),
                            .beta1 = static_cast<float>(k.beta1),
                            .beta2 = static_cast<float>(k.beta2),
                            .rest1 = static_cast<float>(1.0 - k.beta1),
                            .rest2 = static_cast<float>(1.0 - k.beta2),
                            .eps = static_cast<float>(k.eps),
                            .decay = static_cast<float>(k.lr * k.weight_decay),
                            .correction1 = static_cast<float>(1.0 / (1.0 - std::pow(k.beta1, step))),
                            .correction2 = static_cast<float>(1.0 / (1.0 - std::pow(k.beta2, step))),
                            .seed = k.seed,
                            .step = k.step,
                            .first = k.first,
                            .wide = gpu::all_aligned(k.master, k.exp_avg, k.exp_avg_sq, k.grad, k.working)};
    launch_kernel(context, AdamW::kName, static_cast<unsigned>(gpu::ceil_div(args.n, int64_t{kThreads} * kWidth)),
                  kThreads, 0, adamw_kernel<S>, args);
  });
}

}  // namespace egmla

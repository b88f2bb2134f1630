// A block owns a row: one pass finds maximum and sum together, a second overwrites the logits by their gradient while
// the row still lies in the L2 cache. Bytes a logit of size s: s, or 2 s with the gradient.
#include <cfloat>

#include "kernels/cross_entropy.h"
#include "kernels/cuda_utils.cuh"

namespace egmla {
namespace {

using gpu::kPacket;

constexpr int kThreads = 1024;

template <class T>
struct CrossEntropyArgs {
  float* loss;
  T* logits;
  const int32_t* targets;
  int64_t stride;
  int columns;
  float grad_scale;
  bool write_grad, wide;
};

// Maximum and sum of exp(x - maximum) over the row; every thread receives both.
template <class T>
__device__ inline void online_softmax(const T* row, int columns, bool wide, float& largest, float& sum) {
  largest = -FLT_MAX;
  sum = 0;
  for (int column = static_cast<int>(threadIdx.x) * kPacket; column < columns; column += kThreads * kPacket) {
    const int count = min(kPacket, columns - column);
    const auto x = gpu::load(row + column, wide, count);
    float top = largest;
#pragma unroll
    for (int i = 0; i < kPacket; ++i) top = i < count ? fmaxf(top, x[i]) : top;
    sum *= __expf(largest - top);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) sum += i < count ? __expf(x[i] - top) : 0.0f;
    largest = top;
  }
  const float own = largest;
  largest = gpu::block_max(own);
  sum = gpu::block_sum(sum * __expf(own - largest));
}

template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(CrossEntropyArgs<T> a) {
  const int64_t n = blockIdx.x;
  T* row = a.logits + n * a.stride;
  const int32_t target = a.targets[n];
  const bool ignored = target == kIgnoreIndex;
  float largest = 0, sum = 1, scale = 0;
  if (!ignored) {
    const float score = gpu::to_float(row[target]);  // before anybody overwrites it
    online_softmax(row, a.columns, a.wide, largest, sum);
    scale = a.grad_scale / sum;
    if (threadIdx.x == 0) a.loss[n] = largest - score + logf(sum);
  } else if (threadIdx.x == 0) {
    a.loss[n] = 0;
  }
  if (!a.write_grad) return;
  for (int column = static_cast<int>(threadIdx.x) * kPacket; column < a.columns; column += kThreads * kPacket) {
    const int count = min(kPacket, a.columns - column);
    float grad[kPacket] = {};
    if (!ignored) {
      const auto x = gpu::load(row + column, a.wide, count);
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        grad[i] = __expf(x[i] - largest) * scale;
        if (column + i == target) grad[i] -= a.grad_scale;
      }
    }
    gpu::store_floats(row + column, grad, a.wide, count);
  }
}

// One block: thread t adds x[t], x[t + 1024], ...; then the threads' sums, all in f64.
__global__ void __launch_bounds__(kThreads) sum_kernel(float* out, const float* x, int64_t n, double scale) {
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += static_cast<double>(x[i]);
  sum = gpu::block_sum(sum);
  if (threadIdx.x == 0) *out = static_cast<float>(sum * scale);
}

}  // namespace

void run(CudaContext& context, const CrossEntropy& k) {
  gpu::for_float(k.logits.dtype, CrossEntropy::kName, [&](auto t) {
    using T = decltype(t);
    const CrossEntropyArgs<T> args{.loss = k.loss.as<float>(),
                                   .logits = k.logits.as<T>(),
                                   .targets = k.targets.as<int32_t>(),
                                   .stride = k.logits.stride(0),
                                   .columns = static_cast<int>(k.logits.size(1)),
                                   .grad_scale = static_cast<float>(k.grad_scale),
                                   .write_grad = k.write_grad,
                                   .wide = gpu::aligned(k.logits)};
    launch_kernel(context, CrossEntropy::kName, static_cast<unsigned>(k.logits.size(0)), kThreads, 0,
                  cross_entropy_kernel<T>, args);
  });
}

void run(CudaContext& context, const Sum& k) {
  launch_kernel(context, Sum::kName, 1, kThreads, 0, sum_kernel, k.out.as<float>(), k.x.as<float>(), k.x.elements(),
                k.scale);
}

}  // namespace egmla

// A block owns a head, 64 outputs and up to eight sequences, so a weight is read once for eight. Plain: a warp an
// output, lanes over k. Transposed: a lane two neighbouring outputs, the warps share out k and are added in their
// order.
#include "kernels/cuda_utils.cuh"
#include "kernels/decode_heads.h"

namespace egmla {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kOutputs = 64;
constexpr int kSequences = 8;

template <class T>
struct Args {
  T* out;
  const T *x, *weight;
  int64_t out_batch, out_head, x_batch, x_head, weight_head, weight_row;
  int B, n, k;
};

// x of the block's sequences as floats in shared memory, [kSequences][k], zero beyond the batch.
template <class T>
__device__ inline void stage(const Args<T>& a, float* x, int h, int b0) {
  for (int i = static_cast<int>(threadIdx.x); i < kSequences * a.k; i += kThreads) {
    const int b = b0 + i / a.k;
    x[i] = b < a.B ? gpu::to_float(a.x[b * a.x_batch + h * a.x_head + i % a.k]) : 0.0f;
  }
  __syncthreads();
}

template <class T>
__global__ void __launch_bounds__(kThreads) plain_kernel(Args<T> a) {
  extern __shared__ float x[];
  const int h = static_cast<int>(blockIdx.y), b0 = static_cast<int>(blockIdx.z) * kSequences;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  gpu::wait_for_previous();
  stage(a, x, h, b0);
  for (int i = warp; i < kOutputs; i += kWarps) {
    const int j = static_cast<int>(blockIdx.x) * kOutputs + i;
    if (j >= a.n) return;
    const T* const row = a.weight + h * a.weight_head + j * a.weight_row;
    float sums[kSequences] = {};
    for (int c = lane; c < a.k; c += 32) {
      const float w = gpu::to_float(row[c]);
#pragma unroll
      for (int s = 0; s < kSequences; ++s) sums[s] += w * x[s * a.k + c];
    }
#pragma unroll
    for (int s = 0; s < kSequences; ++s) {
      const float sum = gpu::warp_sum(sums[s]);
      if (lane == s && b0 + s < a.B) a.out[(b0 + s) * a.out_batch + h * a.out_head + j] = T(sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) transposed_kernel(Args<T> a) {
  extern __shared__ float x[];
  float* const partials = x + kSequences * a.k;  // [kWarps][kSequences][kOutputs]
  const int h = static_cast<int>(blockIdx.y), b0 = static_cast<int>(blockIdx.z) * kSequences;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int j0 = static_cast<int>(blockIdx.x) * kOutputs + 2 * lane;
  gpu::wait_for_previous();
  stage(a, x, h, b0);
  float sums[2][kSequences] = {};
  const T* const weight = a.weight + h * a.weight_head + j0;
#pragma unroll 4
  for (int c = warp; c < a.k; c += kWarps) {
    const T* const row = weight + c * a.weight_row;
    const float w0 = j0 < a.n ? gpu::to_float(row[0]) : 0.0f, w1 = j0 + 1 < a.n ? gpu::to_float(row[1]) : 0.0f;
#pragma unroll
    for (int s = 0; s < kSequences; ++s) {
      sums[0][s] += w0 * x[s * a.k + c];
      sums[1][s] += w1 * x[s * a.k + c];
    }
  }
#pragma unroll
  for (int s = 0; s < kSequences; ++s) {
    float* const own = partials + (warp * kSequences + s) * kOutputs + 2 * lane;
    own[0] = sums[0][s];
    own[1] = sums[1][s];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSequences * kOutputs; i += kThreads) {
    const int s = i / kOutputs, j = static_cast<int>(blockIdx.x) * kOutputs + i % kOutputs;
    if (b0 + s >= a.B || j >= a.n) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += partials[w * kSequences * kOutputs + i];
    a.out[(b0 + s) * a.out_batch + h * a.out_head + j] = T(sum);
  }
}

}  // namespace

void run(CudaContext& context, const HeadLinear& k) {
  gpu::for_float(k.out.dtype, HeadLinear::kName, [&](auto t) {
    using T = decltype(t);
    const Args<T> a{.out = k.out.as<T>(),
                    .x = k.x.as<T>(),
                    .weight = k.weight.as<T>(),
                    .out_batch = k.out.stride(0),
                    .out_head = k.out.stride(1),
                    .x_batch = k.x.stride(0),
                    .x_head = k.x.stride(1),
                    .weight_head = k.weight.stride(0),
                    .weight_row = k.weight.stride(1),
                    .B = static_cast<int>(k.out.size(0)),
                    .n = static_cast<int>(k.out.size(2)),
                    .k = static_cast<int>(k.x.size(2))};
    const dim3 grid(static_cast<unsigned>(gpu::ceil_div(a.n, kOutputs)), static_cast<unsigned>(k.out.size(1)),
                    static_cast<unsigned>(gpu::ceil_div(a.B, kSequences)));
    const size_t staged = static_cast<size_t>(kSequences * a.k) * sizeof(float);
    const size_t partials = k.transpose ? static_cast<size_t>(kWarps * kSequences * kOutputs) * sizeof(float) : 0;
    launch_chained(context, HeadLinear::kName, grid, kThreads, staged + partials,
                   k.transpose ? transposed_kernel<T> : plain_kernel<T>, a);
  });
}

}  // namespace egmla

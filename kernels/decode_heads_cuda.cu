// A block owns a head, some outputs and up to eight sequences, so a weight is read once for eight. Plain: 16 outputs,
// a warp two of them, lanes over packets of k. Transposed: 64 outputs, a lane two neighbouring ones, the warps share
// out k and are added in their order.
#include "kernels/cuda_utils.cuh"
#include "kernels/decode_heads.h"

namespace egmla {
namespace {

using gpu::kPacket;
using gpu::Packet;

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kPlainOutputs = 16;
constexpr int kTransposedOutputs = 64;
constexpr int kMostSequences = 8;

template <class T>
struct Args {
  T* out;
  const T *x, *weight;
  int64_t out_batch, out_head, x_batch, x_head, weight_head, weight_row;
  int B, n, k;
  bool wide;

  __host__ __device__ int staged_stride() const { return (k + kPacket - 1) / kPacket * kPacket; }
};

// x of the block's sequences as floats in shared memory, [kSequences][staged_stride], zero beyond batch and width.
template <class T, int kSequences>
__device__ inline void stage(const Args<T>& a, float* x, int h, int b0) {
  const int stride = a.staged_stride();
#pragma unroll
  for (int s = 0; s < kSequences; ++s) {
    const T* const row = a.x + (b0 + s) * a.x_batch + h * a.x_head;
    for (int i = static_cast<int>(threadIdx.x); i < stride; i += kThreads)
      x[s * stride + i] = b0 + s < a.B && i < a.k ? gpu::to_float(row[i]) : 0.0f;
  }
  __syncthreads();
}

template <class T, int kSequences>
__global__ void __launch_bounds__(kThreads) plain_kernel(Args<T> a) {
  constexpr int kOwn = kPlainOutputs / kWarps;
  extern __shared__ float x[];
  const int h = static_cast<int>(blockIdx.y), b0 = static_cast<int>(blockIdx.z) * kSequences;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int j0 = static_cast<int>(blockIdx.x) * kPlainOutputs + warp * kOwn;
  const T* const weight = a.weight + h * a.weight_head + j0 * a.weight_row;
  const auto fetch = [&](int c, Packet<T>(&w)[kOwn]) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      w[i] = gpu::load(weight + i * a.weight_row + c, a.wide, j0 + i < a.n ? max(0, min(kPacket, a.k - c)) : 0);
  };
  Packet<T> w[kOwn];
  fetch(lane * kPacket, w);
  gpu::wait_for_previous();
  stage<T, kSequences>(a, x, h, b0);
  float sums[kOwn][kSequences] = {};
  for (int c = lane * kPacket; c < a.k; c += 32 * kPacket) {
#pragma unroll
    for (int s = 0; s < kSequences; ++s) {
      const float* const row = x + s * a.staged_stride() + c;
#pragma unroll
      for (int e = 0; e < kPacket; ++e) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) sums[i][s] += w[i][e] * row[e];
      }
    }
    fetch(c + 32 * kPacket, w);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int s = 0; s < kSequences; ++s) {
      const float sum = gpu::warp_sum(sums[i][s]);
      if (lane == s && b0 + s < a.B && j0 + i < a.n) a.out[(b0 + s) * a.out_batch + h * a.out_head + j0 + i] = T(sum);
    }
  }
}

template <class T, int kSequences>
__global__ void __launch_bounds__(kThreads) transposed_kernel(Args<T> a) {
  extern __shared__ float x[];
  const int stride = a.staged_stride();
  float* const partials = x + kSequences * stride;  // [kWarps][kSequences][kTransposedOutputs]
  const int h = static_cast<int>(blockIdx.y), b0 = static_cast<int>(blockIdx.z) * kSequences;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first = static_cast<int>(blockIdx.x) * kTransposedOutputs, j0 = first + 2 * lane;
  gpu::wait_for_previous();
  stage<T, kSequences>(a, x, h, b0);
  float sums[2][kSequences] = {};
  const T* const weight = a.weight + h * a.weight_head + j0;
#pragma unroll 8
  for (int c = warp; c < a.k; c += kWarps) {
    const T* const row = weight + c * a.weight_row;
    const float w0 = j0 < a.n ? gpu::to_float(row[0]) : 0.0f, w1 = j0 + 1 < a.n ? gpu::to_float(row[1]) : 0.0f;
#pragma unroll
    for (int s = 0; s < kSequences; ++s) {
      sums[0][s] += w0 * x[s * stride + c];
      sums[1][s] += w1 * x[s * stride + c];
    }
  }
#pragma unroll
  for (int s = 0; s < kSequences; ++s) {
    float* const own = partials + (warp * kSequences + s) * kTransposedOutputs + 2 * lane;
    own[0] = sums[0][s];
    own[1] = sums[1][s];
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kSequences * kTransposedOutputs; i += kThreads) {
    const int s = i / kTransposedOutputs, j = first + i % kTransposedOutputs;
    if (b0 + s >= a.B || j >= a.n) continue;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += partials[w * kSequences * kTransposedOutputs + i];
    a.out[(b0 + s) * a.out_batch + h * a.out_head + j] = T(sum);
  }
}

template <class T, int kSequences>
void start(CudaContext& context, const HeadLinear& k, const Args<T>& a) {
  const int outputs = k.transpose ? kTransposedOutputs : kPlainOutputs;
  const dim3 grid(static_cast<unsigned>(gpu::ceil_div(a.n, outputs)), static_cast<unsigned>(k.out.size(1)),
                  static_cast<unsigned>(gpu::ceil_div(a.B, kSequences)));
  const int partials = k.transpose ? kWarps * kSequences * kTransposedOutputs : 0;
  launch_chained(context, HeadLinear::kName, grid, kThreads,
                 static_cast<size_t>(kSequences * a.staged_stride() + partials) * sizeof(float),
                 k.transpose ? transposed_kernel<T, kSequences> : plain_kernel<T, kSequences>, a);
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
                    .k = static_cast<int>(k.x.size(2)),
                    .wide = gpu::aligned(k.weight)};
    a.B == 1 ? start<T, 1>(context, k, a) : start<T, kMostSequences>(context, k, a);
  });
}

}  // namespace egmla

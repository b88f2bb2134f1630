// Bytes: the weight once. bf16: a block owns 16 rows of the weight, its warps share out K and are added in their order.
// The weight stands on the left of mma.sync and the (at most eight) input rows on the right; as both sides may permute
// K alike, a lane's eight neighbouring elements of a row are one 16-byte load. First loads run ahead of the kernel
// before (launch_chained). Other types and layouts: a warp an output.
#include "kernels/attention_ptx.cuh"
#include "kernels/cuda_utils.cuh"
#include "kernels/decode_linear.h"

namespace egmla {
namespace {

using gpu::kPacket;
using gpu::Packet;

constexpr int kRows = static_cast<int>(kDecodeLinearRows);
constexpr int kMaxWarps = 16;
constexpr int kTileRows = 16;  // of the weight, in a block
constexpr int kStep = 32;      // elements of K in two mma
constexpr int kAhead = 4;      // steps whose weights are under way
constexpr int kPad = 32;       // elements between staged rows, so that loads of eight rows meet all banks

template <class T>
struct Args {
  T* out;
  T* sum;
  const T *x, *delta, *norm_weight, *norm_bias, *weight;
  const int32_t* ids;
  int64_t out_stride, sum_stride, x_stride, delta_stride, weight_stride;
  int M, N, K;
  float eps;
  bool swiglu, wide;

  explicit Args(const DecodeLinear& k)
      : out(k.out.as<T>()),
        sum(data<T>(k.sum)),
        x(k.x.as<T>()),
        delta(data<T>(k.delta)),
        norm_weight(data<T>(k.norm_weight)),
        norm_bias(data<T>(k.norm_bias)),
        weight(k.weight.as<T>()),
        ids(data<int32_t>(k.ids)),
        out_stride(k.out.stride(0)),
        sum_stride(k.sum.defined() ? k.sum.stride(0) : 0),
        x_stride(k.x.stride(0)),
        delta_stride(k.delta.defined() ? k.delta.stride(0) : 0),
        weight_stride(k.weight.stride(0)),
        M(static_cast<int>(k.out.size(0))),
        N(static_cast<int>(k.out.size(1))),
        K(static_cast<int>(k.x.size(1))),
        eps(static_cast<float>(k.eps)),
        swiglu(k.swiglu),
        wide(gpu::all_aligned(k.x, k.sum, k.delta, k.norm_weight, k.norm_bias, k.weight) && K % kPacket == 0) {}

  template <class U>
  static U* data(const View& view) {
    return view.defined() ? view.as<U>() : nullptr;
  }
  __host__ __device__ int staged_stride() const { return (K + kPacket - 1) / kPacket * kPacket + kPad; }
};

// One value for each row of the block's team, summed over the team's warps in their order.
__device__ inline float sum_of_team(float value, float* slots, int warp, int first, int warps) {
  value = gpu::warp_sum(value);
  if (threadIdx.x % 32 == 0) slots[warp] = value;
  __syncthreads();
  float sum = 0;
  for (int w = first; w < first + warps; ++w) sum += slots[w];
  __syncthreads();
  return sum;
}

// The input rows after sum and norm, as [M, staged_stride] in shared memory, zero beyond K up to the stride's padding.
template <class T>
__device__ void stage_rows(const Args<T>& a, T* rows, float* slots) {
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int per_row = max(1, warps / a.M), teams = warps / per_row, team = warp / per_row;
  const int thread = static_cast<int>(threadIdx.x) - team * per_row * 32, threads = per_row * 32;
  const int packets = (a.K + kPacket - 1) / kPacket;
  for (int round = 0; round < a.M; round += teams) {
    const int m = round + team;
    const bool own = team < teams && m < a.M;
    T* row = rows + (own ? m : 0) * a.staged_stride();
    float total = 0;
    for (int p = thread; own && p < packets; p += threads) {
      const int column = p * kPacket, count = min(kPacket, a.K - column);
      const int64_t source = a.ids ? a.ids[m] : m;
      const auto x = gpu::load(a.x + source * a.x_stride + column, a.wide, count);
      float values[kPacket];
#pragma unroll
      for (int i = 0; i < kPacket; ++i) values[i] = x[i];
      if (a.delta) {
        const auto delta = gpu::load(a.delta + m * a.delta_stride + column, a.wide, count);
#pragma unroll
        for (int i = 0; i < kPacket; ++i) values[i] += delta[i];
      }
      Packet<T> rounded;
      gpu::round_to(rounded, values);
      gpu::store(row + column, rounded, true, kPacket);
      if (a.sum && blockIdx.x == 0) gpu::store(a.sum + m * a.sum_stride + column, rounded, a.wide, count);
#pragma unroll
      for (int i = 0; i < kPacket; ++i) total += rounded[i];
    }
    if (!a.norm_weight) continue;
    float mean = 0;
    if (a.norm_bias) mean = sum_of_team(total, slots, warp, team * per_row, per_row) / static_cast<float>(a.K);
    float squares = 0;
    for (int p = thread; own && p < packets; p += threads) {
      const auto x = gpu::load(row + p * kPacket, true, kPacket);
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        const float d = p * kPacket + i < a.K ? x[i] - mean : 0.0f;
        squares += d * d;
      }
    }
    squares = sum_of_team(squares, slots, warp, team * per_row, per_row);
    const float rstd = rsqrtf(squares / static_cast<float>(a.K) + a.eps);
    for (int p = thread; own && p < packets; p += threads) {
      const int column = p * kPacket, count = min(kPacket, a.K - column);
      const auto x = gpu::load(row + column, true, kPacket);
      const auto weight = gpu::load(a.norm_weight + column, a.wide, count);
      float values[kPacket];
#pragma unroll
      for (int i = 0; i < kPacket; ++i) values[i] = (x[i] - mean) * rstd * weight[i];
      if (a.norm_bias) {
        const auto bias = gpu::load(a.norm_bias + column, a.wide, count);
#pragma unroll
        for (int i = 0; i < kPacket; ++i) values[i] += bias[i];
      }
      gpu::store_floats(row + column, values, true, kPacket);
    }
  }
}

__device__ inline float silu(float x) {
  return x * gpu::sigmoid(x);
}

// Row of the weight that stands at row r (0 to 15) of the block's tile; with SwiGLU eight of the gate, eight of up.
__device__ inline int weight_row(const Args<bf16>& a, int r) {
  const int tile = static_cast<int>(blockIdx.x);
  if (!a.swiglu) return tile * kTileRows + r;
  return (r < 8 ? 0 : a.N) + tile * 8 + r % 8;
}

__global__ void __launch_bounds__(kMaxWarps * 32) tensor_kernel(Args<bf16> a) {
  extern __shared__ __align__(128) unsigned char memory[];
  bf16* const rows = reinterpret_cast<bf16*>(memory);
  float* const slots = reinterpret_cast<float*>(rows + a.M * a.staged_stride());  // [warps][16][8]
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, row = lane / 4, column = lane % 4 * 8;
  const int steps = (a.K + kStep - 1) / kStep;
  const int low = weight_row(a, row), high = weight_row(a, row + 8);
  const bool low_inside = low < a.N, high_inside = a.swiglu ? low_inside : high < a.N;
  const bf16* const low_row = a.weight + low * a.weight_stride + column;
  const bf16* const high_row = a.weight + high * a.weight_stride + column;
  uint4 lows[kAhead], highs[kAhead];
  const auto fetch = [&](int step, uint4& x, uint4& y) {
    const bool inside = step < steps && step * kStep + column < a.K;
    x = inside && low_inside ? __ldcs(reinterpret_cast<const uint4*>(low_row + step * kStep)) : uint4{};
    y = inside && high_inside ? __ldcs(reinterpret_cast<const uint4*>(high_row + step * kStep)) : uint4{};
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) fetch(warp + i * warps, lows[i], highs[i]);
  gpu::wait_for_previous();
  stage_rows(a, rows, slots);
  __syncthreads();
  float sums[4] = {0, 0, 0, 0};
  const bf16* const input = rows + row * a.staged_stride() + column;
  for (int first = warp; first < steps; first += kAhead * warps) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int step = first + i * warps;
      const bool inside = row < a.M && step * kStep + column < a.K;
      const uint4 x = inside ? *reinterpret_cast<const uint4*>(input + step * kStep) : uint4{};
      const uint32_t left[4] = {lows[i].x, highs[i].x, lows[i].y, highs[i].y};
      const uint32_t right[4] = {lows[i].z, highs[i].z, lows[i].w, highs[i].w};
      flash::multiply_add(sums, left, x.x, x.y);
      flash::multiply_add(sums, right, x.z, x.w);
      fetch(step + kAhead * warps, lows[i], highs[i]);
    }
  }
  float* const own = slots + warp * kTileRows * kRows;
  const int m0 = lane % 4 * 2;
  own[row * kRows + m0] = sums[0];
  own[row * kRows + m0 + 1] = sums[1];
  own[(row + 8) * kRows + m0] = sums[2];
  own[(row + 8) * kRows + m0 + 1] = sums[3];
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x), m = thread / kTileRows, r = thread % kTileRows;
  if (m >= a.M || (a.swiglu && r >= 8)) return;
  const int n = a.swiglu ? static_cast<int>(blockIdx.x) * 8 + r : static_cast<int>(blockIdx.x) * kTileRows + r;
  if (n >= a.N) return;
  float y = 0, up = 0;
  for (int w = 0; w < warps; ++w) {
    y += slots[(w * kTileRows + r) * kRows + m];
    if (a.swiglu) up += slots[(w * kTileRows + r + 8) * kRows + m];
  }
  a.out[m * a.out_stride + n] = __float2bfloat16(a.swiglu ? silu(y) * up : y);
}

// A warp an output column.
template <class T>
__global__ void __launch_bounds__(kMaxWarps * 32) plain_kernel(Args<T> a) {
  extern __shared__ __align__(128) unsigned char memory[];
  T* const rows = reinterpret_cast<T*>(memory);
  float* const slots = reinterpret_cast<float*>(rows + a.M * a.staged_stride());
  gpu::wait_for_previous();
  stage_rows(a, rows, slots);
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int n = static_cast<int>(blockIdx.x) * warps + static_cast<int>(threadIdx.x) / 32;
  if (n >= a.N) return;
  const T* const weight = a.weight + n * a.weight_stride;
  const T* const up_weight = weight + (a.swiglu ? a.N * a.weight_stride : 0);
  for (int m = 0; m < a.M; ++m) {
    const T* const row = rows + m * a.staged_stride();
    float y = 0, up = 0;
    for (int column = lane; column < a.K; column += 32) {
      y += gpu::to_float(row[column]) * gpu::to_float(weight[column]);
      up += gpu::to_float(row[column]) * gpu::to_float(up_weight[column]);
    }
    y = gpu::warp_sum(y);
    up = gpu::warp_sum(up);
    if (lane == 0) a.out[m * a.out_stride + n] = T(a.swiglu ? silu(y) * up : y);
  }
}

template <class T>
size_t shared_bytes(const Args<T>& a, int64_t warps) {
  return static_cast<size_t>(a.M * a.staged_stride()) * sizeof(T) +
         static_cast<size_t>(warps * kTileRows * kRows) * sizeof(float);
}

}  // namespace

void run(CudaContext& context, const DecodeLinear& k) {
  check_decode_linear(k);
  check(k.out.size(0) <= kRows, "decode_linear: the CUDA back end takes up to {} rows, found {}", kRows, k.out.size(0));
  if (k.out.elements() == 0) return;
  gpu::for_float(k.out.dtype, DecodeLinear::kName, [&](auto t) {
    using T = decltype(t);
    const Args<T> a(k);
    if constexpr (std::is_same_v<T, bf16>) {
      if (a.wide) {
        // All blocks at once on the device, with about 16 warps a multiprocessor: enough loads under way.
        const int64_t tiles = gpu::ceil_div(k.out.size(1), k.swiglu ? kTileRows / 2 : kTileRows);
        const int64_t units = context.state().multiprocessors;
        const int64_t warps = tiles <= units ? 16 : tiles <= 2 * units ? 8 : 4;
        launch_chained(context, DecodeLinear::kName, static_cast<unsigned>(tiles), static_cast<unsigned>(32 * warps),
                       shared_bytes(a, warps), tensor_kernel, a);
        return;
      }
    }
    constexpr int64_t kWarps = 8;
    launch_chained(context, DecodeLinear::kName, static_cast<unsigned>(gpu::ceil_div(k.out.size(1), kWarps)),
                   static_cast<unsigned>(32 * kWarps), shared_bytes(a, kWarps), plain_kernel<T>, a);
  });
}

}  // namespace egmla

// One body for RMSNorm and LayerNorm: RMSNorm is LayerNorm without mean and bias. Bytes a row of C elements of size s:
// forward 2 C s, 4 C s with the residual; backward 3 C s, 4 C s with the residual's gradient.
// Backward, with xhat = (x - mean) rstd and d = weight * out_grad:  x_grad = rstd (d - [mean(d)] - xhat mean(d xhat)).
#include "kernels/row_team.cuh"

namespace egmla {
namespace {

using gpu::kPacket;
using gpu::kTeamPackets;
using gpu::kTeamThreads;
using gpu::Packet;

constexpr int64_t kForwardThreads = 256;

// Rows of a matrix in memory.
template <class T>
struct Rows {
  T* data = nullptr;
  int64_t stride = 0;
  Rows() = default;
  explicit Rows(const View& view) {
    if (!view.defined()) return;
    const View matrix = view.as_matrix();
    data = matrix.as<T>();
    stride = matrix.stride(0);
  }
  __device__ T* at(int64_t row, int column) const { return data + row * stride + column; }
};

template <class T>
struct ForwardArgs {
  Rows<T> out, x, residual, sum;
  const T* weight;
  const T* bias;
  float* mean;
  float* rstd;
  int64_t rows;
  int columns;
  float eps;
  bool wide;
};

__device__ inline gpu::PacketPlace place_of(int p, int columns) {
  const int column = (p * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x)) * kPacket;
  return {column, max(0, min(kPacket, columns - column))};
}

// The row x + residual, rounded to T as it is stored; zero where there is nothing.
template <class T>
__device__ inline void load_row(const ForwardArgs<T>& a, int64_t row, Packet<T> (&r)[kTeamPackets]) {
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const auto [column, count] = place_of(p, a.columns);
    r[p] = gpu::load(a.x.at(row, column), a.wide, row < a.rows ? count : 0);
  }
  if (!a.residual.data) return;
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const auto [column, count] = place_of(p, a.columns);
    if (row >= a.rows || count == 0) continue;
    const Packet<T> other = gpu::load(a.residual.at(row, column), a.wide, count);
    float sum[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) sum[i] = r[p][i] + other[i];
    gpu::round_to(r[p], sum);
    gpu::store(a.sum.at(row, column), r[p], a.wide, count);
  }
}

template <class T, bool kCenter>
__global__ void __launch_bounds__(kTeamThreads, 1) norm_forward_kernel(ForwardArgs<T> a) {
  __shared__ float scratch[2 * kTeamThreads / 32];
  int turn = 0;
  const int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  Packet<T> r[kTeamPackets];
  load_row(a, row, r);
  float mean[1] = {0}, square[1] = {0};
  if constexpr (kCenter) {
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
#pragma unroll
      for (int i = 0; i < kPacket; ++i) mean[0] += r[p][i];
    }
    gpu::team_sum(mean, scratch, turn);
    mean[0] /= static_cast<float>(a.columns);
  }
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const auto [column, count] = place_of(p, a.columns);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      const float d = i < count ? r[p][i] - mean[0] : 0.0f;
      square[0] += d * d;
    }
  }
  gpu::team_sum(square, scratch, turn);
  const float rstd = rsqrtf(square[0] / static_cast<float>(a.columns) + a.eps);
  if (row >= a.rows) return;
  if (threadIdx.x == 0) {
    a.rstd[row] = rstd;
    if constexpr (kCenter) a.mean[row] = mean[0];
  }
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const auto [column, count] = place_of(p, a.columns);
    if (count == 0) continue;
    const Packet<T> weight = gpu::load(a.weight + column, a.wide, count);
    Packet<T> bias;
    if constexpr (kCenter) bias = gpu::load(a.bias + column, a.wide, count);
    float out[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      out[i] = (r[p][i] - mean[0]) * rstd * weight[i];
      if constexpr (kCenter) out[i] += bias[i];
    }
    gpu::store_floats(a.out.at(row, column), out, a.wide, count);
  }
}

template <class T>
struct BackwardArgs {
  Rows<T> x_grad, out_grad, residual_grad, x;
  const T* weight;
  const float* mean;
  const float* rstd;
  float* partials;
  int64_t rows;
  int columns;
  bool wide;
};

// Block p walks over rows [N p / P, N (p + 1) / P), its teams taking turns, and sums the weight's gradient on the way.
template <class T, bool kCenter>
__global__ void __launch_bounds__(kTeamThreads, 1) norm_backward_kernel(BackwardArgs<T> a) {
  __shared__ float scratch[2 * 2 * kTeamThreads / 32];
  extern __shared__ float shared[];
  int turn = 0;
  const int64_t begin = a.rows * blockIdx.x / gridDim.x, end = a.rows * (blockIdx.x + 1) / gridDim.x;
  float weight_sums[kTeamPackets][kPacket] = {}, bias_sums[kCenter ? kTeamPackets : 1][kPacket] = {};
  for (int64_t first = begin; first < end; first += blockDim.y) {  // as often for every team, as racecheck wants
    const int64_t row = first + threadIdx.y;
    const bool inside = row < end;  // else nothing moves
    const float rstd = inside ? a.rstd[row] : 0.0f, mean = kCenter && inside ? a.mean[row] : 0.0f;
    Packet<T> x[kTeamPackets], dy[kTeamPackets], extra[kTeamPackets];
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const auto [column, count] = place_of(p, a.columns);
      x[p] = gpu::load(a.x.at(row, column), a.wide, inside ? count : 0);
      dy[p] = gpu::load(a.out_grad.at(row, column), a.wide, inside ? count : 0);
    }
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const auto [column, count] = place_of(p, a.columns);
      if (a.residual_grad.data) extra[p] = gpu::load(a.residual_grad.at(row, column), a.wide, inside ? count : 0);
    }
    float sums[kCenter ? 2 : 1] = {};  // of d xhat and of d
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const auto [column, count] = place_of(p, a.columns);
      const Packet<T> weight = gpu::load(a.weight + column, a.wide, count);
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        const float xhat = (x[p][i] - mean) * rstd, d = dy[p][i] * weight[i];
        sums[0] += d * xhat;
        weight_sums[p][i] += dy[p][i] * xhat;
        if constexpr (kCenter) {
          sums[1] += d;
          bias_sums[p][i] += dy[p][i];
        }
      }
    }
    gpu::team_sum(sums, scratch, turn);
    const float dx_mean = sums[0] / static_cast<float>(a.columns);
    float d_mean = 0;
    if constexpr (kCenter) d_mean = sums[1] / static_cast<float>(a.columns);
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const auto [column, count] = place_of(p, a.columns);
      if (!inside || count == 0) continue;
      const Packet<T> weight = gpu::load(a.weight + column, a.wide, count);
      float dx[kPacket];
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        dx[i] = rstd * (dy[p][i] * weight[i] - d_mean - (x[p][i] - mean) * rstd * dx_mean);
        if (a.residual_grad.data) dx[i] += extra[p][i];
      }
      gpu::store_floats(a.x_grad.at(row, column), dx, a.wide, count);
    }
  }
  gpu::PacketPlace places[kTeamPackets];
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) places[p] = place_of(p, a.columns);
  float* partials = a.partials + int64_t{blockIdx.x} * (kCenter ? 2 : 1) * a.columns;
  gpu::combine_teams(partials, a.columns, weight_sums, places, shared);
  if constexpr (kCenter) gpu::combine_teams(partials + a.columns, a.columns, bias_sums, places, shared);
}

// Where column c of [heads, width] stands.
struct GradTarget {
  float* data;
  int64_t head_stride;
  int width;
  __device__ float* at(int column) const { return data + column / width * head_stride + column % width; }
};

// Blocks of 32 columns by 8 sets; reads 4 kNormPartials bytes a column.
__global__ void sum_partials_kernel(GradTarget weight, GradTarget bias, const float* partials, int columns, int sums,
                                    bool accumulate) {
  constexpr int kSets = 8;
  __shared__ float shared[kSets][33];
  const int column = static_cast<int>(blockIdx.x * 32 + threadIdx.x), set = static_cast<int>(threadIdx.y);
  float sum = 0;
  if (column < columns * sums) {
#pragma unroll 4
    for (int64_t p = set; p < kNormPartials; p += kSets) sum += partials[p * columns * sums + column];
  }
  shared[set][threadIdx.x] = sum;
  __syncthreads();
  if (set != 0 || column >= columns * sums) return;
  float* target = column < columns ? weight.at(column) : bias.at(column - columns);
  float total = accumulate ? *target : 0.0f;
  for (int s = 0; s < kSets; ++s) total += shared[s][threadIdx.x];
  *target = total;
}

GradTarget grad_target(const View& view) {
  if (!view.defined()) return {nullptr, 0, 1};
  return {view.as<float>(), view.rank() > 1 ? view.stride(0) : 0, static_cast<int>(view.shape.back())};
}

template <bool kCenter, class Kernel>
void forward(CudaContext& context, const Kernel& k, const View& mean, const View& bias) {
  gpu::for_float(k.x.dtype, Kernel::kName, [&](auto t) {
    using T = decltype(t);
    const View x = k.x.as_matrix();
    const ForwardArgs<T> args{.out = Rows<T>(k.out),
                              .x = Rows<T>(x),
                              .residual = Rows<T>(k.residual),
                              .sum = Rows<T>(k.residual_out),
                              .weight = k.weight.template as<T>(),
                              .bias = kCenter ? bias.as<T>() : nullptr,
                              .mean = kCenter ? mean.as<float>() : nullptr,
                              .rstd = k.rstd.template as<float>(),
                              .rows = x.size(0),
                              .columns = static_cast<int>(x.size(1)),
                              .eps = static_cast<float>(k.eps),
                              .wide = gpu::all_aligned(k.out, k.x, k.residual, k.residual_out, k.weight, bias)};
    const dim3 block = gpu::team_block(Kernel::kName, gpu::ceil_div(x.size(1), kPacket), kForwardThreads);
    launch_kernel(context, Kernel::kName, static_cast<unsigned>(gpu::ceil_div(args.rows, block.y)), block, 0,
                  norm_forward_kernel<T, kCenter>, args);
  });
}

template <bool kCenter, class Kernel>
void backward(CudaContext& context, const Kernel& k, const View& mean, const View& bias_grad) {
  gpu::for_float(k.x.dtype, Kernel::kName, [&](auto t) {
    using T = decltype(t);
    const View x = k.x.as_matrix();
    const BackwardArgs<T> args{.x_grad = Rows<T>(k.x_grad),
                               .out_grad = Rows<T>(k.out_grad),
                               .residual_grad = Rows<T>(k.residual_grad),
                               .x = Rows<T>(x),
                               .weight = k.weight.template as<T>(),
                               .mean = kCenter ? mean.as<float>() : nullptr,
                               .rstd = k.rstd.template as<float>(),
                               .partials = k.partials.template as<float>(),
                               .rows = x.size(0),
                               .columns = static_cast<int>(x.size(1)),
                               .wide = gpu::all_aligned(k.x_grad, k.out_grad, k.residual_grad, k.x, k.weight)};
    const dim3 block = gpu::team_block(Kernel::kName, gpu::ceil_div(x.size(1), kPacket), kTeamThreads);
    launch_kernel(context, Kernel::kName, static_cast<unsigned>(kNormPartials), block,
                  gpu::combine_bytes(block, args.columns), norm_backward_kernel<T, kCenter>, args);
    gpu::sum_partials(context, Kernel::kName, k.partials, k.weight_grad, bias_grad, k.accumulate);
  });
}

}  // namespace

void gpu::sum_partials(CudaContext& context, const char* kernel, const View& partials, const View& weight_grad,
                       const View& bias_grad, bool accumulate) {
  const int columns = static_cast<int>(weight_grad.elements()), sums = bias_grad.defined() ? 2 : 1;
  launch_kernel(context, kernel, static_cast<unsigned>(ceil_div(int64_t{columns} * sums, 32)), dim3(32, 8), 0,
                sum_partials_kernel, grad_target(weight_grad), grad_target(bias_grad), partials.as<float>(), columns,
                sums, accumulate);
}

void run(CudaContext& context, const RmsNormForward& k) {
  forward<false>(context, k, View{}, View{});
}
void run(CudaContext& context, const RmsNormBackward& k) {
  backward<false>(context, k, View{}, View{});
}
void run(CudaContext& context, const LayerNormForward& k) {
  forward<true>(context, k, k.mean, k.bias);
}
void run(CudaContext& context, const LayerNormBackward& k) {
  backward<true>(context, k, k.mean, k.bias_grad);
}

}  // namespace egmla

// Forward, per token: y = u a, a = act(offset + g); LayerNorm(y) over the token (joint) or over each head.
// Backward: with yhat = (y - mean) rstd and d = weight out_grad,  dy = rstd (d - mean(d) - yhat mean(d yhat));
//           u_grad = dy a;  g_grad = dy u act'(offset + g).
// Bytes a token of C features of size s: forward 3 C s, backward 5 C s. Rows are owned by teams (kernels/row_team.cuh).
#include "kernels/gate.h"
#include "kernels/row_team.cuh"

namespace egmla {
namespace {

using gpu::kPacket;
using gpu::kTeamPackets;
using gpu::kTeamThreads;
using gpu::Packet;
using gpu::PacketPlace;

constexpr int64_t kForwardThreads = 256;

// [N, H, w], or [H, w] without the first axis.
template <class T>
struct Heads {
  T* data = nullptr;
  int64_t row_stride = 0, head_stride = 0;
  Heads() = default;
  explicit Heads(const View& view) {
    if (!view.defined()) return;
    data = view.as<T>();
    row_stride = view.rank() == 3 ? view.stride(0) : 0;
    head_stride = view.stride(-2 + view.rank());
  }
  __device__ T* at(int64_t n, int head, int feature) const {
    return data + n * row_stride + head * head_stride + feature;
  }
};

// The features that one norm covers: `heads` heads of a token, all (joint) or one (per head); blockIdx.y names the
// group.
struct Group {
  int64_t tokens = 0;
  int heads = 0, width = 0, packets_in_head = 0, groups = 0;
  float offset = 0;
  GateActivation activation = GateActivation::none;
  bool normed = false, wide = false;

  int packets() const { return heads * packets_in_head; }
  __device__ int first_head() const { return static_cast<int>(blockIdx.y) * heads; }
  __device__ float features() const { return static_cast<float>(heads * width); }
};

template <class Kernel>
Group make_group(const Kernel& k) {
  const int64_t H = k.u.size(1), w = k.u.size(2), groups = k.norm == GateNorm::per_head ? H : 1;
  return {.tokens = k.u.size(0),
          .heads = static_cast<int>(H / groups),
          .width = static_cast<int>(w),
          .packets_in_head = static_cast<int>(gpu::ceil_div(w, kPacket)),
          .groups = static_cast<int>(groups),
          .offset = static_cast<float>(k.offset),
          .activation = k.activation,
          .normed = k.norm != GateNorm::none};
}

// A thread's packet: head and feature in memory, column within the group.
struct Place {
  int head, feature, column, count;
};

__device__ inline Place place_of(const Group& group, int p) {
  const int packet = p * static_cast<int>(blockDim.x) + static_cast<int>(threadIdx.x);
  const int head = packet / group.packets_in_head, feature = packet % group.packets_in_head * kPacket;
  const int count = head < group.heads ? min(kPacket, group.width - feature) : 0;
  return {group.first_head() + head, feature, head * group.width + feature, count};
}

// act(offset + g) and its derivative.
template <class T>
__device__ inline void activate(const Group& group, const Packet<T>& g, float (&value)[kPacket],
                                float (&slope)[kPacket]) {
#pragma unroll
  for (int i = 0; i < kPacket; ++i) {
    value[i] = group.offset + g[i];
    slope[i] = 1.0f;
  }
  if (group.activation == GateActivation::none) return;
#pragma unroll
  for (int i = 0; i < kPacket; ++i) {
    const float x = value[i];
    if (group.activation == GateActivation::tanh) {
      value[i] = gpu::tanh_of(x);
      slope[i] = 1.0f - value[i] * value[i];
      continue;
    }
    const float s = gpu::sigmoid(x);
    const bool silu = group.activation == GateActivation::silu;
    value[i] = silu ? x * s : s;
    slope[i] = silu ? s * (1.0f + x * (1.0f - s)) : s * (1.0f - s);
  }
}

template <class T>
struct ForwardArgs {
  Group group;
  Heads<T> out, u, g, weight, bias;
  float* mean;
  float* rstd;
  float eps;
};

template <class T>
__global__ void __launch_bounds__(kTeamThreads) gate_forward_kernel(ForwardArgs<T> a) {
  __shared__ float scratch[2 * kTeamThreads / 32];
  int turn = 0;
  const Group& group = a.group;
  const int64_t n = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  float y[kTeamPackets][kPacket], mean[1] = {0}, square[1] = {0};
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const Place at = place_of(group, p);
    const int count = n < group.tokens ? at.count : 0;
    const Packet<T> u = gpu::load(a.u.at(n, at.head, at.feature), group.wide, count);
    const Packet<T> g = gpu::load(a.g.at(n, at.head, at.feature), group.wide, count);
    float gate[kPacket], slope[kPacket];
    activate(group, g, gate, slope);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      y[p][i] = u[i] * gate[i];  // zero beyond the row, where u is
      mean[0] += y[p][i];
    }
  }
  float rstd = 1.0f;
  if (group.normed) {
    gpu::team_sum(mean, scratch, turn);
    mean[0] /= group.features();
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const int count = place_of(group, p).count;
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        const float d = i < count ? y[p][i] - mean[0] : 0.0f;
        square[0] += d * d;
      }
    }
    gpu::team_sum(square, scratch, turn);
    rstd = rsqrtf(square[0] / group.features() + a.eps);
  }
  if (n >= group.tokens) return;
  if (group.normed && threadIdx.x == 0) {
    a.mean[n * group.groups + blockIdx.y] = mean[0];
    a.rstd[n * group.groups + blockIdx.y] = rstd;
  }
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const Place at = place_of(group, p);
    if (at.count == 0) continue;
    if (group.normed) {
      const Packet<T> weight = gpu::load(a.weight.at(0, at.head, at.feature), group.wide, at.count);
      const Packet<T> bias = gpu::load(a.bias.at(0, at.head, at.feature), group.wide, at.count);
#pragma unroll
      for (int i = 0; i < kPacket; ++i) y[p][i] = (y[p][i] - mean[0]) * rstd * weight[i] + bias[i];
    }
    gpu::store_floats(a.out.at(n, at.head, at.feature), y[p], group.wide, at.count);
  }
}

template <class T>
struct BackwardArgs {
  Group group;
  Heads<T> u_grad, g_grad, out_grad, u, g, weight;
  const float* mean;
  const float* rstd;
  float* partials;  // [kNormPartials, 2, H w]
};

// A token's features as one thread holds them.
template <class T>
struct TokenPackets {
  Packet<T> u[kTeamPackets], g[kTeamPackets], dout[kTeamPackets];
};

// Sums over the team d yhat and d, and adds this token's share to the sums of the weight's and bias's gradients.
template <class T>
__device__ inline void sum_token(const BackwardArgs<T>& a, const TokenPackets<T>& token, float mean, float rstd,
                                 float (&weight_sums)[kTeamPackets][kPacket], float (&bias_sums)[kTeamPackets][kPacket],
                                 float (&sums)[2]) {
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const Place at = place_of(a.group, p);
    const Packet<T> weight = gpu::load(a.weight.at(0, at.head, at.feature), a.group.wide, at.count);
    float gate[kPacket], slope[kPacket];
    activate(a.group, token.g[p], gate, slope);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      const float dout = token.dout[p][i], yhat = (token.u[p][i] * gate[i] - mean) * rstd, d = dout * weight[i];
      sums[0] += d * yhat;
      sums[1] += d;
      weight_sums[p][i] += dout * yhat;
      bias_sums[p][i] += dout;
    }
  }
}

// Block (p, group) walks over tokens [N p / P, N (p + 1) / P), its teams taking turns.
template <class T>
__global__ void __launch_bounds__(kTeamThreads, 1) gate_backward_kernel(BackwardArgs<T> a) {
  __shared__ float scratch[2 * 2 * kTeamThreads / 32];
  extern __shared__ float shared[];
  int turn = 0;
  const Group& group = a.group;
  const int64_t begin = group.tokens * blockIdx.x / gridDim.x, end = group.tokens * (blockIdx.x + 1) / gridDim.x;
  float weight_sums[kTeamPackets][kPacket] = {}, bias_sums[kTeamPackets][kPacket] = {};
  for (int64_t first = begin; first < end; first += blockDim.y) {  // as often for every team, as racecheck wants
    const int64_t n = first + threadIdx.y;
    const bool inside = n < end;  // else nothing moves
    TokenPackets<T> token;
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const Place at = place_of(group, p);
      const int count = inside ? at.count : 0;
      token.u[p] = gpu::load(a.u.at(n, at.head, at.feature), group.wide, count);
      token.g[p] = gpu::load(a.g.at(n, at.head, at.feature), group.wide, count);
      token.dout[p] = gpu::load(a.out_grad.at(n, at.head, at.feature), group.wide, count);
    }
    float mean = 0.0f, rstd = 1.0f, sums[2] = {0, 0};
    if (group.normed) {
      mean = inside ? a.mean[n * group.groups + blockIdx.y] : 0.0f;
      rstd = inside ? a.rstd[n * group.groups + blockIdx.y] : 0.0f;
      sum_token(a, token, mean, rstd, weight_sums, bias_sums, sums);
      gpu::team_sum(sums, scratch, turn);
    }
    const float dy_mean = sums[0] / group.features(), d_mean = sums[1] / group.features();
#pragma unroll
    for (int p = 0; p < kTeamPackets; ++p) {
      const Place at = place_of(group, p);
      if (!inside || at.count == 0) continue;
      Packet<T> weight{};
      if (group.normed) weight = gpu::load(a.weight.at(0, at.head, at.feature), group.wide, at.count);
      float gate[kPacket], slope[kPacket];
      activate(group, token.g[p], gate, slope);
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        const float u = token.u[p][i];
        float dy = token.dout[p][i];
        if (group.normed) dy = rstd * (dy * weight[i] - d_mean - (u * gate[i] - mean) * rstd * dy_mean);
        gate[i] *= dy;
        slope[i] *= dy * u;
      }
      gpu::store_floats(a.u_grad.at(n, at.head, at.feature), gate, group.wide, at.count);
      gpu::store_floats(a.g_grad.at(n, at.head, at.feature), slope, group.wide, at.count);
    }
  }
  if (!group.normed) return;
  PacketPlace places[kTeamPackets];
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
    const Place at = place_of(group, p);
    places[p] = {at.column, at.count};
  }
  const int columns = group.heads * group.width;
  float* partials = a.partials + (int64_t{blockIdx.x} * 2 * group.groups + blockIdx.y) * columns;
  gpu::combine_teams(partials, columns, weight_sums, places, shared);
  gpu::combine_teams(partials + group.groups * columns, columns, bias_sums, places, shared);
}

}  // namespace

void run(CudaContext& context, const GateForward& k) {
  gpu::for_float(k.u.dtype, GateForward::kName, [&](auto t) {
    using T = decltype(t);
    Group group = make_group(k);
    group.wide = gpu::all_aligned(k.out, k.u, k.g, k.weight, k.bias);
    const ForwardArgs<T> args{.group = group,
                              .out = Heads<T>(k.out),
                              .u = Heads<T>(k.u),
                              .g = Heads<T>(k.g),
                              .weight = Heads<T>(k.weight),
                              .bias = Heads<T>(k.bias),
                              .mean = group.normed ? k.mean.as<float>() : nullptr,
                              .rstd = group.normed ? k.rstd.as<float>() : nullptr,
                              .eps = static_cast<float>(k.eps)};
    const dim3 block = gpu::team_block(GateForward::kName, group.packets(), kForwardThreads);
    const dim3 grid(static_cast<unsigned>(gpu::ceil_div(group.tokens, block.y)), static_cast<unsigned>(group.groups));
    launch_kernel(context, GateForward::kName, grid, block, 0, gate_forward_kernel<T>, args);
  });
}

void run(CudaContext& context, const GateBackward& k) {
  gpu::for_float(k.u.dtype, GateBackward::kName, [&](auto t) {
    using T = decltype(t);
    Group group = make_group(k);
    group.wide = gpu::all_aligned(k.u_grad, k.g_grad, k.out_grad, k.u, k.g, k.weight);
    const BackwardArgs<T> args{.group = group,
                               .u_grad = Heads<T>(k.u_grad),
                               .g_grad = Heads<T>(k.g_grad),
                               .out_grad = Heads<T>(k.out_grad),
                               .u = Heads<T>(k.u),
                               .g = Heads<T>(k.g),
                               .weight = Heads<T>(k.weight),
                               .mean = group.normed ? k.mean.as<float>() : nullptr,
                               .rstd = group.normed ? k.rstd.as<float>() : nullptr,
                               .partials = group.normed ? k.partials.as<float>() : nullptr};
    const dim3 block = gpu::team_block(GateBackward::kName, group.packets(), kTeamThreads);
    const dim3 grid(static_cast<unsigned>(kNormPartials), static_cast<unsigned>(group.groups));
    launch_kernel(context, GateBackward::kName, grid, block, gpu::combine_bytes(block, group.heads * group.width),
                  gate_backward_kernel<T>, args);
    if (group.normed)
      gpu::sum_partials(context, GateBackward::kName, k.partials, k.weight_grad, k.bias_grad, k.accumulate);
  });
}

}  // namespace egmla

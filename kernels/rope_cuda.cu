// A thread turns one packet of pairs. Bytes an element of size s: 2 s; the tables stay in cache.
#include "kernels/cuda_utils.cuh"
#include "kernels/rope.h"

namespace egmla {
namespace {

using gpu::kPacket;

constexpr int kThreads = 256;

template <class T>
struct RopeArgs {
  T* x;
  const float* cos;
  const float* sin;
  const int32_t* positions;  // or null
  int64_t batch_stride, token_stride, head_stride;
  uint32_t tokens, heads, packets;  // in a sequence, a token, a head
  uint32_t items;
  int half;
  float sign;
  bool wide;
};

// (first, second) of pair `pair` turned in place.
__device__ inline void turn(float& first, float& second, const float* cos, const float* sin, int pair, float sign) {
  const float c = cos[pair], s = sign * sin[pair], x = first;
  first = x * c - second * s;
  second = second * c + x * s;
}

// Interleaved: a packet holds kPacket / 2 pairs. Otherwise it holds the first elements of kPacket pairs, and a second
// packet half a head later their second elements.
template <class T, bool kInterleave>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs<T> a) {
  const uint32_t item = blockIdx.x * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const uint32_t packet = item % a.packets, row = item / a.packets, head = row % a.heads, n = row / a.heads;
  const uint32_t b = n / a.tokens, t = n % a.tokens;
  const int64_t position = a.positions ? a.positions[n] : t;
  const float* cos = a.cos + position * a.half;
  const float* sin = a.sin + position * a.half;
  const int column = static_cast<int>(packet) * kPacket;
  T* x = a.x + b * a.batch_stride + t * a.token_stride + head * a.head_stride + column;
  if constexpr (kInterleave) {
    const int count = min(kPacket, 2 * a.half - column);
    const auto in = gpu::load(x, a.wide, count);
    float out[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; i += 2) {
      out[i] = in[i];
      out[i + 1] = in[i + 1];
      if (i < count) turn(out[i], out[i + 1], cos, sin, (column + i) / 2, a.sign);
    }
    gpu::store_floats(x, out, a.wide, count);
  } else {
    const int count = min(kPacket, a.half - column);
    const auto first = gpu::load(x, a.wide, count), second = gpu::load(x + a.half, a.wide, count);
    float low[kPacket], high[kPacket];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      low[i] = first[i];
      high[i] = second[i];
      if (i < count) turn(low[i], high[i], cos, sin, column + i, a.sign);
    }
    gpu::store_floats(x, low, a.wide, count);
    gpu::store_floats(x + a.half, high, a.wide, count);
  }
}

}  // namespace

void run(CudaContext& context, const Rope& k) {
  gpu::for_float(k.x.dtype, Rope::kName, [&](auto t) {
    using T = decltype(t);
    const int64_t half = k.x.size(3) / 2, packets = gpu::ceil_div(k.interleave ? 2 * half : half, kPacket);
    const int64_t items = k.x.size(0) * k.x.size(1) * k.x.size(2) * packets;
    check(items < int64_t{1} << 31, "rope: {} is too large", k.x.shape.text());
    const bool halves_aligned = k.interleave || static_cast<size_t>(half) * sizeof(T) % 16 == 0;
    const RopeArgs<T> args{.x = k.x.as<T>(),
                           .cos = k.cos.as<float>(),
                           .sin = k.sin.as<float>(),
                           .positions = k.positions.defined() ? k.positions.as<int32_t>() : nullptr,
                           .batch_stride = k.x.stride(0),
                           .token_stride = k.x.stride(1),
                           .head_stride = k.x.stride(2),
                           .tokens = static_cast<uint32_t>(k.x.size(1)),
                           .heads = static_cast<uint32_t>(k.x.size(2)),
                           .packets = static_cast<uint32_t>(packets),
                           .items = static_cast<uint32_t>(items),
                           .half = static_cast<int>(half),
                           .sign = k.inverse ? -1.0f : 1.0f,
                           .wide = gpu::aligned(k.x) && halves_aligned};
    launch_kernel(context, Rope::kName, static_cast<unsigned>(gpu::ceil_div(items, kThreads)), kThreads, 0,
                  k.interleave ? rope_kernel<T, true> : rope_kernel<T, false>, args);
  });
}

}  // namespace egmla

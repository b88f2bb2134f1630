// One kernel serves every element-by-element operation: a thread moves one packet of each view. Bytes an element of
// size s: fill s; add 3 s; convert both sizes; SwiGLU 3 s forward and 5 s backward, 6 s with its result; GELU 2 s and 3
// s.
#include "core/bf16.h"
#include "kernels/elementwise.h"
#include "kernels/swiglu.cuh"
#include "kernels/walk.cuh"

namespace egmla {
namespace {

using gpu::kPacket;
using gpu::kWalkThreads;
using gpu::SwigluBackwardOp;
using gpu::SwigluOp;
using gpu::Walk;

constexpr float kGeluScale = 0.7978845608028654f;  // sqrt(2 / pi)
constexpr float kGeluCubic = 0.044715f;

// Each operation maps kIn inputs to kOut outputs at one element.
struct AddOp {
  static constexpr int kIn = 2, kOut = 1;
  __device__ void operator()(const float (&in)[kIn], float (&out)[kOut]) const { out[0] = in[0] + in[1]; }
};

__device__ inline float gelu_tanh(float x) {
  return gpu::tanh_of(kGeluScale * (x + kGeluCubic * x * x * x));
}

struct GeluOp {
  static constexpr int kIn = 1, kOut = 1;
  __device__ void operator()(const float (&in)[kIn], float (&out)[kOut]) const {
    out[0] = 0.5f * in[0] * (1.0f + gelu_tanh(in[0]));
  }
};

// In: out_grad, x.
struct GeluBackwardOp {
  static constexpr int kIn = 2, kOut = 1;
  __device__ void operator()(const float (&in)[kIn], float (&out)[kOut]) const {
    const float x = in[1], h = gelu_tanh(x), slope = kGeluScale * (1.0f + 3.0f * kGeluCubic * x * x);
    out[0] = in[0] * 0.5f * (1.0f + h + x * (1.0f - h * h) * slope);
  }
};

struct CopyOp {
  static constexpr int kIn = 1, kOut = 1;
  __device__ void operator()(const float (&in)[kIn], float (&out)[kOut]) const { out[0] = in[0]; }
};

template <class TOut, class TIn, class Op>
struct MapArgs {
  Walk<Op::kOut + Op::kIn> walk;  // outputs first
  TOut* out[Op::kOut];
  const TIn* in[Op::kIn];
};

// Everything is read before anything is written, so outputs may be inputs.
template <class TOut, class TIn, class Op>
__global__ void __launch_bounds__(kWalkThreads) map_kernel(MapArgs<TOut, TIn, Op> a) {
  const uint32_t item = blockIdx.x * kWalkThreads + threadIdx.x;
  if (item >= a.walk.items) return;
  int64_t offsets[Op::kOut + Op::kIn];
  const int count = a.walk.at(item, offsets);
  gpu::Packet<TIn> in[Op::kIn];
#pragma unroll
  for (int v = 0; v < Op::kIn; ++v) in[v] = gpu::load(a.in[v] + offsets[Op::kOut + v], a.walk.wide, count);
  float out[Op::kOut][kPacket];
#pragma unroll
  for (int i = 0; i < kPacket; ++i) {
    float x[Op::kIn], y[Op::kOut];
#pragma unroll
    for (int v = 0; v < Op::kIn; ++v) x[v] = in[v][i];
    Op{}(x, y);
#pragma unroll
    for (int v = 0; v < Op::kOut; ++v) out[v][i] = y[v];
  }
#pragma unroll
  for (int v = 0; v < Op::kOut; ++v) gpu::store_floats(a.out[v] + offsets[v], out[v], a.walk.wide, count);
}

template <class Op, class TOut, class TIn>
void map(CudaContext& context, const char* name, const std::array<View, Op::kOut + Op::kIn>& views) {
  MapArgs<TOut, TIn, Op> args;
  args.walk = gpu::make_walk<Op::kOut + Op::kIn>(name, views);
  for (size_t v = 0; v < Op::kOut; ++v) args.out[v] = views[v].template as<TOut>();
  for (size_t v = 0; v < Op::kIn; ++v) args.in[v] = views[Op::kOut + v].template as<TIn>();
  launch_kernel(context, name, args.walk.blocks(), kWalkThreads, 0, map_kernel<TOut, TIn, Op>, args);
}

// Outputs, then inputs, all of one type.
template <class Op>
void map(CudaContext& context, const char* name, const std::array<View, Op::kOut + Op::kIn>& views) {
  gpu::for_float(views[0].dtype, name, [&](auto t) { map<Op, decltype(t), decltype(t)>(context, name, views); });
}

// [N, 2F] as its halves.
View first_half(const View& view) {
  return view.columns(0, view.shape.back() / 2);
}
View second_half(const View& view) {
  return view.columns(view.shape.back() / 2, view.shape.back() / 2);
}

template <class Word>
__global__ void __launch_bounds__(kWalkThreads) fill_kernel(Walk<1> walk, Word* out, Word value) {
  const uint32_t item = blockIdx.x * kWalkThreads + threadIdx.x;
  if (item >= walk.items) return;
  int64_t offset[1];
  const int count = walk.at(item, offset);
  gpu::Packet<Word> packet;
#pragma unroll
  for (int i = 0; i < kPacket; ++i) packet.values[i] = value;
  gpu::store(out + offset[0], packet, walk.wide, count);
}

template <class Word>
void fill(CudaContext& context, const View& out, Word value) {
  const Walk<1> walk = gpu::make_walk<1>(Fill::kName, {out});
  launch_kernel(context, Fill::kName, walk.blocks(), kWalkThreads, 0, fill_kernel<Word>, walk,
                static_cast<Word*>(out.data), value);
}

}  // namespace

void run(CudaContext& context, const Fill& k) {
  const float value = static_cast<float>(k.value);
  switch (k.out.dtype) {
    case DType::bf16:
      return fill<uint16_t>(context, k.out, bf16_from_float(value));
    case DType::f32:
      return fill<float>(context, k.out, value);
    case DType::i32:
      return fill<int32_t>(context, k.out, static_cast<int32_t>(k.value));
    default:
      fail("fill: the CUDA back end holds f32, bf16 or i32, found {}", name_of(k.out.dtype));
  }
}

void run(CudaContext& context, const Add& k) {
  map<AddOp>(context, Add::kName, {k.out, k.a, k.b});
}

void run(CudaContext& context, const Convert& k) {
  gpu::for_float(k.out.dtype, Convert::kName, [&](auto t) {
    gpu::for_float(k.x.dtype, Convert::kName, [&](auto s) {
      map<CopyOp, decltype(t), decltype(s)>(context, Convert::kName, {k.out, k.x});
    });
  });
}

void run(CudaContext& context, const SwigluForward& k) {
  const View in = k.gate_up.as_matrix();
  map<SwigluOp>(context, SwigluForward::kName, {k.out.as_matrix(), first_half(in), second_half(in)});
}

void run(CudaContext& context, const SwigluBackward& k) {
  const View grad = k.gate_up_grad.as_matrix(), dy = k.out_grad.as_matrix(), in = k.gate_up.as_matrix();
  const View gate_grad = first_half(grad), up_grad = second_half(grad), gate = first_half(in), up = second_half(in);
  if (!k.out.defined())
    return map<SwigluBackwardOp<false>>(context, SwigluBackward::kName, {gate_grad, up_grad, dy, gate, up});
  map<SwigluBackwardOp<true>>(context, SwigluBackward::kName, {gate_grad, up_grad, k.out.as_matrix(), dy, gate, up});
}

void run(CudaContext& context, const GeluForward& k) {
  map<GeluOp>(context, GeluForward::kName, {k.out, k.x});
}

void run(CudaContext& context, const GeluBackward& k) {
  map<GeluBackwardOp>(context, GeluBackward::kName, {k.x_grad, k.out_grad, k.x});
}

}  // namespace egmla

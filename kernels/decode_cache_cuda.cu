// Small kernels of a decoding step; each begins before the one in front of it has ended (launch_chained).
#include "kernels/cuda_utils.cuh"
#include "kernels/decode_cache.h"

namespace egmla {
namespace {

constexpr int kThreads = 256;
constexpr unsigned kAppendBlocks = 4;  // for a sequence

__global__ void __launch_bounds__(kThreads)
    record_kernel(int32_t* ids, int64_t stride, const int32_t* tokens, const int32_t* positions, int B) {
  const int b = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (b < B) ids[b * stride + positions[b]] = tokens[b];
}

template <class T>
struct AppendArgs {
  T *cache, *q_out;
  const T *q, *rows, *norm_weight;
  const float *cos, *sin;
  const int32_t* positions;
  int64_t cache_batch, cache_row, out_batch, out_head, q_batch, q_head, rows_stride;
  int width, heads, half, normed, key_begin, key_heads;
  float eps;
  bool interleave;
};

template <class T>
__global__ void __launch_bounds__(kThreads) append_kernel(AppendArgs<T> a) {
  const int b = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  gpu::wait_for_previous();
  const int64_t position = a.positions[b];
  const T* const source = a.rows + b * a.rows_stride;
  T* const row = a.cache + b * a.cache_batch + position * a.cache_row;
  if (a.normed > 0 && blockIdx.y == 0) {
    float squares = 0;
    for (int i = thread; i < a.normed; i += kThreads) {
      const float x = gpu::to_float(source[i]);
      squares += x * x;
    }
    const float rstd = rsqrtf(gpu::block_sum(squares) / static_cast<float>(a.normed) + a.eps);
    for (int i = thread; i < a.normed; i += kThreads)
      row[i] = T(gpu::to_float(source[i]) * rstd * gpu::to_float(a.norm_weight[i]));
  }
  const int first = static_cast<int>(blockIdx.y) * kThreads + thread, step = static_cast<int>(gridDim.y) * kThreads;
  const int key_end = a.key_begin + a.key_heads * 2 * a.half;
  for (int i = a.normed + first; i < a.width; i += step) {
    if (i < a.key_begin || i >= key_end) row[i] = source[i];
  }
  const float* const cos = a.cos + position * a.half;
  const float* const sin = a.sin + position * a.half;
  for (int i = first; i < (a.heads + a.key_heads) * a.half; i += step) {
    const int head = i / a.half, pair = i % a.half, key = head - a.heads;
    const T* const from = key < 0 ? a.q + b * a.q_batch + head * a.q_head : source + a.key_begin + key * 2 * a.half;
    T* const to = key < 0 ? a.q_out + b * a.out_batch + head * a.out_head : row + a.key_begin + key * 2 * a.half;
    const int low = a.interleave ? 2 * pair : pair, high = a.interleave ? 2 * pair + 1 : pair + a.half;
    const float x = gpu::to_float(from[low]), y = gpu::to_float(from[high]);
    to[low] = T(x * cos[pair] - y * sin[pair]);
    to[high] = T(x * sin[pair] + y * cos[pair]);
  }
}

struct Best {
  float value;
  int index;
};

// The larger value; of equal ones the smaller index, so that the order of comparisons does not matter.
__device__ inline Best better(Best a, Best b) {
  return b.value > a.value || (b.value == a.value && b.index < a.index) ? b : a;
}

constexpr int kGreedyThreads = 1024;

template <class T>
__global__ void __launch_bounds__(kGreedyThreads)
    greedy_kernel(int32_t* tokens, int32_t* positions, const T* logits, int64_t stride, int V, int last, bool wide) {
  __shared__ Best warps[kGreedyThreads / 32];
  const int b = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  gpu::wait_for_previous();
  const T* const row = logits + b * stride;
  Best best{-INFINITY, V};
  for (int first = thread * gpu::kPacket; first < V; first += kGreedyThreads * gpu::kPacket) {
    const int count = min(gpu::kPacket, V - first);
    const auto x = gpu::load(row + first, wide, count);
    for (int i = 0; i < count; ++i) best = better(best, {x[i], first + i});
  }
  for (int lane = 16; lane > 0; lane /= 2)
    best =
        better(best, {__shfl_xor_sync(0xffffffffu, best.value, lane), __shfl_xor_sync(0xffffffffu, best.index, lane)});
  if (thread % 32 == 0) warps[thread / 32] = best;
  __syncthreads();
  if (thread > 0) return;
  for (int w = 1; w < kGreedyThreads / 32; ++w) best = better(best, warps[w]);
  tokens[b] = min(best.index, V - 1);
  positions[b] = min(positions[b] + 1, last);
}

}  // namespace

// The first kernel of a step: it stands behind copies from the host, so it is launched plainly.
void run(CudaContext& context, const RecordToken& k) {
  const int B = static_cast<int>(k.tokens.size(0));
  launch_kernel(context, RecordToken::kName, static_cast<unsigned>(gpu::ceil_div(B, kThreads)), kThreads, 0,
                record_kernel, k.ids.as<int32_t>(), k.ids.stride(0),
                static_cast<const int32_t*>(k.tokens.as<int32_t>()),
                static_cast<const int32_t*>(k.positions.as<int32_t>()), B);
}

void run(CudaContext& context, const DecodeAppend& k) {
  gpu::for_float(k.rows.dtype, DecodeAppend::kName, [&](auto t) {
    using T = decltype(t);
    const AppendArgs<T> a{.cache = k.cache.as<T>(),
                          .q_out = k.q_out.as<T>(),
                          .q = k.q.as<T>(),
                          .rows = k.rows.as<T>(),
                          .norm_weight = k.norm_weight.defined() ? k.norm_weight.as<T>() : nullptr,
                          .cos = k.cos.as<float>(),
                          .sin = k.sin.as<float>(),
                          .positions = k.positions.as<int32_t>(),
                          .cache_batch = k.cache.stride(0),
                          .cache_row = k.cache.stride(1),
                          .out_batch = k.q_out.stride(0),
                          .out_head = k.q_out.stride(1),
                          .q_batch = k.q.stride(0),
                          .q_head = k.q.stride(1),
                          .rows_stride = k.rows.stride(0),
                          .width = static_cast<int>(k.rows.size(1)),
                          .heads = static_cast<int>(k.q.size(1)),
                          .half = static_cast<int>(k.q.size(2) / 2),
                          .normed = k.norm_weight.defined() ? static_cast<int>(k.norm_weight.size(0)) : 0,
                          .key_begin = static_cast<int>(k.key_begin),
                          .key_heads = static_cast<int>(k.key_heads),
                          .eps = static_cast<float>(k.eps),
                          .interleave = k.interleave};
    launch_chained(context, DecodeAppend::kName, dim3(static_cast<unsigned>(k.rows.size(0)), kAppendBlocks), kThreads,
                   0, append_kernel<T>, a);
  });
}

void run(CudaContext& context, const GreedyStep& k) {
  gpu::for_float(k.logits.dtype, GreedyStep::kName, [&](auto t) {
    using T = decltype(t);
    launch_chained(context, GreedyStep::kName, static_cast<unsigned>(k.logits.size(0)), kGreedyThreads, 0,
                   greedy_kernel<T>, k.tokens.as<int32_t>(), k.positions.as<int32_t>(),
                   static_cast<const T*>(k.logits.as<T>()), k.logits.stride(0), static_cast<int>(k.logits.size(1)),
                   static_cast<int>(k.capacity) - 1, gpu::aligned(k.logits));
  });
}

}  // namespace egmla

// Forward moves 2 s bytes an element of size s. Backward moves s bytes an element of out_grad and 8 of each row of the
// table that is met (4 without accumulate, after 4 an element of the whole table for clearing it).
// Ids are as unequal as words are: a warp sums the rows of a rare id, a whole block those of a frequent one, its warps
// taking batches of rows in turn; their sums are added in the order of the warps.
#include "kernels/cuda_utils.cuh"
#include "kernels/embedding.h"

namespace egmla {
namespace {

using gpu::kPacket;

constexpr int kThreads = 256;
constexpr int kWarps = 16;              // of a backward block, each first an id of its own
constexpr int kBatch = 8;               // rows whose loads are in flight together
constexpr int kFrequent = 64;           // rows from which a block shares an id
constexpr int kColumns = 32 * kPacket;  // of a block

template <class T>
struct ForwardArgs {
  T* out;
  const T* table;
  const int32_t* ids;
  int64_t out_stride, table_stride;
  uint32_t packets, items;
  int columns;
  bool wide;
};

template <class T>
__global__ void __launch_bounds__(kThreads) embedding_kernel(ForwardArgs<T> a) {
  const uint32_t item = blockIdx.x * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const uint32_t n = item / a.packets, column = item % a.packets * kPacket;
  const int count = min(kPacket, a.columns - static_cast<int>(column));
  const auto packet = gpu::load(a.table + a.ids[n] * a.table_stride + column, a.wide, count);
  gpu::store(a.out + n * a.out_stride + column, packet, a.wide, count);
}

template <class T>
struct BackwardArgs {
  float* table_grad;
  const T* out_grad;
  const int32_t* ids;
  const int32_t* order;
  const int32_t* segments;
  int64_t out_stride, table_stride;
  int unique, columns;
  bool accumulate, wide, wide_table;
};

// sum += the out_grad rows of order[first], order[first + step kBatch], ... in batches of kBatch neighbours, up to
// `end`.
template <class T>
__device__ inline void sum_rows(const BackwardArgs<T>& a, int column, int count, int first, int end, int step,
                                float (&sum)[kPacket]) {
  for (int begin = first; begin < end; begin += step * kBatch) {
    gpu::Packet<T> rows[kBatch];
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const bool exists = begin + j < end;
      const int64_t n = exists ? a.order[begin + j] : 0;
      rows[j] = gpu::load(a.out_grad + n * a.out_stride + column, a.wide, exists ? count : 0);
    }
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
#pragma unroll
      for (int i = 0; i < kPacket; ++i) sum[i] += rows[j][i];
    }
  }
}

template <class T>
__device__ inline void write_row(const BackwardArgs<T>& a, int segment, int column, int count, float (&sum)[kPacket]) {
  const int64_t id = a.ids[a.order[a.segments[segment]]];
  float* target = a.table_grad + id * a.table_stride + column;
  if (a.accumulate) {
    const auto old = gpu::load(target, a.wide_table, count);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) sum[i] += old[i];
  }
  gpu::store_floats(target, sum, a.wide_table, count);
}

// Block x owns kWarps consecutive ids, block y kColumns columns.
template <class T>
__global__ void __launch_bounds__(kWarps * 32, 1) embedding_backward_kernel(BackwardArgs<T> a) {
  __shared__ float shared[kWarps][kColumns];
  const int lane = static_cast<int>(threadIdx.x), warp = static_cast<int>(threadIdx.y);
  const int column = static_cast<int>(blockIdx.y) * kColumns + lane * kPacket,
            count = max(0, min(kPacket, a.columns - column));
  const int first = static_cast<int>(blockIdx.x) * kWarps, last = min(a.unique, first + kWarps);
  const int own = first + warp;
  if (own < last && a.segments[own + 1] - a.segments[own] < kFrequent) {
    float sum[kPacket] = {};
    sum_rows(a, column, count, a.segments[own], a.segments[own + 1], 1, sum);
    write_row(a, own, column, count, sum);
  }
  for (int segment = first; segment < last; ++segment) {
    const int begin = a.segments[segment], end = a.segments[segment + 1];
    if (end - begin < kFrequent) continue;
    float sum[kPacket] = {};
    sum_rows(a, column, count, begin + warp * kBatch, end, kWarps, sum);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) shared[warp][i * 32 + lane] = sum[i];
    __syncthreads();
    if (warp == 0) {
#pragma unroll
      for (int i = 0; i < kPacket; ++i) {
        for (int w = 1; w < kWarps; ++w) sum[i] += shared[w][i * 32 + lane];
      }
      write_row(a, segment, column, count, sum);
    }
    __syncthreads();
  }
}

}  // namespace

void run(CudaContext& context, const EmbeddingForward& k) {
  gpu::for_float(k.out.dtype, EmbeddingForward::kName, [&](auto t) {
    using T = decltype(t);
    const View out = k.out.as_matrix();
    const int64_t packets = gpu::ceil_div(out.size(1), kPacket), items = out.size(0) * packets;
    check(items < int64_t{1} << 31, "embedding: {} is too large", k.out.shape.text());
    const ForwardArgs<T> args{.out = out.as<T>(),
                              .table = k.table.as<T>(),
                              .ids = k.ids.as<int32_t>(),
                              .out_stride = out.stride(0),
                              .table_stride = k.table.stride(0),
                              .packets = static_cast<uint32_t>(packets),
                              .items = static_cast<uint32_t>(items),
                              .columns = static_cast<int>(out.size(1)),
                              .wide = gpu::all_aligned(out, k.table)};
    launch_kernel(context, EmbeddingForward::kName, static_cast<unsigned>(gpu::ceil_div(items, kThreads)), kThreads, 0,
                  embedding_kernel<T>, args);
  });
}

void run(CudaContext& context, const EmbeddingBackward& k) {
  gpu::for_float(k.out_grad.dtype, EmbeddingBackward::kName, [&](auto t) {
    using T = decltype(t);
    const View dout = k.out_grad.as_matrix();
    const int64_t unique = k.segments.size(0) - 1;
    if (!k.accumulate)
      check_cuda(cudaMemsetAsync(k.table_grad.as<float>(), 0, k.table_grad.bytes(), context.state().stream),
                 EmbeddingBackward::kName);
    const BackwardArgs<T> args{.table_grad = k.table_grad.as<float>(),
                               .out_grad = dout.as<T>(),
                               .ids = k.ids.as<int32_t>(),
                               .order = k.order.as<int32_t>(),
                               .segments = k.segments.as<int32_t>(),
                               .out_stride = dout.stride(0),
                               .table_stride = k.table_grad.stride(0),
                               .unique = static_cast<int>(unique),
                               .columns = static_cast<int>(dout.size(1)),
                               .accumulate = k.accumulate,
                               .wide = gpu::aligned(dout),
                               .wide_table = gpu::aligned(k.table_grad)};
    const dim3 grid(static_cast<unsigned>(gpu::ceil_div(unique, kWarps)),
                    static_cast<unsigned>(gpu::ceil_div(dout.size(1), kColumns)));
    launch_kernel(context, EmbeddingBackward::kName, grid, dim3(32, kWarps), 0, embedding_backward_kernel<T>, args);
  });
}

}  // namespace egmla

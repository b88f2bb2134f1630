// FLOPs: 2 (d_c + d_e) a feature and token, 2 d_c with the folded table, whose rows are then read.
// bf16 on Hopper runs on tensor cores, in one pass where gates are folded and weights fit
// (kernels/decode_gated_whole.cuh), else in two (kernels/decode_gated_tile.cuh); other types and widths: a block a head
// and split, a thread a token for scores and a thread a feature for values.
#include "kernels/decode_attention.h"
#include "kernels/decode_gated_tile.cuh"
#include "kernels/decode_gated_whole.cuh"

namespace egmla {
namespace {

using decode::GatedArgs;
using decode::GateSource;

constexpr int kThreads = 128;
constexpr int kTile = static_cast<int>(kGatedTile);

// One side of the struct, in the terms of a plain kernel.
template <class T>
struct Side {
  const T *up, *gate, *table, *weight, *bias;
  const float *mean, *rstd;
  int64_t up_head, up_row, gate_head, gate_row, table_token, table_head, weight_head, stat_batch, stat_token, stat_head;
  int width;

  explicit Side(const GateSide& s)
      : up(s.up.as<T>()),
        gate(s.gate.defined() ? s.gate.as<T>() : nullptr),
        table(s.table.defined() ? s.table.as<T>() : nullptr),
        weight(s.weight.defined() ? s.weight.as<T>() : nullptr),
        bias(s.bias.defined() ? s.bias.as<T>() : nullptr),
        mean(s.mean.defined() ? s.mean.as<float>() : nullptr),
        rstd(s.rstd.defined() ? s.rstd.as<float>() : nullptr),
        up_head(s.up.stride(0)),
        up_row(s.up.stride(1)),
        gate_head(s.gate.defined() ? s.gate.stride(0) : 0),
        gate_row(s.gate.defined() ? s.gate.stride(1) : 0),
        table_token(s.table.defined() ? s.table.stride(0) : 0),
        table_head(s.table.defined() ? s.table.stride(1) : 0),
        weight_head(s.weight.defined() ? s.weight.stride(0) : 0),
        stat_batch(s.mean.defined() ? s.mean.stride(0) : 0),
        stat_token(s.mean.defined() ? s.mean.stride(1) : 0),
        stat_head(s.mean.defined() && s.mean.size(2) > 1 ? 1 : 0),
        width(static_cast<int>(s.up.size(1))) {}
};

template <class T>
struct PlainArgs {
  Side<T> k, v;
  float* partials;
  const T *q, *cache, *embedding;
  const int32_t *ids, *positions;
  int64_t q_batch, q_head, cache_batch, cache_row, embedding_row, ids_batch;
  int H, splits, dc, de, dr;
  float scale, offset;
  GateActivation activation;

  // Feature f of head h of a token's key or value.
  __device__ float feature(const Side<T>& side, int b, int h, int token, int f) const {
    const T* const c = cache + b * cache_batch + token * cache_row;
    const T* const up = side.up + h * side.up_head + f * side.up_row;
    float u = 0;
    for (int i = 0; i < dc; ++i) u += gpu::to_float(c[i]) * gpu::to_float(up[i]);
    if (!side.gate && !side.table) return u;
    const int32_t id = ids[b * ids_batch + token];
    float g = 0;
    if (side.table) {
      g = gpu::to_float(side.table[id * side.table_token + h * side.table_head + f]);
    } else {
      const T* const e = embedding + id * embedding_row;
      const T* const gate = side.gate + h * side.gate_head + f * side.gate_row;
      for (int i = 0; i < de; ++i) g += gpu::to_float(e[i]) * gpu::to_float(gate[i]);
    }
    u *= activation == GateActivation::none ? offset + g : decode::activated(activation, offset + g);
    if (!side.mean) return u;
    const int64_t at = b * side.stat_batch + token * side.stat_token + h * side.stat_head;
    return (u - side.mean[at]) * side.rstd[at] * gpu::to_float(side.weight[h * side.weight_head + f]) +
           gpu::to_float(side.bias[h * side.weight_head + f]);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) plain_kernel(PlainArgs<T> a) {
  extern __shared__ float out[];  // [d_v]
  __shared__ float p[kThreads];
  const int h = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x), dv = a.v.width;
  gpu::wait_for_previous();
  const decode::Range range = decode::split_range(a.positions[b] + 1, split, a.splits, kTile);
  float* const target = a.partials + ((int64_t{b} * a.H + h) * a.splits + split) * (dv + 2);
  if (range.first >= range.end) return decode::write_nothing(target, dv, kThreads);
  const T* const q = a.q + b * a.q_batch + h * a.q_head;
  for (int f = thread; f < dv; f += kThreads) out[f] = 0;
  float largest = -INFINITY, sum = 0;
  for (int first = range.first; first < range.end; first += kThreads) {
    const int token = first + thread;
    float score = -INFINITY;
    if (token < range.end) {
      score = 0;
      for (int f = 0; f < a.k.width; ++f) score += gpu::to_float(q[f]) * a.feature(a.k, b, h, token, f);
      const T* const rope = a.cache + b * a.cache_batch + token * a.cache_row + a.dc;
      for (int i = 0; i < a.dr; ++i) score += gpu::to_float(q[a.k.width + i]) * gpu::to_float(rope[i]);
      score *= a.scale;
    }
    const float best = fmaxf(largest, gpu::block_max(score)), correction = __expf(largest - best);
    largest = best;
    p[thread] = token < range.end ? __expf(score - best) : 0.0f;
    sum = sum * correction + gpu::block_sum(p[thread]);
    __syncthreads();
    const int count = min(kThreads, range.end - first);
    for (int f = thread; f < dv; f += kThreads) {
      float total = out[f] * correction;
      for (int t = 0; t < count; ++t) total += p[t] * a.feature(a.v, b, h, first + t, f);
      out[f] = total;
    }
    __syncthreads();
  }
  for (int f = thread; f < dv; f += kThreads) target[f] = out[f];
  if (thread > 0) return;
  target[dv] = largest;
  target[dv + 1] = sum;
}

template <class T>
PlainArgs<T> plain_args(const GatedDecodeAttention& k) {
  const int dn = static_cast<int>(k.k.up.size(1));
  return {.k = Side<T>(k.k),
          .v = Side<T>(k.v),
          .partials = k.partials.as<float>(),
          .q = k.q.as<T>(),
          .cache = k.cache.as<T>(),
          .embedding = k.embedding.as<T>(),
          .ids = k.ids.as<int32_t>(),
          .positions = k.positions.as<int32_t>(),
          .q_batch = k.q.stride(0),
          .q_head = k.q.stride(1),
          .cache_batch = k.cache.stride(0),
          .cache_row = k.cache.stride(1),
          .embedding_row = k.embedding.stride(0),
          .ids_batch = k.ids.stride(0),
          .H = static_cast<int>(k.q.size(1)),
          .splits = static_cast<int>(k.partials.size(2)),
          .dc = static_cast<int>(k.k.up.size(2)),
          .de = static_cast<int>(k.embedding.size(1)),
          .dr = static_cast<int>(k.q.size(2)) - dn,
          .scale = static_cast<float>(k.scale),
          .offset = static_cast<float>(k.offset),
          .activation = k.activation};
}

GateSource source_of(const GateSide& side) {
  if (side.table.defined()) return GateSource::table;
  return side.gate.defined() ? GateSource::product : GateSource::none;
}

constexpr size_t kMostShared = 226 * 1024;

// Whether the tensor-core kernel takes this side: rows of 16 bytes, at most 128 features, weights that fit beside the
// stages.
bool takes(const GatedDecodeAttention& k, const GateSide& side) {
  const int64_t width = side.up.size(1), dr = k.q.size(2) - k.k.up.size(1);
  const int features = width <= 64 ? 64 : 128;
  const size_t shared = decode::gated_shared_bytes(features, source_of(side), static_cast<int>(k.k.up.size(2)),
                                                   static_cast<int>(k.embedding.size(1)));
  return gpu::all_aligned(k.cache, k.embedding, side.up, side.gate, side.table) && width <= 128 && width % 8 == 0 &&
         dr <= decode::kGatedChunk && dr % 8 == 0 && shared <= kMostShared;
}

template <int NT, GateSource kSource, bool kValues>
void run_tensor(CudaContext& context, const GatedDecodeAttention& k, const GatedArgs& a) {
  launch_chained(context, GatedDecodeAttention::kName,
                 dim3(static_cast<unsigned>(a.H), static_cast<unsigned>(a.splits), static_cast<unsigned>(k.q.size(0))),
                 decode::kGatedThreads, decode::gated_shared_bytes(32 * NT, kSource, a.dc, a.de),
                 decode::gated_kernel<NT, kSource, kValues>, a);
}

GatedArgs side_args(const GatedDecodeAttention& k, bool values) {
  const PlainArgs<bf16> p = plain_args<bf16>(k);
  const Side<bf16>& s = values ? p.v : p.k;
  return {.partials = p.partials,
          .scores = k.scores.as<float>(),
          .q = p.q,
          .cache = p.cache,
          .embedding = p.embedding,
          .up = s.up,
          .gate = s.gate,
          .table = s.table,
          .weight = s.weight,
          .bias = s.bias,
          .mean = s.mean,
          .rstd = s.rstd,
          .ids = p.ids,
          .positions = p.positions,
          .q_batch = p.q_batch,
          .q_head = p.q_head,
          .cache_batch = p.cache_batch,
          .cache_row = p.cache_row,
          .embedding_row = p.embedding_row,
          .ids_batch = p.ids_batch,
          .up_head = s.up_head,
          .up_row = s.up_row,
          .gate_head = s.gate_head,
          .gate_row = s.gate_row,
          .table_token = s.table_token,
          .table_head = s.table_head,
          .weight_head = s.weight_head,
          .stat_batch = s.stat_batch,
          .stat_token = s.stat_token,
          .stat_head = s.stat_head,
          .H = p.H,
          .splits = p.splits,
          .capacity = static_cast<int>(k.scores.size(2)),
          .width = s.width,
          .value_width = p.v.width,
          .dc = p.dc,
          .de = p.de,
          .dr = p.dr,
          .scale = p.scale,
          .offset = p.offset,
          .activation = p.activation};
}

// Whether one pass does: both sides gated by tables, and their weights together in shared memory.
bool whole_takes(const GatedDecodeAttention& k) {
  const int64_t width = std::max(k.k.up.size(1), k.v.up.size(1));
  return k.k.table.defined() && k.v.table.defined() &&
         decode::gated_whole_shared_bytes(width <= 64 ? 64 : 128, static_cast<int>(k.k.up.size(2))) <= kMostShared;
}

template <int NT>
void run_whole(CudaContext& context, const GatedDecodeAttention& k) {
  const GatedArgs keys = side_args(k, false), values = side_args(k, true);
  launch_chained(
      context, GatedDecodeAttention::kName,
      dim3(static_cast<unsigned>(keys.H), static_cast<unsigned>(keys.splits), static_cast<unsigned>(k.q.size(0))),
      decode::kGatedThreads, decode::gated_whole_shared_bytes(32 * NT, keys.dc), decode::gated_whole_kernel<NT>, keys,
      values);
}

template <bool kValues>
void run_side(CudaContext& context, const GatedDecodeAttention& k) {
  const GateSide& side = kValues ? k.v : k.k;
  const GatedArgs a = side_args(k, kValues);
  const auto of_width = [&](auto source) {
    constexpr GateSource kSource = decltype(source)::value;
    if (a.width <= 64) return run_tensor<2, kSource, kValues>(context, k, a);
    run_tensor<4, kSource, kValues>(context, k, a);
  };
  switch (source_of(side)) {
    case GateSource::none:
      return of_width(std::integral_constant<GateSource, GateSource::none>{});
    case GateSource::product:
      return of_width(std::integral_constant<GateSource, GateSource::product>{});
    case GateSource::table:
      return of_width(std::integral_constant<GateSource, GateSource::table>{});
  }
}

constexpr int kStatisticsThreads = 512;

template <class T>
struct StatisticsArgs {
  float *mean, *rstd;
  const T *u, *g, *table;
  const int32_t *tokens, *positions;
  int64_t stat_batch, stat_token, u_batch, u_head, g_batch, g_head;
  int heads, width;  // of a group
  float offset, eps;
  GateActivation activation;
  bool wide;
};

// A block a group and sequence, packets of a head by threads; y is computed once for the mean and once for the
// variance.
template <class T>
__global__ void __launch_bounds__(kStatisticsThreads) statistics_kernel(StatisticsArgs<T> a) {
  const int group = static_cast<int>(blockIdx.x), b = static_cast<int>(blockIdx.y), features = a.heads * a.width;
  const int in_head = (a.width + gpu::kPacket - 1) / gpu::kPacket;
  gpu::wait_for_previous();
  const T* const u = a.u + b * a.u_batch;
  const T* const g = a.table ? a.table + a.tokens[b] * a.g_batch : a.g + b * a.g_batch;
  const auto each = [&](auto&& use) {
    for (int p = static_cast<int>(threadIdx.x); p < a.heads * in_head; p += kStatisticsThreads) {
      const int h = group * a.heads + p / in_head, f = p % in_head * gpu::kPacket,
                count = min(gpu::kPacket, a.width - f);
      const auto up = gpu::load(u + h * a.u_head + f, a.wide, count),
                 gates = gpu::load(g + h * a.g_head + f, a.wide, count);
#pragma unroll
      for (int i = 0; i < gpu::kPacket; ++i) {
        const float gate = a.offset + gates[i];
        if (i < count)
          use(up[i] * (a.activation == GateActivation::none ? gate : decode::activated(a.activation, gate)));
      }
    }
  };
  float sum = 0, squares = 0;
  each([&](float y) { sum += y; });
  const float mean = gpu::block_sum(sum) / static_cast<float>(features);
  each([&](float y) { squares += (y - mean) * (y - mean); });
  squares = gpu::block_sum(squares);
  if (threadIdx.x > 0) return;
  const int64_t at = b * a.stat_batch + a.positions[b] * a.stat_token + group;
  a.mean[at] = mean;
  a.rstd[at] = rsqrtf(squares / static_cast<float>(features) + a.eps);
}

}  // namespace

void run(CudaContext& context, const GatedDecodeAttention& k) {
  check(k.partials.size(3) == k.v.up.size(1) + 2 && k.k.up.size(2) == k.v.up.size(2),
        "gated_decode_attention: partials must be [B,H,S,d_v+2]; partials is {}, the values' weight is {}",
        k.partials.shape.text(), k.v.up.shape.text());
  gpu::for_float(k.q.dtype, GatedDecodeAttention::kName, [&](auto t) {
    using T = decltype(t);
    if constexpr (std::is_same_v<T, bf16>) {
      if (context.state().capability >= 90 && takes(k, k.k) && takes(k, k.v)) {
        if (whole_takes(k)) {
          const bool narrow = k.k.up.size(1) <= 64 && k.v.up.size(1) <= 64;
          return narrow ? run_whole<2>(context, k) : run_whole<4>(context, k);
        }
        run_side<false>(context, k);
        run_side<true>(context, k);
        return;
      }
    }
    const PlainArgs<T> a = plain_args<T>(k);
    launch_chained(
        context, GatedDecodeAttention::kName,
        dim3(static_cast<unsigned>(a.H), static_cast<unsigned>(a.splits), static_cast<unsigned>(k.q.size(0))), kThreads,
        static_cast<size_t>(a.v.width) * sizeof(float), plain_kernel<T>, a);
  });
}

void run(CudaContext& context, const GateStatistics& k) {
  gpu::for_float(k.u.dtype, GateStatistics::kName, [&](auto t) {
    using T = decltype(t);
    const View& g = k.table.defined() ? k.table : k.g;
    const StatisticsArgs<T> a{.mean = k.mean.as<float>(),
                              .rstd = k.rstd.as<float>(),
                              .u = k.u.as<T>(),
                              .g = k.table.defined() ? nullptr : k.g.as<T>(),
                              .table = k.table.defined() ? k.table.as<T>() : nullptr,
                              .tokens = k.tokens.as<int32_t>(),
                              .positions = k.positions.as<int32_t>(),
                              .stat_batch = k.mean.stride(0),
                              .stat_token = k.mean.stride(1),
                              .u_batch = k.u.stride(0),
                              .u_head = k.u.stride(1),
                              .g_batch = g.stride(0),
                              .g_head = g.stride(1),
                              .heads = static_cast<int>(k.u.size(1) / k.mean.size(2)),
                              .width = static_cast<int>(k.u.size(2)),
                              .offset = static_cast<float>(k.offset),
                              .eps = static_cast<float>(k.eps),
                              .activation = k.activation,
                              .wide = gpu::all_aligned(k.u, g)};
    launch_chained(context, GateStatistics::kName,
                   dim3(static_cast<unsigned>(k.mean.size(2)), static_cast<unsigned>(k.u.size(0))), kStatisticsThreads,
                   0, statistics_kernel<T>, a);
  });
}

}  // namespace egmla

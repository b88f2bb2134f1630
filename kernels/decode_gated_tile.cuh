// EG-MLA's decoding on tensor cores (bf16), in two passes over the context: scores, then values. A block owns a head
// and a split of the context; the head's rows of W^UKV and W^UE stay in shared memory, tiles of 128 tokens stream past
// them in chunks of 64 columns (latent, token embedding, rope key), four chunks under way. u and g live in registers
// alone: what leaves a tile is a score a token, or the weighted sum of its values.
// Features are permuted within a warp so that a lane owns neighbours and reads the folded table in one load a token.
#pragma once

#include "kernels/decode_gated.h"
#include "kernels/decode_tile.cuh"

namespace egmla::decode {

enum class GateSource { none, product, table };

struct GatedArgs {
  float *partials, *scores;
  const Bf16 *q, *cache, *embedding, *up, *gate, *table, *weight, *bias;
  const float *mean, *rstd;
  const int32_t *ids, *positions;
  int64_t q_batch, q_head, cache_batch, cache_row, embedding_row, ids_batch;
  int64_t up_head, up_row, gate_head, gate_row, table_token, table_head, weight_head;
  int64_t stat_batch, stat_token, stat_head;
  int H, splits, capacity, width, value_width, dc, de, dr;  // width: features of this side
  float scale, offset;
  GateActivation activation;

  __device__ float* partial(int b, int h, int split) const {
    return partials + ((int64_t{b} * H + h) * splits + split) * (value_width + 2);
  }
};

__device__ __forceinline__ float activated(GateActivation activation, float x) {
  if (activation == GateActivation::tanh) return gpu::tanh_of(x);
  const float s = gpu::sigmoid(x);
  return activation == GateActivation::silu ? x * s : s;
}

constexpr int kGatedThreads = 256;
constexpr int kGatedChunk = 64;  // columns
constexpr int kGatedStages = 4;
constexpr int kTokens = static_cast<int>(kGatedTile);
constexpr int kStageStride = kGatedChunk + kRowPad;

__host__ __device__ constexpr int up_to_chunks(int width) {
  return (width + kGatedChunk - 1) / kGatedChunk * kGatedChunk;
}

__host__ __device__ inline size_t gated_shared_bytes(int features, GateSource source, int dc, int de) {
  const int columns = up_to_chunks(dc) + kRowPad + (source == GateSource::product ? up_to_chunks(de) + kRowPad : 0);
  return sizeof(Bf16) * static_cast<size_t>(features * columns + kGatedStages * kTokens * kStageStride) +
         sizeof(float) * static_cast<size_t>(kTokens + 6 * kTokens);
}

// Row of shared memory for feature f: lane t of a group owns features [2 NT t, 2 NT (t + 1)) of its warp's 8 NT, which
// mma wants at columns 8 n + 2 t + {0, 1}.
template <int NT>
__device__ __forceinline__ int row_of_feature(int f) {
  const int within = f % (8 * NT), t = within / (2 * NT), n = within % (2 * NT) / 2;
  return f - within + 8 * n + 2 * t + f % 2;
}

// Starts the copy of one head's weights [width, columns], zeros up to [8 * 4 * NT, stride - kRowPad].
template <int NT>
__device__ __forceinline__ void load_weights(Bf16* target, int stride, const Bf16* source, int64_t source_row,
                                             int width, int columns) {
  const int chunks = (stride - kRowPad) / 8, lane = static_cast<int>(threadIdx.x) % 32;
  for (int f = static_cast<int>(threadIdx.x) / 32; f < 32 * NT; f += kGatedThreads / 32) {
    for (int chunk = lane; chunk < chunks; chunk += 32) {
      const bool inside = f < width && chunk * 8 < columns;
      flash::copy_async_16(shared_address(target + row_of_feature<NT>(f) * stride + chunk * 8),
                           inside ? source + f * source_row + chunk * 8 : source, inside);
    }
  }
}

// x += (128 tokens x 64 columns of a stage) (64 columns of the weights)^T; this warp's 64 tokens and 8 NT features.
template <int NT>
__device__ __forceinline__ void multiply_chunk(float (&x)[4][NT][4], uint32_t tokens, uint32_t weights, int stride) {
#pragma unroll
  for (int c = 0; c < kGatedChunk; c += 16) {
    uint32_t fa[4][4];
#pragma unroll
    for (int m = 0; m < 4; ++m) flash::load_matrices(fa[m], tokens + 2 * (16 * m * kStageStride + c));
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      uint32_t fb[4];
      flash::load_matrices(fb, weights + 2 * static_cast<uint32_t>(8 * n * stride + c));
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        flash::multiply_add(x[m][n], fa[m], fb[0], fb[1]);
        flash::multiply_add(x[m][n + 1], fa[m], fb[2], fb[3]);
      }
    }
  }
}

// Where the pipeline of chunks stands: loads run kGatedStages - 1 chunks ahead of the products.
template <GateSource kSource, bool kValues>
struct Chunks {
  int latent, embedded, total;  // chunks of a tile: latent, then embedding, then the rope key (scores alone)
  __device__ explicit Chunks(const GatedArgs& a)
      : latent(up_to_chunks(a.dc) / kGatedChunk),
        embedded(kSource == GateSource::product ? up_to_chunks(a.de) / kGatedChunk : 0),
        total(latent + embedded + (kValues ? 0 : 1)) {}
};

template <GateSource kSource, bool kValues>
struct Loader {
  const GatedArgs& a;
  const Chunks<kSource, kValues>& chunks;
  Bf16* stages;
  const Bf16* cache;
  const int32_t* ids;
  int end, tile, chunk = 0, stage = 0;
  int32_t tile_ids[4] = {};

  __device__ Loader(const GatedArgs& args, const Chunks<kSource, kValues>& c, Bf16* memory, int b, const Range& range)
      : a(args),
        chunks(c),
        stages(memory),
        cache(args.cache + b * args.cache_batch),
        ids(args.ids + b * args.ids_batch),
        end(range.end),
        tile(range.first) {}

  // Starts the copies of the next chunk, if there is one, as a group of their own.
  __device__ void next() {
    if (tile < end) {
      const int thread = static_cast<int>(threadIdx.x), row0 = thread / 8, piece = thread % 8 * 8;
      const bool embedded =
          kSource == GateSource::product && chunk >= chunks.latent && chunk < chunks.latent + chunks.embedded;
      const bool rope = chunk >= chunks.latent + chunks.embedded;
      const int column = (chunk - (embedded ? chunks.latent : rope ? chunk : 0)) * kGatedChunk + piece;
      const bool in_row = column < (embedded ? a.de : rope ? a.dr : a.dc);
      if (kSource == GateSource::product && chunk == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i) tile_ids[i] = ids[min(tile + row0 + 32 * i, end - 1)];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = row0 + 32 * i, token = min(tile + row, end - 1);
        const bool inside = in_row && tile + row < end;
        const Bf16* const source =
            embedded ? a.embedding + tile_ids[i] * a.embedding_row : cache + token * a.cache_row + (rope ? a.dc : 0);
        flash::copy_async_16(shared_address(stages + (stage * kTokens + row) * kStageStride + piece),
                             inside ? source + column : source, inside);
      }
      stage = (stage + 1) % kGatedStages;
      if (++chunk == chunks.total) {
        chunk = 0;
        tile += kTokens;
      }
    }
    commit_copies();
  }
};

// A lane's gates of one tile from the folded table: NT words, two features each, for its eight tokens.
template <int NT>
__device__ __forceinline__ void load_table(uint32_t (&gates)[4][2][NT], const GatedArgs& a, const int32_t (&ids)[4][2],
                                           int h, int feature) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Bf16* const source = a.table + ids[m][half] * a.table_token + h * a.table_head + feature;
      if (feature < a.width) {
        if constexpr (NT == 4) {
          const uint4 x = *reinterpret_cast<const uint4*>(source);
          gates[m][half][0] = x.x;
          gates[m][half][1] = x.y;
          gates[m][half][2] = x.z;
          gates[m][half][3] = x.w;
        } else {
          const uint2 x = *reinterpret_cast<const uint2*>(source);
          gates[m][half][0] = x.x;
          gates[m][half][1] = x.y;
        }
      } else {
#pragma unroll
        for (int n = 0; n < NT; ++n) gates[m][half][n] = 0;
      }
    }
  }
}

// Calls use(m, half, n, i, y) for every element of this lane; gate(g) is the activated gate.
template <GateSource kSource, int NT, class Gate, class Use>
__device__ __forceinline__ void for_products(const float (&u)[4][NT][4], const float (&g)[4][NT][4],
                                             const uint32_t (&packed)[4][2][NT], Gate&& gate, Use&& use) {
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float y = u[m][n][2 * half + i];
          if constexpr (kSource == GateSource::product) y *= gate(g[m][n][2 * half + i]);
          if constexpr (kSource == GateSource::table)
            y *= gate(__uint_as_float(i ? packed[m][half][n] & 0xffff0000u : packed[m][half][n] << 16));
          use(m, half, n, i, y);
        }
      }
    }
  }
}

// Ids of this lane's eight tokens of the warp's 64 from `first` on.
__device__ __forceinline__ void load_lane_ids(int32_t (&ids)[4][2], const GatedArgs& a, int b, int first, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int m = 0; m < 4; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      ids[m][half] = a.ids[b * a.ids_batch + min(first + 16 * m + 8 * half + lane / 4, end - 1)];
  }
}

// for_products with the gate that the arguments name.
template <GateSource kSource, int NT, class Use>
__device__ __forceinline__ void for_gated_products(const GatedArgs& a, const float (&u)[4][NT][4],
                                                   const float (&g)[4][NT][4], const uint32_t (&packed)[4][2][NT],
                                                   Use&& use) {
  if (a.activation == GateActivation::none) {
    for_products<kSource, NT>(
        u, g, packed, [&](float x) { return a.offset + x; }, use);
  } else {
    for_products<kSource, NT>(
        u, g, packed, [&](float x) { return activated(a.activation, a.offset + x); }, use);
  }
}

// Adds up the lanes' weighted sums of values and writes a split's share but for its largest score. collected: [2][128].
template <int NT>
__device__ __forceinline__ void finish_split(const GatedArgs& a, float* partial, const float (&sums)[NT][2],
                                             float total, float total_mean, float* collected, int h, int feature) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  total = gpu::block_sum(total);
  total_mean = gpu::block_sum(total_mean);
#pragma unroll
  for (int n = 0; n < NT; ++n) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float x = sums[n][i];
#pragma unroll
      for (int step = 4; step < 32; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
      if (lane < 4) collected[warp / 4 * kTokens + feature + 2 * n + i] = x;
    }
  }
  __syncthreads();
  if (thread < a.width) {
    float x = collected[thread] + collected[kTokens + thread];
    if (a.mean)
      x = gpu::to_float(a.weight[h * a.weight_head + thread]) * (x - total_mean) +
          gpu::to_float(a.bias[h * a.weight_head + thread]) * total;
    partial[thread] = x;
  }
  if (thread == 0) partial[a.value_width + 1] = total;
}

// query = q weight of each feature of head h; returns what this thread adds to (sum of q weight, sum of q bias), which
// the norm's mean and bias bring into every score.
__device__ __forceinline__ float2 weigh_query(const GatedArgs& a, const Bf16* q, int h, float* query) {
  const int f = static_cast<int>(threadIdx.x);
  float2 own{0, 0};
  if (f >= kTokens) return own;
  float x = f < a.width ? gpu::to_float(q[f]) : 0.0f;
  if (a.mean && f < a.width) {
    own.y = x * gpu::to_float(a.bias[h * a.weight_head + f]);
    x *= gpu::to_float(a.weight[h * a.weight_head + f]);
    own.x = x;
  }
  query[f] = x;
  return own;
}

// q^R . k^R of a tile whose rope keys stand in a stage: two threads a token.
__device__ __forceinline__ void multiply_rope(const GatedArgs& a, const Bf16* q, const Bf16* tokens, float* products) {
  const int thread = static_cast<int>(threadIdx.x);
  const Bf16* const k = tokens + thread / 2 * kStageStride + thread % 2 * (kGatedChunk / 2);
  float x = 0;
#pragma unroll
  for (int c = 0; c < kGatedChunk / 2; c += gpu::kPacket) {
    const int column = thread % 2 * (kGatedChunk / 2) + c;
    const auto key = gpu::load(k + c, true, gpu::kPacket);
    if (column >= a.dr) continue;
#pragma unroll
    for (int i = 0; i < gpu::kPacket; ++i) x += key[i] * gpu::to_float(q[a.width + column + i]);
  }
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  if (thread % 2 == 0) products[thread / 2] = x;
}

// NT: tiles of eight features a warp owns; a head has up to 32 NT.
template <int NT, GateSource kSource, bool kValues>
__global__ void __launch_bounds__(kGatedThreads, 1) gated_kernel(GatedArgs a) {
  extern __shared__ __align__(128) unsigned char memory[];
  constexpr bool kProduct = kSource == GateSource::product;
  const int c_stride = up_to_chunks(a.dc) + kRowPad, e_stride = up_to_chunks(a.de) + kRowPad;
  Bf16* const up = reinterpret_cast<Bf16*>(memory);
  Bf16* const gate = up + 32 * NT * c_stride;
  Bf16* const stages = gate + (kProduct ? 32 * NT * e_stride : 0);
  float* const query = reinterpret_cast<float*>(stages + kGatedStages * kTokens * kStageStride);  // [128] q weight
  float* const shared = query + kTokens;  // scores: [4][128] sums, [128] rope; values: [2][128] p, [2][128] sums
  const int h = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rows = warp / 4 * 64, group = warp % 4;          // this warp's first token and its features
  const int feature = 8 * NT * group + 2 * NT * (lane & 3);  // this lane's first
  load_weights<NT>(up, c_stride, a.up + h * a.up_head, a.up_row, a.width, a.dc);
  if (kProduct) load_weights<NT>(gate, e_stride, a.gate + h * a.gate_head, a.gate_row, a.width, a.de);
  commit_copies();
  gpu::wait_for_previous();
  const Range range = split_range(a.positions[b] + 1, split, a.splits, kTokens);
  float* const partial = a.partial(b, h, split);
  if (range.first >= range.end) {
    if (kValues) write_nothing(partial, a.value_width, kGatedThreads);
    wait_for_groups<0>();
    return;
  }
  float* const scores = a.scores + (int64_t{b} * a.H + h) * a.capacity;
  const float* const means = a.mean ? a.mean + b * a.stat_batch + h * a.stat_head : nullptr;
  const float* const rstds = a.mean ? a.rstd + b * a.stat_batch + h * a.stat_head : nullptr;
  const Chunks<kSource, kValues> chunks(a);
  Loader<kSource, kValues> loader(a, chunks, stages, b, range);
  for (int i = 0; i < kGatedStages - 1; ++i) loader.next();

  // q weight a feature; what mean and bias add to each score. Or the split's largest score.
  const Bf16* const q = a.q + b * a.q_batch + h * a.q_head;
  float query_mean = 0, query_bias = 0;
  if constexpr (!kValues) {
    const float2 own = weigh_query(a, q, h, query);
    query_mean = gpu::block_sum(own.x);
    query_bias = gpu::block_sum(own.y);
  }
  const float largest_score = kValues ? partial[a.value_width] : 0.0f;

  float sums[NT][2] = {};
  uint32_t packed[4][2][NT] = {};
  int32_t ids[4][2] = {};
  const auto load_ids = [&](int first) { load_lane_ids(ids, a, b, first + rows, range.end); };
  if constexpr (kSource == GateSource::table) load_ids(range.first);
  float token_score = 0, token_mean = 0, token_rstd = 1;  // of token `thread` of the next tile (values), this (scores)
  const auto load_token = [&](int first) {
    const int token = first + thread;
    if (thread >= kTokens || token >= range.end) return;
    if (kValues) token_score = scores[token];
    if (means) {
      token_mean = means[token * a.stat_token];
      token_rstd = rstds[token * a.stat_token];
    }
  };
  if constexpr (kValues) load_token(range.first);
  float total = 0, total_mean = 0, best = -INFINITY;

  const uint32_t up_lane =
      shared_address(up + (8 * NT * group + (lane & 7) + ((lane >> 4) << 3)) * c_stride + ((lane >> 3) & 1) * 8);
  const uint32_t gate_lane =
      shared_address(gate + (8 * NT * group + (lane & 7) + ((lane >> 4) << 3)) * e_stride + ((lane >> 3) & 1) * 8);
  int stage = 0, parity = 0;
  for (int first = range.first; first < range.end; first += kTokens, parity ^= 1) {
    float u[4][NT][4] = {}, g[4][NT][4] = {};
    float* const p = shared + parity * kTokens;
    for (int chunk = 0; chunk < chunks.total; ++chunk) {
      wait_for_groups<kGatedStages - 2>();
      __syncthreads();
      loader.next();
      const Bf16* const tokens = stages + stage * kTokens * kStageStride;
      stage = (stage + 1) % kGatedStages;
      if (chunk == 0) {
        if constexpr (kSource == GateSource::table) {
          load_table<NT>(packed, a, ids, h, feature);
          load_ids(first + kTokens);
        }
        if constexpr (kValues) {
          if (thread < kTokens) {
            const float x = first + thread < range.end ? __expf(token_score - largest_score) : 0.0f;
            p[thread] = x * token_rstd;
            total += x;
            total_mean += x * token_rstd * token_mean;
          }
          load_token(first + kTokens);
        } else {
          load_token(first);
        }
      }
      const uint32_t token_lane = shared_address(tokens + (rows + (lane & 15)) * kStageStride + (lane >> 4) * 8);
      if (chunk < chunks.latent) {
        multiply_chunk<NT>(u, token_lane, up_lane + 2 * chunk * kGatedChunk, c_stride);
      } else if (kProduct && chunk < chunks.latent + chunks.embedded) {
        multiply_chunk<NT>(g, token_lane, gate_lane + 2 * (chunk - chunks.latent) * kGatedChunk, e_stride);
      } else if constexpr (!kValues) {
        multiply_rope(a, q, tokens, shared + 4 * kTokens);
      }
    }
    const auto each = [&](auto&& use) { for_gated_products<kSource, NT>(a, u, g, packed, use); };
    if constexpr (kValues) {
      __syncthreads();
      float weight[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) weight[m][half] = p[rows + 16 * m + 8 * half + lane / 4];
      }
      each([&](int m, int half, int n, int i, float y) { sums[n][i] += weight[m][half] * y; });
    } else {
      float of_query[2 * NT], score[4][2] = {};
#pragma unroll
      for (int i = 0; i < 2 * NT; ++i) of_query[i] = query[feature + i];
      each([&](int m, int half, int n, int i, float y) { score[m][half] += of_query[2 * n + i] * y; });
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float x = score[m][half];
          x += __shfl_xor_sync(0xffffffffu, x, 1);
          x += __shfl_xor_sync(0xffffffffu, x, 2);
          if ((lane & 3) == 0) shared[group * kTokens + rows + 16 * m + 8 * half + lane / 4] = x;
        }
      }
      __syncthreads();
      if (thread < kTokens && first + thread < range.end) {
        float x = 0;
        for (int w = 0; w < 4; ++w) x += shared[w * kTokens + thread];
        if (means) x = token_rstd * (x - token_mean * query_mean) + query_bias;
        x = a.scale * (x + shared[4 * kTokens + thread]);
        scores[first + thread] = x;
        best = fmaxf(best, x);
      }
    }
  }
  if constexpr (!kValues) {
    best = gpu::block_max(best);
    if (thread == 0) partial[a.value_width] = best;
    return;
  }
  finish_split<NT>(a, partial, sums, total, total_mean, shared + 2 * kTokens, h, feature);
}

}  // namespace egmla::decode

// Attention of a chain, MLA absorbed: a block owns a head and a split of the context, a warp a token. The head's W^UK
// is in registers, and the split's latents on their way to the second-level cache, before the queries are there.
#pragma once

#include "kernels/decode_chain_attention.cuh"

namespace egmla::chain {

constexpr int kLatentRows = 5;                                // tokens of a warp in a group; two groups are under way
constexpr int kNopeRows = (kMostNope + kWarps - 1) / kWarps;  // rows of W^UK that a warp owns

struct LatentRows {
  Packet<bf16> c[kLatentRows];
  Packet<bf16, 2> k_rope[kLatentRows];

  // As KeyValues::load.
  __device__ __forceinline__ void load(const Attend& a, int lane, int first, int end) {
    const bf16* const c_source = a.row + min(lane * kPacket, a.width - kPacket);
    const bf16* const rope_source = a.row + a.width + 2 * min(lane, a.half - 1);
#pragma unroll
    for (int i = 0; i < kLatentRows; ++i) {
      const int64_t row = max(0, min(first + i * kWarps, end - 1)) * a.row_stride;
      c[i] = load_fresh(c_source + row);
      k_rope[i].words[0] = __ldcg(reinterpret_cast<const uint32_t*>(rope_source + row));
    }
  }
};

// Asks the second-level cache for a split's rows; the blocks of all heads share the work.
__device__ __forceinline__ void prefetch_latents(const Attend& a, int h, decode::Range past) {
  constexpr int kLine = 128;
  const int bytes = 2 * (a.width + 2 * a.half), line = static_cast<int>(threadIdx.x) % 8 * kLine;
  if (line >= bytes + kLine) return;
  for (int token = past.first + h + static_cast<int>(threadIdx.x) / 8 * a.H; token < past.end;
       token += kThreads / 8 * a.H) {
    const char* const row = reinterpret_cast<const char*>(a.row + token * a.row_stride);
    asm volatile("prefetch.global.L2 [%0];" ::"l"(row + min(line, bytes - 1)));
  }
}

// Columns `low` and `high` of pair `pair` of a rotated row; what `store` is given is rounded.
template <class Store>
__device__ __forceinline__ void rotate_pair(const bf16* row, const Attend& a, int position, int pair, Store&& store) {
  const int low = a.interleave ? 2 * pair : pair, high = a.interleave ? 2 * pair + 1 : pair + a.half;
  const float cos = a.cos[int64_t{position} * a.half + pair], sin = a.sin[int64_t{position} * a.half + pair];
  const float x = load_fresh_one(row + low), y = load_fresh_one(row + high);
  store(low, __float2bfloat16(x * cos - y * sin));
  store(high, __float2bfloat16(x * sin + y * cos));
}

// A warp's work: the new token's row, normalised and rotated, to memory.newest and, by the first head, to the cache.
__device__ __forceinline__ void append_latent(const Attend& a, const Memory& memory, int position, bool keep,
                                              int lane) {
  bf16* const target = a.row + position * a.row_stride;
  const int column = lane * kPacket;
  Packet<bf16> c{};
  if (column < a.width) c = load_fresh(a.newest + column);
  if (a.norm_weight) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kPacket; ++i) squares += c[i] * c[i];
    const float rstd = rsqrtf(gpu::warp_sum(squares) / static_cast<float>(a.width) + a.eps);
    if (column < a.width) {
      const Packet<bf16> weight = gpu::load(a.norm_weight + column, true, kPacket);
      float values[kPacket];
#pragma unroll
      for (int i = 0; i < kPacket; ++i) values[i] = c[i] * rstd * weight[i];
      gpu::round_to(c, values);
    }
  }
  if (column < a.width) {
    gpu::store(memory.newest + column, c, true, kPacket);
    if (keep) gpu::store(target + column, c, true, kPacket);
  }
  if (lane < a.half)
    rotate_pair(a.newest + a.width, a, position, lane, [&](int at, bf16 x) {
      memory.newest[a.width + at] = x;
      if (keep) target[a.width + at] = x;
    });
}

__device__ __forceinline__ void attend_latents(const Attend& a, const Memory& memory, Meeting& meeting) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int position = *a.position, column = lane * kPacket;
  const int h = static_cast<int>(blockIdx.x) / a.splits, split = static_cast<int>(blockIdx.x) % a.splits;
  if (h >= a.H) return meeting.wait();
  const decode::Range past = a.past(split, position);
  Packet<bf16> up[kNopeRows];
  const bf16* const own_up = a.up + h * a.up_head + min(column, a.width - kPacket);
#pragma unroll
  for (int i = 0; i < kNopeRows; ++i)
    up[i] = gpu::load(own_up + min(warp + i * kWarps, a.rope_first - 1) * a.up_row, true, kPacket);
  prefetch_latents(a, h, past);
  meeting.wait();
  const bf16* const q = a.q + h * a.q_head;
  float sums[kPacket] = {};
#pragma unroll
  for (int i = 0; i < kNopeRows; ++i) {
    const int row = warp + i * kWarps;
    const float x = row < a.rope_first ? load_fresh_one(q + row) : 0.0f;
#pragma unroll
    for (int c = 0; c < kPacket; ++c) sums[c] += x * up[i][c];
  }
  if (column < a.width) memcpy(memory.merge + warp * kMergeStride + column, sums, sizeof(sums));
  asm volatile("" ::: "memory");  // W^UK makes room for latents
  LatentRows groups[2];
#pragma unroll
  for (int g = 0; g < 2; ++g) groups[g].load(a, lane, past.first + warp + g * kLatentRows * kWarps, past.end);
  if (warp == kWarps - 1 && lane < a.half)
    rotate_pair(q + a.rope_first, a, position, lane,
                [&](int at, bf16 x) { memory.query[a.width + at] = gpu::to_float(x) * a.scale; });
  const bool last = split == a.splits - 1;
  if (warp == kWarps - 2 && last) append_latent(a, memory, position, h == 0, lane);
  sync_warps();
  if (thread < a.width) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += memory.merge[w * kMergeStride + thread];
    memory.query[thread] = gpu::to_float(__float2bfloat16(sum)) * a.scale;
  }
  sync_warps();
  float query[kPacket] = {}, rope[2] = {};
  if (column < a.width) memcpy(query, memory.query + column, sizeof(query));
  if (lane < a.half) memcpy(rope, memory.query + a.width + 2 * lane, sizeof(rope));
  const auto score = [&](const Packet<bf16>& c, const Packet<bf16, 2>& k_rope) {
    float sum = rope[0] * k_rope[0] + rope[1] * k_rope[1];
#pragma unroll
    for (int i = 0; i < kPacket; ++i) sum += query[i] * c[i];
    return gpu::warp_sum(sum);
  };
  Softmax<kPacket> softmax;
#pragma unroll 1
  for (int first = past.first; first < past.end; first += 2 * kLatentRows * kWarps) {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int own = first + g * kLatentRows * kWarps + warp;
      float scores[kLatentRows];
#pragma unroll
      for (int i = 0; i < kLatentRows; ++i) {
        scores[i] = score(groups[g].c[i], groups[g].k_rope[i]);
        if (own + i * kWarps >= past.end) scores[i] = -INFINITY;
      }
      softmax.raise(scores);
#pragma unroll
      for (int i = 0; i < kLatentRows; ++i) softmax.add(scores[i], groups[g].c[i]);
      if (first + (2 + g) * kLatentRows * kWarps < past.end)
        groups[g].load(a, lane, own + 2 * kLatentRows * kWarps, past.end);
    }
  }
  if (last && warp == 0) {
    Packet<bf16> c{};
    Packet<bf16, 2> k_rope{};
    if (column < a.width) c = gpu::load(memory.newest + column, true, kPacket);
    if (lane < a.half) memcpy(k_rope.words, memory.newest + a.width + 2 * lane, sizeof(k_rope.words));
    const float scores[1] = {score(c, k_rope)};
    softmax.raise(scores);
    softmax.add(scores[0], c);
  }
  leave_softmax(softmax, memory, column, a.width, lane);
  merge_warps(a, memory, h, split);
}

// Block (h, chunk): some outputs of W^UV times the mean over splits, or of the mean itself.
__device__ __forceinline__ void expand_heads(const Expand& e, const Memory& memory, Meeting& meeting) {
  constexpr int kOwn = 2;  // rows of W^UV that a warp has ahead
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32, column = lane * kPacket;
  const int h = static_cast<int>(blockIdx.x) / e.splits, chunk = static_cast<int>(blockIdx.x) % e.splits;
  if (h >= e.H) return meeting.wait();
  const int first = e.outputs * chunk / e.splits, end = e.outputs * (chunk + 1) / e.splits;
  const auto load_row = [&](int j) {
    return gpu::load(e.up + h * e.up_head + min(j, e.outputs - 1) * e.up_row + min(column, e.width - kPacket), true,
                     kPacket);
  };
  Packet<bf16> rows[kOwn] = {};
  if (e.up) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) rows[i] = load_row(first + warp + i * kWarps);
  }
  meeting.wait();
  // With W^UV the means of all columns, else those of the block's outputs.
  const int mean_first = e.up ? 0 : first, mean_end = e.up ? e.width : end;
  for (int j = mean_first + thread; j < mean_end; j += kThreads) {
    float mean[1];
    mean_of_splits(e.partials, e.H, e.splits, e.width, h, j, mean);
    if (e.up)
      memory.query[j] = gpu::to_float(__float2bfloat16(mean[0]));
    else
      e.out[h * e.out_head + j] = __float2bfloat16(mean[0]);
  }
  if (!e.up) return;
  sync_warps();
  float x[kPacket] = {};
  if (column < e.width) memcpy(x, memory.query + column, sizeof(x));
#pragma unroll 1
  for (int j = first + warp; j < end; j += kWarps) {
    float sum = 0;
#pragma unroll
    for (int c = 0; c < kPacket; ++c) sum += rows[0][c] * x[c];
    rows[0] = rows[1];
    rows[1] = load_row(j + 2 * kWarps);
    sum = gpu::warp_sum(sum);
    if (lane == 0) e.out[h * e.out_head + j] = __float2bfloat16(sum);
  }
}

}  // namespace egmla::chain

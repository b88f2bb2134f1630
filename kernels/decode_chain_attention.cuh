// Attention of a chain, MHA and GQA: a block owns a query head and a split of the context, sixteen lanes a token.
// Cached rows are on their way before the queries are there. The new token's keys are rotated by whoever needs them,
// and stored to the cache by its first query head.
#pragma once

#include "kernels/decode_chain_part.cuh"

namespace egmla::chain {

// An unfinished softmax over tokens and kColumns columns of the values.
template <int kColumns>
struct Softmax {
  float largest = -1e30f, sum = 0, values[kColumns] = {};

  template <int kTokens>
  __device__ __forceinline__ void raise(const float (&scores)[kTokens]) {
    float best = largest;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) best = fmaxf(best, scores[i]);
    const float correction = flash::power_of_two(largest - best);
    largest = best;
    sum *= correction;
#pragma unroll
    for (float& x : values) x *= correction;
  }
  __device__ __forceinline__ void add(float score, const Packet<bf16>& row) {
    const float p = flash::power_of_two(score - largest);
    sum += p;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c] += p * row[c];
  }
};

// A warp's softmax into its row of memory.merge: values, then m and the sum.
__device__ __forceinline__ void leave_softmax(const Softmax<kPacket>& softmax, const Memory& memory, int column,
                                              int width, int lane) {
  float* const row = memory.merge + static_cast<int>(threadIdx.x) / 32 * kMergeStride;
  if (column < width) memcpy(row + column, softmax.values, sizeof(softmax.values));
  if (lane == 0) {
    row[kMostLatent] = softmax.largest;
    row[kMostLatent + 1] = softmax.sum;
  }
}

// Adds the warps' softmaxes in their order and leaves the block's to the other blocks.
__device__ __forceinline__ void merge_warps(const Attend& a, const Memory& memory, int h, int split) {
  sync_warps();
  const int thread = static_cast<int>(threadIdx.x);
  float best = -1e30f, sum = 0, value = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) best = fmaxf(best, memory.merge[w * kMergeStride + kMostLatent]);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float* const row = memory.merge + w * kMergeStride;
    const float weight = flash::power_of_two(row[kMostLatent] - best);
    sum += weight * row[kMostLatent + 1];
    if (thread < a.width) value += weight * row[thread];
  }
  if (thread < a.width) a.mean(h, split)[thread] = value;
  if (thread == 0) *a.stats(h, split) = {best, sum};
}

constexpr int kRowLanes = 16;
constexpr int kTeams = kThreads / kRowLanes;
constexpr int kTeamRows = 3;  // rows of a team in a group; two groups are under way

struct KeyValues {
  Packet<bf16> k[kTeamRows], v[kTeamRows];

  // Tokens from `end` on are read as the one before it, and are to be left out. There are no branches, so that loads
  // stay under way until their rows are used.
  __device__ __forceinline__ void load(const bf16* row, const Attend& a, int v_offset, int first, int end) {
#pragma unroll
    for (int i = 0; i < kTeamRows; ++i) {
      const bf16* const source = row + max(0, min(first + i * kTeams, end - 1)) * a.row_stride;
      k[i] = load_fresh(source);
      v[i] = load_fresh(source + v_offset);
    }
  }
};

// cos and sin of the pairs that a packet of a head needs.
struct Rotation {
  float cos[kPacket], sin[kPacket];
  __device__ __forceinline__ void load(const Attend& a, int position, int column) {
    const int pair = a.interleave ? column / 2 : column % a.half;
    const float *const c = a.cos + int64_t{position} * a.half + pair, *const s =
                                                                          a.sin + int64_t{position} * a.half + pair;
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      cos[i] = c[a.interleave ? i / 2 : i];
      sin[i] = s[a.interleave ? i / 2 : i];
    }
  }
};

// A packet of a head's row, rotated.
__device__ __forceinline__ Packet<bf16> rotated(const bf16* row, const Attend& a, const Rotation& r, int column) {
  const bool upper = column >= a.half;
  const Packet<bf16> own = load_fresh(row + column);
  const Packet<bf16> other = a.interleave ? own : load_fresh(row + (upper ? column - a.half : column + a.half));
  float values[kPacket];
#pragma unroll
  for (int i = 0; i < kPacket; ++i) {
    if (a.interleave) {
      const float x = own[i / 2 * 2], y = own[i / 2 * 2 + 1];
      values[i] = i % 2 ? x * r.sin[i] + y * r.cos[i] : x * r.cos[i] - y * r.sin[i];
    } else {
      values[i] = upper ? other[i] * r.sin[i] + own[i] * r.cos[i] : own[i] * r.cos[i] - other[i] * r.sin[i];
    }
  }
  Packet<bf16> out;
  gpu::round_to(out, values);
  return out;
}

__device__ __forceinline__ void attend_heads(const Attend& a, const Memory& memory, Meeting& meeting) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, team = thread / kRowLanes;
  const int d = a.width;
  const bool inside = thread % kRowLanes * kPacket < d;
  const int column = inside ? thread % kRowLanes * kPacket : 0;
  const int position = *a.position, h = static_cast<int>(blockIdx.x) / a.splits,
            split = static_cast<int>(blockIdx.x) % a.splits, kv = h / a.group;
  if (h >= a.H) return meeting.wait();
  const bf16* const row = a.row + kv * a.k_head + column;
  const int v_offset = a.v_first + kv * (a.v_head - a.k_head);
  const decode::Range past = a.past(split, position);
  Rotation rotation;
  rotation.load(a, position, column);
  KeyValues groups[2];
#pragma unroll
  for (int g = 0; g < 2; ++g) groups[g].load(row, a, v_offset, past.first + team + g * kTeamRows * kTeams, past.end);
  meeting.wait();
  float q[kPacket] = {};
  if (inside) {
    const Packet<bf16> packet = rotated(a.q + h * a.q_head, a, rotation, column);
#pragma unroll
    for (int i = 0; i < kPacket; ++i) q[i] = packet[i] * a.scale;
  }
  const auto score = [&](const Packet<bf16>& k) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPacket; ++i) sum += q[i] * k[i];
#pragma unroll
    for (int step = kRowLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return sum;
  };
  Softmax<kPacket> softmax;
#pragma unroll 1
  for (int first = past.first; first < past.end; first += 2 * kTeamRows * kTeams) {
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int own = first + g * kTeamRows * kTeams + team;
      float scores[kTeamRows];
#pragma unroll
      for (int i = 0; i < kTeamRows; ++i) {
        scores[i] = score(groups[g].k[i]);
        if (own + i * kTeams >= past.end) scores[i] = -INFINITY;
      }
      softmax.raise(scores);
#pragma unroll
      for (int i = 0; i < kTeamRows; ++i) softmax.add(scores[i], groups[g].v[i]);
      if (first + (2 + g) * kTeamRows * kTeams < past.end)
        groups[g].load(row, a, v_offset, own + 2 * kTeamRows * kTeams, past.end);
    }
  }
  if (split == a.splits - 1 && thread < 32) {  // the new token, by the first team
    const bf16* const newest = a.newest + kv * a.k_head;
    const Packet<bf16> k = rotated(newest, a, rotation, column);
    const Packet<bf16> v = load_fresh(newest + v_offset + column);
    float scores[1] = {score(k)};
    if (team > 0) scores[0] = -INFINITY;
    softmax.raise(scores);
    softmax.add(scores[0], v);
    if (inside && team == 0 && h % a.group == 0) {
      bf16* const target = a.row + position * a.row_stride + kv * a.k_head + column;
      gpu::store(target, k, true, kPacket);
      gpu::store(target + v_offset, v, true, kPacket);
    }
  }
  // The two teams of a warp become one.
  const float other = __shfl_xor_sync(0xffffffffu, softmax.largest, kRowLanes);
  softmax.raise({other});
  softmax.sum += __shfl_xor_sync(0xffffffffu, softmax.sum, kRowLanes);
#pragma unroll
  for (float& x : softmax.values) x += __shfl_xor_sync(0xffffffffu, x, kRowLanes);
  if (lane < kRowLanes) leave_softmax(softmax, memory, lane * kPacket, d, lane);
  merge_warps(a, memory, h, split);
}

}  // namespace egmla::chain

// Flash attention, backward (Dao 2023), bf16 on tensor cores, with P rebuilt from lse and delta = rowsum(out * dout):
//   dS = P (dout V^T - delta);  dV = P^T dout, dK = scale dS^T Q;  dQ = scale dS K.
// One kernel owns queries and sums dQ over keys, another owns keys and sums dK and dV over the queries of all heads
// that share them: each sum has one owner and a fixed order, so no atomics and bitwise repeatable. Scores and dout V^T
// are computed twice: 4 qk + 3 v products of width T x T instead of 3 qk + 2 v.
#pragma once

#include "kernels/attention_tile.cuh"

namespace egmla::flash {

template <int QK, int V, int MT, int kWarps, int BN>
constexpr int query_gradient_shared_bytes() {
  return 2 * (QK + V) * (kWarps * 16 * MT + 2 * BN);
}

// dS of this warp's queries against one tile of keys, from masked s = Q K^T and dp = dout V^T; left in s.
template <int MT, int NT>
__device__ __forceinline__ void score_gradient_by_query(float (&s)[MT][NT][4], const float (&dp)[MT][NT][4],
                                                        const float (&lse2)[MT][2], const float (&delta)[MT][2],
                                                        float scale2) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float probability = power_of_two(s[m][n][e] * scale2 - lse2[m][e / 2]);
        s[m][n][e] = probability * (dp[m][n][e] - delta[m][e / 2]);
      }
    }
  }
}

template <int QK, int V, int MT, int kWarps, int BN>
__global__ void __launch_bounds__(kWarps * 32, 2) attention_query_gradient_kernel(const BackwardArguments<Bf16> p) {
  constexpr int kThreads = kWarps * 32, BM = kWarps * 16 * MT;
  const uint32_t q_tile = dynamic_shared(), out_grad_tile = q_tile + 2 * BM * QK, stages = out_grad_tile + 2 * BM * V;
  constexpr uint32_t kStage = 2 * BN * (QK + V), kValues = 2 * BN * QK;  // bytes; V follows K in a stage
  const int m0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * BM;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int last_row = min(m0 + BM, p.length) - 1;
  const int* starts = p.document_start ? p.document_start + static_cast<int64_t>(b) * p.length : nullptr;
  const int row = m0 + warp_row<MT>();
  const int n_first = starts ? starts[m0] / BN : 0, n_last = last_row / BN;
  const auto load_stage = [&](uint32_t stage, int n) {  // addresses computed anew, as in the forward kernel
    const int key_head = fresh_head() / p.group;
    load_tile<BN, QK, kThreads>(stage, rows_of(p.k, p.k_rope, fresh_batch(), key_head), n * BN, p.length);
    load_tile<BN, V, kThreads>(stage + kValues, rows_of(p.v, fresh_batch(), key_head), n * BN, p.length);
  };

  load_tile<BM, QK, kThreads>(q_tile, rows_of(p.q, b, h), m0, p.length);
  load_tile<BM, V, kThreads>(out_grad_tile, rows_of(p.out_grad, b, h), m0, p.length);
  load_stage(stages, n_first);
  float dq[MT][QK / 8][4], lse2[MT][2], delta[MT][2], factor[MT][2];
  clear(dq);
  const int64_t head_rows = (static_cast<int64_t>(b) * p.heads + h) * p.length;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i = min(row + lane_row(m, half), last_row);
      lse2[m][half] = p.lse[head_rows + i] * kLog2E;
      delta[m][half] = p.delta[head_rows + i];
      factor[m][half] = p.scale;
    }
  }
  for (int n = n_first; n <= n_last; ++n) {
    const uint32_t k_tile = stages + static_cast<uint32_t>((n - n_first) & 1) * kStage, v_tile = k_tile + kValues;
    wait_for_copies();
    __syncthreads();  // this stage has come, and nobody reads the other any more
    if (n < n_last) load_stage(stages + static_cast<uint32_t>((n - n_first + 1) & 1) * kStage, n + 1);
    if (n * BN >= row + 16 * MT) continue;  // wholly after this warp's queries
    float s[MT][BN / 8][4], dp[MT][BN / 8][4];
    clear(s);
    clear(dp);
    multiply_transposed<QK>(s, q_tile, warp_row<MT>(), k_tile);
    if (n * BN + BN - 1 > row) mask_future(s, row - n * BN);
    if (starts && n * BN < starts[min(m0 + BM, p.length) - 1]) mask_documents(s, starts, row, p.length - 1, n * BN);
    multiply_transposed<V>(dp, out_grad_tile, warp_row<MT>(), v_tile);
    score_gradient_by_query(s, dp, lse2, delta, p.scale * kLog2E);
    uint32_t ds[MT][BN / 16][4];
    to_operand(ds, s);
    multiply<QK>(dq, ds, k_tile);
  }
  store_rows(p.q_grad.at(b, h), p.q_grad.row, p.q_grad.width, dq, factor, row, p.length);
}

// What a key-gradient block sums: both gradients where registers allow, else one launch for each.
enum class KeyGradients { both, keys, values };

template <int QK, int V, int MT, int kWarps, int BM>
constexpr int key_gradient_shared_bytes() {
  return 2 * (QK + V) * (kWarps * 16 * MT + 2 * BM) + 2 * 2 * BM * 4;
}

// s = masked K Q^T becomes P^T: this warp's keys (rows) against one tile of queries (columns), which own one lse each.
template <int MT, int NT>
__device__ __forceinline__ void probability_by_key(float (&s)[MT][NT][4], uint32_t lse, float scale2) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const float2 pair = load_shared_pair(lse + 4 * static_cast<uint32_t>(lane_column(n)));
    const float low = pair.x * kLog2E, high = pair.y * kLog2E;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        s[m][n][2 * half] = power_of_two(s[m][n][2 * half] * scale2 - low);
        s[m][n][2 * half + 1] = power_of_two(s[m][n][2 * half + 1] * scale2 - high);
      }
    }
  }
}

// s = P^T becomes dS^T = P^T (dp - delta).
template <int MT, int NT>
__device__ __forceinline__ void score_gradient_by_key(float (&s)[MT][NT][4], const float (&dp)[MT][NT][4],
                                                      uint32_t delta) {
#pragma unroll
  for (int n = 0; n < NT; ++n) {
    const float2 pair = load_shared_pair(delta + 4 * static_cast<uint32_t>(lane_column(n)));
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        s[m][n][2 * half] *= dp[m][n][2 * half] - pair.x;
        s[m][n][2 * half + 1] *= dp[m][n][2 * half + 1] - pair.y;
      }
    }
  }
}

// Writes dK of this warp's keys: columns below k_grad's width there, the rope columns as f32 partials of this key head.
template <int MT, int NT>
__device__ __forceinline__ void store_key_gradient(const BackwardArguments<Bf16>& p, const float (&dk)[MT][NT][4],
                                                   int b, int key_head, int key_heads, int key) {
  Bf16* target = p.k_grad.at(b, key_head);
  const int width = p.k_grad.width, rope = p.k_rope.width;
  float* partials = p.rope_partials + (static_cast<int64_t>(b) * key_heads + key_head) * p.length * rope - width;
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int j = key + lane_row(m, half);
      if (j >= p.length) continue;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const float low = p.scale * dk[m][n][2 * half], high = p.scale * dk[m][n][2 * half + 1];
        if (8 * n < width) {
          *reinterpret_cast<uint32_t*>(target + j * p.k_grad.row + lane_column(n)) = pack_pair(low, high);
        } else if (8 * n < width + rope) {
          float* place = partials + static_cast<int64_t>(j) * rope + lane_column(n);
          place[0] = low;
          place[1] = high;
        }
      }
    }
  }
}

// Addresses of one stage: Q, dout, then lse and delta of BM queries.
template <int QK, int V, int BM>
struct QueryStage {
  static constexpr uint32_t kBytes = 2 * BM * (QK + V) + 2 * BM * 4;
  uint32_t q;
  __device__ __forceinline__ uint32_t out_grad() const { return q + 2 * BM * QK; }
  __device__ __forceinline__ uint32_t lse() const { return q + 2 * BM * (QK + V); }
  __device__ __forceinline__ uint32_t delta() const { return lse() + 4 * BM; }

  template <int kThreads>
  __device__ __forceinline__ void load(const BackwardArguments<Bf16>& p, int b, int h, int first) const {
    const int64_t head_rows = (static_cast<int64_t>(b) * p.heads + h) * p.length;
    load_tile<BM, QK, kThreads>(q, rows_of(p.q, b, h), first, p.length);
    load_tile<BM, V, kThreads>(out_grad(), rows_of(p.out_grad, b, h), first, p.length);
    load_row_values<BM, kThreads>(lse(), p.lse + head_rows, first, p.length);
    load_row_values<BM, kThreads>(delta(), p.delta + head_rows, first, p.length);
  }
};

template <int QK, int V, int MT, int kWarps, int BM, KeyGradients kWhat>
__global__ void __launch_bounds__(kWarps * 32, 2) attention_key_gradient_kernel(const BackwardArguments<Bf16> p) {
  constexpr int kThreads = kWarps * 32, BN = kWarps * 16 * MT;
  constexpr bool kKeys = kWhat != KeyGradients::values, kValues = kWhat != KeyGradients::keys;
  using Stage = QueryStage<QK, V, BM>;
  const uint32_t k_tile = dynamic_shared(), v_tile = k_tile + 2 * BN * QK, stages = v_tile + 2 * BN * V;
  const int n0 = static_cast<int>(blockIdx.x) * BN;  // the first keys are seen by most queries: longest first
  const int key_head = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z), last_query = p.length - 1;
  const int key = n0 + warp_row<MT>();
  const int* starts = p.document_start ? p.document_start + static_cast<int64_t>(b) * p.length : nullptr;
  const int end = starts ? first_query_past(starts, p.length, min(n0 + BN, p.length) - 1) : p.length;
  const int m_first = n0 / BM, tiles = (end - 1) / BM - m_first + 1, steps = tiles * p.group;

  load_tile<BN, QK, kThreads>(k_tile, rows_of(p.k, p.k_rope, b, key_head), n0, p.length);
  if (kKeys) load_tile<BN, V, kThreads>(v_tile, rows_of(p.v, b, key_head), n0, p.length);
  Stage{stages}.template load<kThreads>(p, b, key_head * p.group, m_first * BM);
  float dk[MT][QK / 8][4], dv[MT][V / 8][4];
  clear(dk);
  clear(dv);
  for (int step = 0; step < steps; ++step) {
    const Stage stage{stages + static_cast<uint32_t>(step & 1) * Stage::kBytes};
    wait_for_copies();
    __syncthreads();  // this stage has come, and nobody reads the other any more
    if (const int next = step + 1; next < steps) {
      const Stage other{stages + static_cast<uint32_t>(next & 1) * Stage::kBytes};
      other.template load<kThreads>(p, b, key_head * p.group + next / tiles, (m_first + next % tiles) * BM);
    }
    const int query = (m_first + step % tiles) * BM;
    if (query + BM <= key) continue;  // wholly before this warp's keys
    float s[MT][BM / 8][4];
    clear(s);
    multiply_transposed<QK>(s, k_tile, warp_row<MT>(), stage.q);
    if (query < key + 16 * MT - 1) mask_future_transposed(s, key - query);
    if (starts && starts[min(query + BM - 1, last_query)] > key)
      mask_documents_transposed(s, starts, query, last_query, key);
    probability_by_key(s, stage.lse(), p.scale * kLog2E);
    uint32_t operand[MT][BM / 16][4];
    if (kValues) {
      to_operand(operand, s);
      multiply<V>(dv, operand, stage.out_grad());
    }
    if (kKeys) {
      float dp[MT][BM / 8][4];
      clear(dp);
      multiply_transposed<V>(dp, v_tile, warp_row<MT>(), stage.out_grad());
      score_gradient_by_key(s, dp, stage.delta());
      to_operand(operand, s);
      multiply<QK>(dk, operand, stage.q);
    }
  }
  if (kKeys) store_key_gradient(p, dk, b, key_head, p.heads / p.group, key);
  if (kValues) {
    float factor[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) factor[m][0] = factor[m][1] = 1.0f;
    store_rows(p.v_grad.at(b, key_head), p.v_grad.row, p.v_grad.width, dv, factor, key, p.length);
  }
}

}  // namespace egmla::flash

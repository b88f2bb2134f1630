// Flash attention, forward (Dao 2023), bf16 on tensor cores. A block owns kWarps * 16 * MT queries of one head and
// walks the keys from the diagonal back; scores, probabilities and the output stay in registers (online softmax). K and
// V have one buffer each: V arrives during Q K^T, the next K during softmax and P V.
#pragma once

#include "kernels/attention_tile.cuh"

namespace egmla::flash {

template <int QK, int V, int MT, int kWarps, int BN>
constexpr int forward_shared_bytes() {
  return 2 * (kWarps * 16 * MT * QK + BN * (QK + V));
}

// Turns scores into unnormalised probabilities and rescales what was summed so far to the new row maximum.
// `sum` holds this lane's share; the four lanes of a row are added once, at the end.
template <int MT, int NT, int VT>
__device__ __forceinline__ void online_softmax(float (&s)[MT][NT][4], float (&out)[MT][VT][4], float (&largest)[MT][2],
                                               float (&sum)[MT][2], float scale2) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = largest[m][half];
#pragma unroll
      for (int n = 0; n < NT; ++n) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float shift = top == -INFINITY ? 0.0f : top * scale2;  // a row may see no key of this tile
      const float rescale = power_of_two(largest[m][half] * scale2 - shift);
      largest[m][half] = top;
      float total = sum[m][half] * rescale;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
#pragma unroll
        for (int c = 2 * half; c < 2 * half + 2; ++c) {
          s[m][n][c] = power_of_two(s[m][n][c] * scale2 - shift);
          total += s[m][n][c];
        }
      }
      sum[m][half] = total;
#pragma unroll
      for (int n = 0; n < VT; ++n) {
        out[m][n][2 * half] *= rescale;
        out[m][n][2 * half + 1] *= rescale;
      }
    }
  }
}

// Closes the softmax: lse of the rows below `end` is written, and sum becomes the factor 1 / sum.
template <int MT>
__device__ __forceinline__ void finish_softmax(float (&sum)[MT][2], const float (&largest)[MT][2], float* lse, int row,
                                               int end, float scale) {
#pragma unroll
  for (int m = 0; m < MT; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float total = sum[m][half];
      total += __shfl_xor_sync(0xffffffffu, total, 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      const int i = row + lane_row(m, half);
      if (i < end && (threadIdx.x & 3) == 0) lse[i] = largest[m][half] * scale + logf(total);
      sum[m][half] = 1.0f / total;
    }
  }
}

template <int QK, int V, int MT, int kWarps, int BN>
__global__ void __launch_bounds__(kWarps * 32, kWarps == 4 ? 2 : 1)
    attention_forward_kernel(const ForwardArguments<Bf16> p) {
  constexpr int kThreads = kWarps * 32, BM = kWarps * 16 * MT;
  const uint32_t q_tile = dynamic_shared(), k_tile = q_tile + 2 * BM * QK, v_tile = k_tile + 2 * BN * QK;
  const int m0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * BM;  // the longest rows first
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z), shift = p.keys - p.queries;
  const int last_row = min(m0 + BM, p.queries) - 1;
  const int* starts = p.document_start ? p.document_start + static_cast<int64_t>(b) * p.queries : nullptr;
  const int row = m0 + warp_row<MT>();
  const int n_first = starts ? starts[m0] / BN : 0, n_last = (last_row + shift) / BN;
  // Addresses are computed anew for each tile: registers are what this kernel is short of.
  const auto load_k = [&](int n) {
    load_tile<BN, QK, kThreads>(k_tile, rows_of(p.k, p.k_rope, fresh_batch(), fresh_head() / p.group), n * BN, p.keys);
  };
  const auto load_v = [&](int n) {
    load_tile<BN, V, kThreads>(v_tile, rows_of(p.v, fresh_batch(), fresh_head() / p.group), n * BN, p.keys);
  };

  load_tile<BM, QK, kThreads>(q_tile, rows_of(p.q, b, h), m0, p.queries);
  load_k(n_last);
  float out[MT][V / 8][4], largest[MT][2], sum[MT][2];
  clear(out);
#pragma unroll
  for (int m = 0; m < MT; ++m) {
    largest[m][0] = largest[m][1] = -INFINITY;
    sum[m][0] = sum[m][1] = 0.0f;
  }
  for (int n = n_last; n >= n_first; --n) {
    wait_for_copies();
    __syncthreads();  // K has come, and nobody reads the previous V any more
    load_v(n);
    const bool seen = n * BN < row + 16 * MT + shift;  // by any query of this warp
    float s[MT][BN / 8][4];
    clear(s);
    if (seen) multiply_transposed<QK>(s, q_tile, warp_row<MT>(), k_tile);
    wait_for_copies();
    __syncthreads();  // V has come, and nobody reads this K any more
    if (n > n_first) load_k(n - 1);
    if (!seen) continue;
    if (n * BN + BN - 1 > row + shift) mask_future(s, row + shift - n * BN);
    if (starts && n * BN < starts[min(m0 + BM, p.queries) - 1]) mask_documents(s, starts, row, p.queries - 1, n * BN);
    online_softmax(s, out, largest, sum, p.scale * kLog2E);
    uint32_t probability[MT][BN / 16][4];
    to_operand(probability, s);
    multiply<V>(out, probability, v_tile);
  }
  finish_softmax(sum, largest, p.lse + (static_cast<int64_t>(b) * p.heads + h) * p.queries, row, p.queries, p.scale);
  store_rows(p.out.at(b, h), p.out.row, p.out.width, out, sum, row, p.queries);
}

}  // namespace egmla::flash

// EG-MLA's decoding with folded gates in one pass: where the head's rows of W^UK and W^UV fit into shared memory
// together, a tile of tokens becomes scores and then values without leaving the block (kernels/decode_gated_tile.cuh
// has the two passes). Each split leaves its softmax unfinished, as plain attention does.
#pragma once

#include "kernels/decode_gated_tile.cuh"

namespace egmla::decode {

__host__ __device__ inline size_t gated_whole_shared_bytes(int features, int dc) {
  return sizeof(Bf16) *
             static_cast<size_t>(2 * features * (up_to_chunks(dc) + kRowPad) + kGatedStages * kTokens * kStageStride) +
         sizeof(float) * static_cast<size_t>(7 * kTokens + 4);
}

// x += tokens x_weights^T and y += tokens y_weights^T, as multiply_chunk.
template <int NT>
__device__ __forceinline__ void multiply_chunk_twice(float (&x)[4][NT][4], float (&y)[4][NT][4], uint32_t tokens,
                                                     uint32_t x_weights, uint32_t y_weights, int stride) {
#pragma unroll
  for (int c = 0; c < kGatedChunk; c += 16) {
    uint32_t fa[4][4];
#pragma unroll
    for (int m = 0; m < 4; ++m) flash::load_matrices(fa[m], tokens + 2 * (16 * m * kStageStride + c));
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      uint32_t fx[4], fy[4];
      flash::load_matrices(fx, x_weights + 2 * static_cast<uint32_t>(8 * n * stride + c));
      flash::load_matrices(fy, y_weights + 2 * static_cast<uint32_t>(8 * n * stride + c));
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        flash::multiply_add(x[m][n], fa[m], fx[0], fx[1]);
        flash::multiply_add(x[m][n + 1], fa[m], fx[2], fx[3]);
        flash::multiply_add(y[m][n], fa[m], fy[0], fy[1]);
        flash::multiply_add(y[m][n + 1], fa[m], fy[2], fy[3]);
      }
    }
  }
}

// k and v: the two sides of one call.
template <int NT>
__global__ void __launch_bounds__(kGatedThreads, 1) gated_whole_kernel(GatedArgs k, GatedArgs v) {
  extern __shared__ __align__(128) unsigned char memory[];
  const int stride = up_to_chunks(k.dc) + kRowPad;
  Bf16* const up_k = reinterpret_cast<Bf16*>(memory);
  Bf16* const up_v = up_k + 32 * NT * stride;
  Bf16* const stages = up_v + 32 * NT * stride;
  float* const query = reinterpret_cast<float*>(stages + kGatedStages * kTokens * kStageStride);  // [128] q weight
  float* const shared = query + kTokens;  // [4][128] parts of scores, [128] of the rope key; at last [2][128] sums
  float* const p = shared + 5 * kTokens;  // [128] weights of values
  float* const warp_best = p + kTokens;   // [4]
  const int h = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int rows = warp / 4 * 64, group = warp % 4;          // this warp's first token and its features
  const int feature = 8 * NT * group + 2 * NT * (lane & 3);  // this lane's first
  load_weights<NT>(up_k, stride, k.up + h * k.up_head, k.up_row, k.width, k.dc);
  load_weights<NT>(up_v, stride, v.up + h * v.up_head, v.up_row, v.width, v.dc);
  commit_copies();
  // With norms the kernel before this one wrote their statistics alone; what else is read here stood before it began.
  const bool normed = k.mean || v.mean;
  if (!normed) gpu::wait_for_previous();
  const Range range = split_range(k.positions[b] + 1, split, k.splits, kTokens);
  float* const partial = k.partial(b, h, split);
  if (range.first >= range.end) {
    if (normed) gpu::wait_for_previous();
    write_nothing(partial, v.width, kGatedThreads);
    wait_for_groups<0>();
    return;
  }
  const Chunks<GateSource::table, false> chunks(k);
  Loader<GateSource::table, false> loader(k, chunks, stages, b, range);
  for (int i = 0; i < kGatedStages - 1; ++i) loader.next();

  const Bf16* const q = k.q + b * k.q_batch + h * k.q_head;
  const float2 own_query = weigh_query(k, q, h, query);
  const float query_mean = gpu::block_sum(own_query.x), query_bias = gpu::block_sum(own_query.y);

  int32_t ids[4][2];
  const auto load_ids = [&](int first) { load_lane_ids(ids, k, b, first + rows, range.end); };
  load_ids(range.first);
  // Mean and 1 / deviation of this thread's token.
  const auto statistics = [&](const GatedArgs& side, int token, float& mean, float& rstd) {
    if (!side.mean || thread >= kTokens || token >= range.end) return;
    const int64_t at = b * side.stat_batch + token * side.stat_token + h * side.stat_head;
    mean = side.mean[at];
    rstd = side.rstd[at];
  };
  const auto each = [&](const GatedArgs& side, const float(&u)[4][NT][4], const uint32_t(&packed)[4][2][NT],
                        auto&& use) { for_gated_products<GateSource::table, NT>(side, u, u, packed, use); };
  float sums[NT][2] = {}, total = 0, total_mean = 0, best = -INFINITY;
  const int lane_row = 8 * NT * group + (lane & 7) + ((lane >> 4) << 3), lane_column = ((lane >> 3) & 1) * 8;
  const uint32_t k_lane = shared_address(up_k + lane_row * stride + lane_column);
  const uint32_t v_lane = shared_address(up_v + lane_row * stride + lane_column);
  int stage = 0;
  for (int first = range.first; first < range.end; first += kTokens) {
    const int token = first + thread;
    float u_k[4][NT][4] = {}, u_v[4][NT][4] = {};
    float k_mean = 0, k_rstd = 1, v_mean = 0, v_rstd = 1;
    uint32_t packed[4][2][NT];
    for (int chunk = 0; chunk < chunks.total; ++chunk) {
      wait_for_groups<kGatedStages - 2>();
      __syncthreads();
      loader.next();
      const Bf16* const tokens = stages + stage * kTokens * kStageStride;
      stage = (stage + 1) % kGatedStages;
      if (chunk == 0) {
        load_table<NT>(packed, k, ids, h, feature);
        if (normed && first == range.first) gpu::wait_for_previous();
        statistics(k, token, k_mean, k_rstd);
        statistics(v, token, v_mean, v_rstd);
      }
      if (chunk < chunks.latent) {
        multiply_chunk_twice<NT>(u_k, u_v,
                                 shared_address(tokens + (rows + (lane & 15)) * kStageStride + (lane >> 4) * 8),
                                 k_lane + 2 * chunk * kGatedChunk, v_lane + 2 * chunk * kGatedChunk, stride);
      } else {
        multiply_rope(k, q, tokens, shared + 4 * kTokens);
      }
    }
    // Scores, each from the parts of four warps.
    float of_query[2 * NT], score[4][2] = {};
#pragma unroll
    for (int i = 0; i < 2 * NT; ++i) of_query[i] = query[feature + i];
    each(k, u_k, packed, [&](int m, int half, int n, int i, float y) { score[m][half] += of_query[2 * n + i] * y; });
    load_table<NT>(packed, v, ids, h, feature);
    load_ids(first + kTokens);
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
    float own = -INFINITY;
    if (thread < kTokens) {
      if (token < range.end) {
        own = 0;
        for (int w = 0; w < 4; ++w) own += shared[w * kTokens + thread];
        if (k.mean) own = k_rstd * (own - k_mean * query_mean) + query_bias;
        own = k.scale * (own + shared[4 * kTokens + thread]);
      }
      const float largest = gpu::warp_max(own);
      if (lane == 0) warp_best[warp] = largest;
    }
    __syncthreads();
    float largest = best;
#pragma unroll
    for (int w = 0; w < kTokens / 32; ++w) largest = fmaxf(largest, warp_best[w]);
    const float correction = __expf(best - largest);
    best = largest;
    if (thread < kTokens) {
      const float x = __expf(own - best);
      p[thread] = x * v_rstd;
      total = total * correction + x;
      total_mean = total_mean * correction + x * v_rstd * v_mean;
    }
    __syncthreads();
    float weight[4][2];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) weight[m][half] = p[rows + 16 * m + 8 * half + lane / 4];
    }
#pragma unroll
    for (int n = 0; n < NT; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) sums[n][i] *= correction;
    }
    each(v, u_v, packed, [&](int m, int half, int n, int i, float y) { sums[n][i] += weight[m][half] * y; });
  }
  finish_split<NT>(v, partial, sums, total, total_mean, shared, h, feature);
  if (thread == 0) partial[v.width] = best;
}

}  // namespace egmla::decode

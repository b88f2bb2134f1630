// The products of attention's backward kernel on Hopper and what happens to their results in registers. Rows of S^T and
// dP^T are the warpgroup's 64 keys, columns BM queries.
#pragma once

#include "kernels/attention_hopper_order.cuh"

namespace egmla::hopper {

// acc = rows of a (64 of them, `width` columns) times b^T: both operands' columns are summed over.
template <int kWidth, int N>
__device__ __forceinline__ void start_transposed(float (&acc)[N], uint32_t a, uint32_t a_panel, uint32_t b,
                                                 uint32_t b_panel) {
  const uint64_t left = describe(a, 0), right = describe(b, 0);
#pragma unroll
  for (int i = 0; i < kWidth / 16; ++i)
    multiply_add<false, false>(acc, step(left, column_offset(i, a_panel)), step(right, column_offset(i, b_panel)),
                               i > 0);
}

// Which columns of a wide accumulator one product covers: 128, 64 or 32 of them.
template <int kWidth>
struct Split {
  static constexpr int kFirst = kWidth >= 128 ? 128 : 64, kSecond = kWidth - kFirst;
  float first[kFirst / 2];
  float second[kSecond > 0 ? kSecond / 2 : 1];
};

template <int kWidth>
__device__ __forceinline__ void clear(Split<kWidth>& x) {
#pragma unroll
  for (float& value : x.first) value = 0.0f;
#pragma unroll
  for (float& value : x.second) value = 0.0f;
}
template <int kWidth>
__device__ __forceinline__ void pin(Split<kWidth>& x) {
  pin(x.first);
  if constexpr (Split<kWidth>::kSecond > 0) pin(x.second);
}

// acc += a b: a in registers or 64 rows of shared memory, b a tile of 16 kSteps rows and kWidth columns.
template <int kWidth, int kSteps>
__device__ __forceinline__ void start_weighted(Split<kWidth>& acc, const uint32_t (&a)[kSteps][4], uint32_t b) {
  constexpr uint32_t kPanelBytes = tile_bytes(16 * kSteps, kPanel);
  const uint64_t first = describe(b, kPanelBytes);
  const uint64_t second = describe(b + Split<kWidth>::kFirst / kPanel * kPanelBytes, kPanelBytes);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    multiply_add(acc.first, a[i], step(first, i * kRowStep), true);
    if constexpr (Split<kWidth>::kSecond > 0) multiply_add(acc.second, a[i], step(second, i * kRowStep), true);
  }
}

template <int kWidth, int kSteps>
__device__ __forceinline__ void start_weighted(Split<kWidth>& acc, uint32_t a, uint32_t a_panel, uint32_t b) {
  constexpr uint32_t kPanelBytes = tile_bytes(16 * kSteps, kPanel);
  const uint64_t left = describe(a, 0), first = describe(b, kPanelBytes);
  const uint64_t second = describe(b + Split<kWidth>::kFirst / kPanel * kPanelBytes, kPanelBytes);
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    multiply_add<false, true>(acc.first, step(left, column_offset(i, a_panel)), step(first, i * kRowStep), true);
    if constexpr (Split<kWidth>::kSecond > 0)
      multiply_add<false, true>(acc.second, step(left, column_offset(i, a_panel)), step(second, i * kRowStep), true);
  }
}

// A warpgroup's share of dQ = dS K. Of 128 queries it takes 64, all columns; of 64 queries all, half the columns: 64
// and, of 192, 32 of the middle panel.
template <class Plan>
struct QueryGradient {
  static constexpr bool kByRows = Plan::BM == 128;
  static constexpr int kExtra = Plan::QK % 128 == 0 || Plan::QK == 64 ? 0 : 32;
  static constexpr int kValues = (64 + kExtra) / 2;  // a lane's
  static constexpr uint32_t kPanelBytes = tile_bytes(Plan::BN, kPanel);
  static_assert(kByRows ? Plan::QK == 64 + kExtra : Plan::QK == 2 * (64 + kExtra));
  float main[32];
  float extra[kExtra ? 16 : 1];

  static __device__ __forceinline__ int main_panel(int group) { return kByRows ? 0 : kExtra ? 2 * group : group; }
  static __device__ __forceinline__ int extra_column(int group) { return kByRows ? 64 : 64 + 32 * group; }

  static __device__ __forceinline__ uint64_t left(uint32_t scores, int group) {
    return describe(scores + (kByRows ? group * kPanelBytes : 0), kPanelBytes);
  }
  __device__ __forceinline__ void start_main(uint32_t scores, uint32_t keys, int group) {
    start(main, left(scores, group), describe(keys + main_panel(group) * kPanelBytes, kPanelBytes));
  }
  __device__ __forceinline__ void start_extra(uint32_t scores, uint32_t keys, int group) {
    start(extra, left(scores, group), describe(keys + kPanelBytes + (kByRows ? 0 : 64 * group), kPanelBytes));
  }

 private:
  template <int N>
  static __device__ __forceinline__ void start(float (&dq)[N], uint64_t a, uint64_t b) {
    begin_products();
#pragma unroll
    for (int i = 0; i < Plan::BN / 16; ++i)
      multiply_add<true, true>(dq, step(a, i * kRowStep), step(b, i * kRowStep), i > 0);
    commit_products();
  }
};

// Keys after their query: `behind` is the first key's position less the first query's; rows are keys.
template <int N>
__device__ __forceinline__ void mask_past(float (&s)[N], int behind) {
  const int lane = flash::fresh_thread() & 31, warp = flash::fresh_thread() >> 5 & 3;
  const int first = behind + 16 * warp + lane / 4 - 2 * (lane % 4);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (8 * (i / 4) + i % 2 < first + 8 * (i % 4 / 2)) s[i] = -INFINITY;
  }
}

// Keys before the document of their query.
template <int N>
__device__ __forceinline__ void mask_earlier(float (&s)[N], const int* starts, int query, int last_query, int key) {
  const int lane = flash::fresh_thread() & 31, warp = flash::fresh_thread() >> 5 & 3;
#pragma unroll
  for (int i = 0; i < N / 2; ++i) {  // columns 8 (i / 2) + i % 2 of the lane, two rows each
    const int at = min(query + 8 * (i / 2) + i % 2 + 2 * (lane % 4), last_query);
    const int first = starts[at] - key - 16 * warp - lane / 4;
    if (first > 0) s[4 * (i / 2) + i % 2] = -INFINITY;
    if (first > 8) s[4 * (i / 2) + i % 2 + 2] = -INFINITY;
  }
}

// Scores of 64 keys (rows) and BM queries (columns) become probabilities.
template <int N>
__device__ __forceinline__ void probabilities(float (&s)[N], uint32_t lse, float scale2) {
  const uint32_t own = lse + 8 * (flash::fresh_thread() & 3);
#pragma unroll
  for (int n = 0; n < N / 4; ++n) {
    const float2 at = flash::load_shared_pair(own + 32 * n);
#pragma unroll
    for (int e = 0; e < 4; ++e) s[4 * n + e] = flash::power_of_two(s[4 * n + e] * scale2 - (e % 2 ? at.y : at.x));
  }
}

// dS = P (dP - delta), left in dp; P comes rounded, as dV's operand.
template <int N>
__device__ __forceinline__ void score_gradients(float (&dp)[N], const uint32_t (&p)[N / 8][4], uint32_t delta) {
  const uint32_t own = delta + 8 * (flash::fresh_thread() & 3);
#pragma unroll
  for (int n = 0; n < N / 4; ++n) {
    const float2 at = flash::load_shared_pair(own + 32 * n);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t pair = p[n / 2][2 * (n % 2) + half];
      float& x = dp[4 * n + 2 * half];
      float& y = dp[4 * n + 2 * half + 1];
      x = __uint_as_float(pair << 16) * (x - at.x);
      y = __uint_as_float(pair & 0xffff0000u) * (y - at.y);
    }
  }
}

// Rounded dS^T of this warpgroup's 64 keys goes to shared memory, rows are keys, panels 64 queries.
template <class Plan>
__device__ __forceinline__ void store_scores(uint32_t scores, const uint32_t (&ds)[Plan::BM / 16][4], int group) {
  const int lane = flash::fresh_thread() & 31, warp = flash::fresh_thread() >> 5 & 3;
  const int key = 64 * group + 16 * warp + lane % 8 + 8 * (lane / 8 % 2);
#pragma unroll
  for (int i = 0; i < Plan::BM / 16; ++i) {
    const int chunk = 2 * (i % 4) + lane / 16;
    const uint32_t target = scores + (i / 4) * tile_bytes(Plan::BN, kPanel) + 128 * key + 16 * (chunk ^ (key & 7));
    store_matrices(target, ds[i][0], ds[i][1], ds[i][2], ds[i][3]);
  }
}

// dK or the rope part of it, in f32.
template <int N>
__device__ __forceinline__ void store_partials(float* target, int width, int column, const float (&x)[N], float factor,
                                               int first, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row0 = first + static_cast<int>(threadIdx.x) % kGroupThreads / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < N / 4; ++n) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + 8 * half, place = column + 8 * n + 2 * (lane % 4);
      const float2 pair = {factor * x[4 * n + 2 * half], factor * x[4 * n + 2 * half + 1]};
      if (row < end && place < width)
        *reinterpret_cast<float2*>(target + static_cast<int64_t>(row) * width + place) = pair;
    }
  }
}

template <class Plan>
__device__ __forceinline__ void store_key_gradients(const BackwardArguments& p, const Split<Plan::QK>& dk,
                                                    const Split<Plan::V>& dv, int row, int key) {
  const int batch = row / p.key_heads, key_head = row % p.key_heads;
  const float scale[2] = {p.scale, p.scale}, one[2] = {1.0f, 1.0f};
  store_rows(p.v_grad.at(batch, key_head), p.v_grad.row, p.v_grad.width, 0, dv.first, one, key, p.length);
  static_assert(Split<Plan::V>::kSecond == 0);
  constexpr int kFirst = Split<Plan::QK>::kFirst;
  Bf16* const target = p.k_grad.at(batch, key_head);
  float* const partials = p.rope_partials + static_cast<int64_t>(row) * p.length * p.rope_width;
  const int own = kPanel * p.own_panels;
  if (p.rope_width == 0 || own >= kFirst) {
    store_rows(target, p.k_grad.row, p.k_grad.width, 0, dk.first, scale, key, p.length);
  } else {  // 64 of 128 columns
    if constexpr (kFirst == 128) {
      float half[32];
#pragma unroll
      for (int i = 0; i < 32; ++i) half[i] = dk.first[i];
      store_rows(target, p.k_grad.row, p.k_grad.width, 0, half, scale, key, p.length);
#pragma unroll
      for (int i = 0; i < 32; ++i) half[i] = dk.first[32 + i];
      store_partials(partials, p.rope_width, 0, half, p.scale, key, p.length);
    }
  }
  if constexpr (Split<Plan::QK>::kSecond > 0) {
    if (p.rope_width == 0) {
      store_rows(target, p.k_grad.row, p.k_grad.width, kFirst, dk.second, scale, key, p.length);
    } else {
      store_partials(partials, p.rope_width, kFirst - own, dk.second, p.scale, key, p.length);
    }
  }
}

}  // namespace egmla::hopper

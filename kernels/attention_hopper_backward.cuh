// Flash attention, backward, on Hopper: one kernel, five products (Dao 2023). A block owns a pair of tiles of 128 keys
// and sums their dK and dV in registers; dQ is summed over blocks in device memory, in f32, by the copy engine: the
// blocks of a head take turns at each tile of queries in a fixed order (Walk), so results repeat bit for bit.
#pragma once

#include "kernels/attention_hopper_products.cuh"

namespace egmla::hopper {

// A part of this step's dQ goes to where backward_adds takes it from.
template <class Plan, int N>
__device__ __forceinline__ void stage_part(const float (&dq)[N], uint32_t sums, int first_value) {
  const uint32_t own = sums + 16 * (flash::fresh_thread() & (kGroupThreads - 1)) + 4 * kGroupThreads * first_value;
#pragma unroll
  for (int i = 0; i < N / 4; ++i)
    store_shared(own + 16 * kGroupThreads * i, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
}

// The last add to a part of dQ: columns from `column` on of the result.
template <class Plan, int N>
__device__ __forceinline__ void finish_part(const BackwardArguments& p, float (&dq)[N], const QueryTile& tile,
                                            int group, int first_value, int column) {
  const float4* const sums =
      reinterpret_cast<const float4*>(p.sums) + (flash::fresh_thread() & (kGroupThreads - 1)) +
      ((static_cast<int64_t>(tile.index) * Plan::kGroups + group) * QueryGradient<Plan>::kValues + first_value) *
          (kGroupThreads / 4);
  if (tile.rank > 0) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const float4 before = __ldcg(sums + i * kGroupThreads);
      dq[4 * i] += before.x;
      dq[4 * i + 1] += before.y;
      dq[4 * i + 2] += before.z;
      dq[4 * i + 3] += before.w;
    }
  }
  const float factor[2] = {p.scale, p.scale};
  const int row = tile.index / (p.tiles * Plan::kSubtiles);
  store_rows(p.q_grad.at(row / p.heads, row % p.heads), p.q_grad.row, p.q_grad.width, column, dq, factor,
             tile.place * Plan::BM + (QueryGradient<Plan>::kByRows ? 64 * group : 0), p.length);
}

// Starts S^T = K Q^T or dP^T = V dO^T of the tile of queries in a slot.
template <class Plan>
__device__ __forceinline__ void start_scores(float (&s)[Plan::BM / 2], const BackwardMemory<Plan>& memory, int slot,
                                             int group) {
  begin_products();
  start_transposed<Plan::QK>(s, memory.k() + group * tile_bytes(64, kPanel), tile_bytes(Plan::BN, kPanel),
                             memory.q(slot), tile_bytes(Plan::BM, kPanel));
  commit_products();
}
template <class Plan>
__device__ __forceinline__ void start_probability_gradients(float (&dp)[Plan::BM / 2],
                                                            const BackwardMemory<Plan>& memory, int slot, int group) {
  begin_products();
  start_transposed<Plan::V>(dp, memory.v() + group * tile_bytes(64, kPanel), tile_bytes(Plan::BN, kPanel),
                            memory.out_grad(slot), tile_bytes(Plan::BM, kPanel));
  commit_products();
}

// S^T becomes P^T, rounded.
template <class Plan>
__device__ __forceinline__ void finish_scores(const BackwardArguments& p, float (&s)[Plan::BM / 2], uint32_t lse,
                                              const QueryTile& tile, int key, uint32_t (&operand)[Plan::BM / 16][4]) {
  const int query = tile.place * Plan::BM;
  if (key + 63 > query) mask_past(s, key - query);
  if (p.document_start) {
    const int row = tile.index / (p.tiles * Plan::kSubtiles);
    const int* const starts = p.document_start + static_cast<int64_t>(row / p.heads) * p.length;
    if (starts[min(query + Plan::BM, p.length) - 1] > key) mask_earlier(s, starts, query, p.length - 1, key);
  }
  probabilities(s, lse, p.scale * 1.44269504088896341f);
  to_operand(operand, s);
}

// The tile of queries in a slot; sets whether it is the last for these keys.
template <class Plan>
__device__ __forceinline__ QueryTile tile_in_slot(const BackwardMemory<Plan>& memory, int slot, bool& more) {
  const int flags = load_shared(memory.tile(slot) + 12);
  more = !(flags & kLastOfKeys);
  return {load_shared(memory.tile(slot)), load_shared(memory.tile(slot) + 4), load_shared(memory.tile(slot) + 8),
          (flags & kLastAdd) != 0};
}

// dS^T, rounded, goes to shared memory and is announced; then dK's product starts.
template <class Plan>
__device__ __forceinline__ void finish_score_gradients(float (&dp)[Plan::BM / 2],
                                                       const uint32_t (&operand)[Plan::BM / 16][4],
                                                       const BackwardMemory<Plan>& memory, int slot, int group,
                                                       Split<Plan::QK>& dk) {
  score_gradients(dp, operand, memory.delta(slot));
  uint32_t ds[Plan::BM / 16][4];
  to_operand(ds, dp);
  store_scores<Plan>(memory.scores(), ds, group);
  publish_shared();
  sync_named(1 + group, kGroupThreads);
  if (arrives_for_warp()) arrive(memory.scores_full());
  begin_products();
  start_weighted<Plan::QK, Plan::BM / 16>(dk, memory.scores() + group * tile_bytes(64, kPanel),
                                          tile_bytes(Plan::BN, kPanel), memory.q(slot));
  commit_products();
}

// What a product warpgroup keeps from step to step.
template <class Plan>
struct BackwardState {
  Split<Plan::QK> dk;
  Split<Plan::V> dv;
  uint32_t steps = 0;   // done; they take the slots in turn
  uint32_t staged = 0;  // dQs handed to adders, which take them in turn
};

// Brings this warpgroup's part of dQ on its way, and both parts once the second has come: to an adder, or with the last
// add to the result.
template <class Plan>
struct Delivery {
  const BackwardArguments& p;
  const BackwardMemory<Plan>& memory;
  const QueryTile& tile;
  int group;
  using Gradient = QueryGradient<Plan>;

  __device__ __forceinline__ void main(Gradient& dq, uint32_t staged) const {
    if (tile.last) {
      if (tile.rank > 0) await_turn(p.turns + tile.index, tile.rank);
      finish_part<Plan>(p, dq.main, tile, group, 0, kPanel * Gradient::main_panel(group));
    } else {
      wait(memory.sums_empty(), ~staged & 1);
      stage_part<Plan>(dq.main, own_sums(), 0);
    }
  }
  __device__ __forceinline__ void extra(Gradient& dq) const {
    if (tile.last) {
      finish_part<Plan>(p, dq.extra, tile, group, 32, Gradient::extra_column(group));
    } else {
      stage_part<Plan>(dq.extra, own_sums(), 32);
    }
  }
  __device__ __forceinline__ void close(uint32_t& staged) const {
    if (tile.last) return;
    hand_over(memory, staged % 2, tile.index, tile.rank);
    ++staged;
  }
  __device__ __forceinline__ uint32_t own_sums() const { return memory.sums() + group * (Plan::kSums / Plan::kGroups); }
};

// One step: BM queries against this warpgroup's 64 keys from `key` on, and its share of dQ. False after the last one
// for these keys.
template <class Plan>
__device__ __forceinline__ bool backward_step(const BackwardArguments& p, const BackwardMemory<Plan> memory, int key,
                                              int group, BackwardState<Plan>& state) {
  static_assert(Plan::kStages == 2);
  constexpr bool kExtra = QueryGradient<Plan>::kExtra > 0;
  const int slot = state.steps & 1;
  const uint32_t parity = state.steps >> 1 & 1;
  float s[Plan::BM / 2], dp[Plan::BM / 2];
  uint32_t operand[Plan::BM / 16][4];
  wait(memory.q_full(slot), parity);
  start_scores<Plan>(s, memory, slot, group);
  bool more;
  const QueryTile tile = tile_in_slot(memory, slot, more);
  wait_products<0>();
  pin(s);
  finish_scores<Plan>(p, s, memory.lse(slot), tile, key, operand);
  wait(memory.out_full(slot), parity);
  start_probability_gradients<Plan>(dp, memory, slot, group);
  pin(operand);
  begin_products();
  start_weighted<Plan::V>(state.dv, operand, memory.out_grad(slot));
  commit_products();
  wait_products<1>();
  pin(dp);
  wait(memory.scores_empty(), ~state.steps & 1);
  finish_score_gradients<Plan>(dp, operand, memory, slot, group, state.dk);
  QueryGradient<Plan> dq;
  wait(memory.scores_full(), state.steps & 1);
  dq.start_main(memory.scores(), memory.k(), group);
  wait_products<1>();
  pin(state.dk);
  pin(state.dv);
  if (arrives_for_warp()) {
    arrive(memory.out_empty(slot));
    arrive(memory.q_empty(slot));
  }
  wait_products<0>();
  pin(dq.main);
  if constexpr (kExtra) dq.start_extra(memory.scores(), memory.k(), group);
  const Delivery<Plan> delivery{p, memory, tile, group};
  delivery.main(dq, state.staged);
  if constexpr (kExtra) {
    wait_products<0>();
    pin(dq.extra);
    delivery.extra(dq);
  }
  if (arrives_for_warp()) arrive(memory.scores_empty());
  delivery.close(state.staged);
  ++state.steps;
  return more;
}

template <class Plan>
__device__ __forceinline__ void backward_products(const BackwardArguments& p, const BackwardMemory<Plan> memory,
                                                  int row, int group) {
  BackwardState<Plan> state;
  for (uint32_t parity = 0;; parity ^= 1) {
    wait(memory.keys_full(), parity);
    const int n = load_shared(memory.key_tile());
    if (n < 0) break;
    const int key = n * Plan::BN + 64 * group;
    clear(state.dk);
    clear(state.dv);
    while (backward_step<Plan>(p, {fresh(memory.base)}, key, fresh(group), state)) {
    }  // every tile of keys meets its own queries at least
    if (arrives_for_warp()) arrive(memory.keys_empty());
    store_key_gradients<Plan>(p, state.dk, state.dv, row, key);
  }
  wait(memory.sums_empty(), ~state.staged & 1);
  for (uint32_t adder = 0; adder < 2; ++adder) hand_over(memory, adder, -1, 0);
}

template <class Plan>
__device__ __forceinline__ void backward_block(const BackwardArguments& p) {
  const BackwardMemory<Plan> memory{flash::dynamic_shared()};
  if (memory.base % 1024 != 0) __trap();  // the panels' swizzle counts on it, and no room is left to align
  const int role = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (threadIdx.x == 0) {
    init_barrier(memory.keys_full(), 1);
    init_barrier(memory.keys_empty(), Plan::kWarps * kWarpArrivals);
    init_barrier(memory.scores_full(), Plan::kWarps * kWarpArrivals);
    init_barrier(memory.scores_empty(), Plan::kWarps * kWarpArrivals);
    init_barrier(memory.sums_empty(), 1);
    for (int i = 0; i < 2; ++i) {  // slots, and adders
      init_barrier(memory.q_full(i), 1);
      init_barrier(memory.out_full(i), 1);
      init_barrier(memory.q_empty(i), Plan::kWarps * kWarpArrivals);
      init_barrier(memory.out_empty(i), Plan::kWarps * kWarpArrivals);
      init_barrier(memory.sums_full(i), Plan::kWarps * kWarpArrivals);
    }
    publish_barriers();
    // Blocks take work in the order in which they start: those that others wait for are always running.
    const int ticket = atomicAdd(p.turns + p.blocks_turn, 1);
    store_shared(memory.ticket(), ticket);
  }
  __syncthreads();
  const int ticket = load_shared(memory.ticket());
  if (role == 0) {
    give_registers<Plan::QK <= 128 ? 40 : 24>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (threadIdx.x == 0) backward_copies<Plan>(p, memory, {p, ticket / p.pairs, ticket % p.pairs, 0});
    if (threadIdx.x % 32 == 0 && (warp == 1 || warp == 2)) backward_adds<Plan>(p, memory, warp - 1);
  } else {
    take_registers<Plan::QK <= 128 ? 232 : 240>();
    backward_products<Plan>(p, memory, ticket / p.pairs, role - 1);
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1)
    attention_hopper_backward_kernel(const __grid_constant__ BackwardArguments p) {
  if constexpr (kCompiled) backward_block<Plan>(p);
}

// statistics: lse / ln 2 and delta = rowsum(out * out_grad), tile by tile, infinity and 0 beyond the last row; and the
// turns at zero. Sixteen lanes a row.
template <int BM>
__global__ void __launch_bounds__(256)
    attention_hopper_statistics_kernel(float* statistics, int* turns, int turn_count, const flash::Operand<Bf16> out,
                                       const flash::Operand<Bf16> out_grad, const float* lse, int length, int heads) {
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int row = static_cast<int>(blockIdx.x) * 16 + static_cast<int>(threadIdx.x) / 16;
  const int64_t bh = static_cast<int64_t>(b) * heads + h;
  const int64_t block = bh * gridDim.x + blockIdx.x, blocks = int64_t{gridDim.x} * gridDim.y * gridDim.z;
  for (int64_t i = block * 256 + threadIdx.x; i < turn_count; i += blocks * 256) turns[i] = 0;
  float sum = 0.0f;
  const int column = static_cast<int>(threadIdx.x) % 16 * 8;
  if (row < length && column < out.width) {
    const uint4 x = *reinterpret_cast<const uint4*>(out.at(b, h) + row * out.row + column);
    const uint4 y = *reinterpret_cast<const uint4*>(out_grad.at(b, h) + row * out_grad.row + column);
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sum += __uint_as_float(xs[i] << 16) * __uint_as_float(ys[i] << 16);
      sum += __uint_as_float(xs[i] & 0xffff0000u) * __uint_as_float(ys[i] & 0xffff0000u);
    }
  }
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  if (threadIdx.x % 16 != 0) return;
  const int64_t padded = int64_t{gridDim.x} * 16;  // a multiple of 128
  float* const tile = statistics + (bh * padded / BM + row / BM) * 2 * BM + row % BM;
  tile[0] = row < length ? lse[bh * length + row] * 1.44269504088896341f : INFINITY;
  tile[BM] = row < length ? sum : 0.0f;
}

}  // namespace egmla::hopper

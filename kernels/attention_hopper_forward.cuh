// Flash attention, forward, on Hopper (Shah et al. 2024). One block a multiprocessor draws tiles of 128 queries:
// a thread copies K and V ahead, and each of two warpgroups owns 64 of the queries. A warpgroup's next Q K^T runs
// beside its softmax and P V, and the warpgroups take turns, so that one's softmax hides the other's products. The
// output and its sums stay in registers; every tile has one owner, so results repeat bit for bit.
#pragma once

#include "kernels/attention_hopper.cuh"

namespace egmla::hopper {

struct ForwardArguments {
  CUtensorMap q, k, k_rope, v;  // k_rope: a copy of k where there is none
  flash::Operand<Bf16> out;
  float* lse;                                      // [B, H, Tq]
  int* ticket;                                     // at zero, and left so
  const int* document_start;                       // [B, Tq] or null
  int queries, keys, heads, group, rows_of_heads;  // rows_of_heads: B H
  int own_panels;                                  // of the keys; the following ones come from k_rope
  int section;                                     // heads whose keys and values the L2 cache holds at a time
  float scale;
};

template <int QK_, int V_, int kGroups_ = 2>
struct ForwardPlan {
  static constexpr int QK = QK_, V = V_, kGroups = kGroups_, BM = 64 * kGroups, BN = 128;
  static constexpr int kStages = QK * kGroups <= 192 ? 4 : QK <= 128 ? 3 : 2;  // as many as fit
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads;
  static constexpr uint32_t kQ = tile_bytes(BM, QK), kK = tile_bytes(BN, QK), kV = tile_bytes(BN, V);
  static constexpr uint32_t kShared = 1024 + kQ + kStages * (kK + kV) + 192;  // 1024: to align
};

// Places in shared memory.
template <class Plan>
struct ForwardMemory {
  uint32_t base;
  __device__ __forceinline__ uint32_t q() const { return base; }
  __device__ __forceinline__ uint32_t k(int slot) const { return base + Plan::kQ + slot * Plan::kK; }
  __device__ __forceinline__ uint32_t v(int slot) const {
    return base + Plan::kQ + Plan::kStages * Plan::kK + slot * Plan::kV;
  }
  __device__ __forceinline__ uint32_t barrier(int i) const {
    return base + Plan::kQ + Plan::kStages * (Plan::kK + Plan::kV) + 8 * i;
  }
  __device__ __forceinline__ uint32_t q_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t q_empty() const { return barrier(1); }
  __device__ __forceinline__ uint32_t k_full(int slot) const { return barrier(2 + slot); }
  __device__ __forceinline__ uint32_t k_empty(int slot) const { return barrier(2 + Plan::kStages + slot); }
  __device__ __forceinline__ uint32_t v_full(int slot) const { return barrier(2 + 2 * Plan::kStages + slot); }
  __device__ __forceinline__ uint32_t v_empty(int slot) const { return barrier(2 + 3 * Plan::kStages + slot); }
  __device__ __forceinline__ uint32_t index() const { return barrier(2 + 4 * Plan::kStages); }
};

// Tiles are numbered section by section, in each the longest rows first; blocks draw them in this order.
struct ForwardTile {
  int m0, head, batch, n_first, n_last;
};

template <class Plan>
__device__ __forceinline__ int forward_tiles(const ForwardArguments& p) {
  return (p.queries + Plan::BM - 1) / Plan::BM * p.rows_of_heads;
}

template <class Plan>
__device__ __forceinline__ ForwardTile forward_tile(const ForwardArguments& p, int index) {
  ForwardTile tile;
  const int rows = (p.queries + Plan::BM - 1) / Plan::BM;
  const int section = index / (p.section * rows), first = section * p.section;
  const int heads = min(p.section, p.rows_of_heads - first), place = index - first * rows;
  const int row = first + place % heads;
  tile.m0 = (rows - 1 - place / heads) * Plan::BM;
  tile.head = row % p.heads;
  tile.batch = row / p.heads;
  const int last = min(tile.m0 + Plan::BM, p.queries) - 1;
  tile.n_last = (last + p.keys - p.queries) / Plan::BN;
  tile.n_first =
      p.document_start ? p.document_start[static_cast<int64_t>(tile.batch) * p.queries + tile.m0] / Plan::BN : 0;
  return tile;
}

// One thread: draws tiles and fills the slots as they become free. A tile's number goes to the others with its queries.
template <class Plan>
__device__ __forceinline__ void forward_copies(const ForwardArguments& p, const ForwardMemory<Plan> memory) {
  Ring<Plan::kStages> ring;
  const int tiles = forward_tiles<Plan>(p);
  uint32_t round = 0;
  for (int index = static_cast<int>(blockIdx.x), next; index < tiles; index = next, round ^= 1) {
    const int drawn = atomicAdd(p.ticket, 1);  // long before it is needed
    next = drawn + static_cast<int>(gridDim.x);
    const ForwardTile tile = forward_tile<Plan>(p, index);
    const int key_head = tile.head / p.group;
    for (int n = tile.n_last; n >= tile.n_first; --n) {
      wait(memory.k_empty(ring.slot), ring.parity ^ 1);
      arrive_expecting(memory.k_full(ring.slot), Plan::kK);
#pragma unroll
      for (int i = 0; i < panels(Plan::QK); ++i) {
        const uint32_t target = memory.k(ring.slot) + i * tile_bytes(Plan::BN, kPanel);
        const bool own = i < p.own_panels;
        load_panel(target, own ? p.k : p.k_rope, kPanel * (own ? i : i - p.own_panels), own ? key_head : 0,
                   n * Plan::BN, tile.batch, memory.k_full(ring.slot));
      }
      if (n == tile.n_last) {
        wait(memory.q_empty(), round ^ 1);
        store_shared(memory.index(), index);
        arrive_expecting(memory.q_full(), Plan::kQ);
#pragma unroll
        for (int i = 0; i < panels(Plan::QK); ++i)
          load_panel(memory.q() + i * tile_bytes(Plan::BM, kPanel), p.q, kPanel * i, tile.head, tile.m0, tile.batch,
                     memory.q_full());
      }
      wait(memory.v_empty(ring.slot), ring.parity ^ 1);
      arrive_expecting(memory.v_full(ring.slot), Plan::kV);
#pragma unroll
      for (int i = 0; i < panels(Plan::V); ++i)
        load_panel(memory.v(ring.slot) + i * tile_bytes(Plan::BN, kPanel), p.v, kPanel * i, key_head, n * Plan::BN,
                   tile.batch, memory.v_full(ring.slot));
      ring.advance();
    }
    if (drawn == tiles - 1) *p.ticket = 0;  // the last draw of all
  }
  wait(memory.q_empty(), round ^ 1);
  store_shared(memory.index(), tiles);
  arrive(memory.q_full());
}

// Starts scores = Q K^T for this warpgroup's 64 queries.
template <class Plan>
__device__ __forceinline__ void start_scores(float (&s)[Plan::BN / 2], uint32_t q, uint32_t k) {
  constexpr uint32_t kQPanel = tile_bytes(Plan::BM, kPanel), kKPanel = tile_bytes(Plan::BN, kPanel);
  const uint64_t a = describe(q, 0), b = describe(k, 0);
#pragma unroll
  for (int i = 0; i < Plan::QK / 16; ++i)
    multiply_add<false, false>(s, step(a, column_offset(i, kQPanel)), step(b, column_offset(i, kKPanel)), i > 0);
}

// Starts out (+)= P V.
template <class Plan>
__device__ __forceinline__ void start_output(float (&out)[Plan::V / 2], const uint32_t (&probability)[Plan::BN / 16][4],
                                             uint32_t v, bool keep) {
  const uint64_t b = describe(v, tile_bytes(Plan::BN, kPanel));
#pragma unroll
  for (int i = 0; i < Plan::BN / 16; ++i) multiply_add(out, probability[i], step(b, i * kRowStep), keep || i > 0);
}

// Masks: `ahead` is the position of the warpgroup's first row less that of the tile's first key.
template <int N>
__device__ __forceinline__ void mask_future(float (&s)[N], int ahead) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) % kGroupThreads / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int last = ahead + 16 * warp + lane / 4 + 8 * half - 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (8 * n + c > last) s[4 * n + 2 * half + c] = -INFINITY;
      }
    }
  }
}

template <int N>
__device__ __forceinline__ void mask_documents(float (&s)[N], const int* starts, int row, int last_row, int key) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) % kGroupThreads / 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int first = starts[min(row + 16 * warp + lane / 4 + 8 * half, last_row)] - key - 2 * (lane % 4);
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        if (8 * n + c < first) s[4 * n + 2 * half + c] = -INFINITY;
      }
    }
  }
}

// Scores become unnormalised probabilities; `rescale` is what earlier sums must be multiplied by. `sum` holds this
// lane's share.
template <int N>
__device__ __forceinline__ void online_softmax(float (&s)[N], float (&largest)[2], float (&sum)[2], float (&rescale)[2],
                                               float scale2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = largest[half];
#pragma unroll
    for (int n = 0; n < N / 4; ++n) top = fmaxf(top, fmaxf(s[4 * n + 2 * half], s[4 * n + 2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    const float shift = top == -INFINITY ? 0.0f : top * scale2;  // a row may see no key of this tile
    rescale[half] = flash::power_of_two(largest[half] * scale2 - shift);
    largest[half] = top;
    float total = sum[half] * rescale[half];
#pragma unroll
    for (int n = 0; n < N / 4; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float& x = s[4 * n + 2 * half + c];
        x = flash::power_of_two(x * scale2 - shift);
        total += x;
      }
    }
    sum[half] = total;
  }
}

// A tile's sums are complete: sum becomes 1 / sum, lse is written.
__device__ __forceinline__ void finish_softmax(const ForwardArguments& p, const ForwardTile& tile, int row,
                                               const float (&largest)[2], float (&sum)[2]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) % kGroupThreads / 32;
  float* const lse = p.lse + (static_cast<int64_t>(tile.batch) * p.heads + tile.head) * p.queries;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float total = sum[half];
    total += __shfl_xor_sync(0xffffffffu, total, 1);
    total += __shfl_xor_sync(0xffffffffu, total, 2);
    const int i = row + 16 * warp + lane / 4 + 8 * half;
    if (i < p.queries && lane % 4 == 0) lse[i] = largest[half] * p.scale + logf(total);
    sum[half] = 1.0f / total;
  }
}

// The warpgroups' turns at the tensor cores: named barrier 1 + g lets warpgroup g start its products.
template <class Plan>
struct Turns {
  int group;
  __device__ __forceinline__ void take() const { sync_named(1 + group, 2 * kGroupThreads); }
  __device__ __forceinline__ void pass() const { arrive_named(1 + (group + 1) % Plan::kGroups, 2 * kGroupThreads); }
};

template <class Plan>
__device__ __forceinline__ void forward_products(const ForwardArguments& p, const ForwardMemory<Plan> memory,
                                                 int group) {
  constexpr int BN = Plan::BN;
  const float scale2 = p.scale * 1.44269504088896341f;
  const int shift = p.keys - p.queries;
  const bool signals = arrives_for_warp(static_cast<int>(threadIdx.x % 32));
  const uint32_t q = memory.q() + static_cast<uint32_t>(group) * tile_bytes(64, kPanel);
  const Turns<Plan> turns{group};
  Ring<Plan::kStages> ring;
  if (group == Plan::kGroups - 1) turns.pass();
  for (uint32_t round = 0;; round ^= 1) {
    wait(memory.q_full(), round);
    const int index = load_shared(memory.index());
    if (index == forward_tiles<Plan>(p)) break;
    const ForwardTile tile = forward_tile<Plan>(p, index);
    const int row = tile.m0 + 64 * group;
    const int* const starts =
        p.document_start ? p.document_start + static_cast<int64_t>(tile.batch) * p.queries : nullptr;
    const int last_start = starts ? starts[min(tile.m0 + Plan::BM, p.queries) - 1] : 0;
    float s[BN / 2], out[Plan::V / 2], largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f}, rescale[2];
    uint32_t probability[BN / 16][4];
    const auto mask = [&](int n) {
      if (n * BN + BN - 1 > row + shift) mask_future(s, row + shift - n * BN);
      if (n * BN < last_start) mask_documents(s, starts, row, p.queries - 1, n * BN);
    };
    const int n_last = (min(row + 63, p.queries - 1) + shift) / BN;
    for (int n = tile.n_last; n > n_last; --n) {  // keys after all of these queries, but not of another warpgroup's
      wait(memory.k_full(ring.slot), ring.parity);
      wait(memory.v_full(ring.slot), ring.parity);
      if (signals) {
        arrive(memory.k_empty(ring.slot));
        arrive(memory.v_empty(ring.slot));
      }
      ring.advance();
      turns.take();
      turns.pass();
    }
    wait(memory.k_full(ring.slot), ring.parity);
    turns.take();
    begin_products();
    start_scores<Plan>(s, q, memory.k(ring.slot));
    commit_products();
    turns.pass();
    wait_products<0>();
    pin(s);
    if (signals) arrive(memory.k_empty(ring.slot));
    mask(n_last);
    online_softmax(s, largest, sum, rescale, scale2);
    to_operand(probability, s);
    bool keep = false;
    for (int n = n_last - 1; n >= tile.n_first; --n) {
      const Ring<Plan::kStages> previous = ring;
      ring.advance();
      wait(memory.k_full(ring.slot), ring.parity);
      turns.take();
      begin_products();
      start_scores<Plan>(s, q, memory.k(ring.slot));
      commit_products();
      wait(memory.v_full(previous.slot), previous.parity);
      pin(probability);
      begin_products();
      start_output<Plan>(out, probability, memory.v(previous.slot), keep);
      commit_products();
      turns.pass();
      keep = true;
      wait_products<1>();
      pin(s);
      if (signals) arrive(memory.k_empty(ring.slot));
      mask(n);
      online_softmax(s, largest, sum, rescale, scale2);
      wait_products<0>();
      pin(out);
      if (signals) arrive(memory.v_empty(previous.slot));
#pragma unroll
      for (int i = 0; i < Plan::V / 2; ++i) out[i] *= rescale[i / 2 % 2];
      to_operand(probability, s);
    }
    if (signals) arrive(memory.q_empty());
    wait(memory.v_full(ring.slot), ring.parity);
    pin(probability);
    begin_products();
    start_output<Plan>(out, probability, memory.v(ring.slot), keep);
    commit_products();
    finish_softmax(p, tile, row, largest, sum);
    wait_products<0>();
    pin(out);
    if (signals) arrive(memory.v_empty(ring.slot));
    ring.advance();
    store_rows(p.out.at(tile.batch, tile.head), p.out.row, p.out.width, 0, out, sum, row, p.queries);
  }
  if (group == 0) turns.take();  // the last turn passed is taken, so that the barrier ends as it began
}

template <class Plan>
__device__ __forceinline__ void forward_block(const ForwardArguments& p) {
  const ForwardMemory<Plan> memory{aligned_shared()};
  const int role = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (threadIdx.x == 0) {
    init_barrier(memory.q_full(), 1);
    init_barrier(memory.q_empty(), 4 * Plan::kGroups * kWarpArrivals);
    for (int slot = 0; slot < Plan::kStages; ++slot) {
      init_barrier(memory.k_full(slot), 1);
      init_barrier(memory.v_full(slot), 1);
      init_barrier(memory.k_empty(slot), 4 * Plan::kGroups * kWarpArrivals);
      init_barrier(memory.v_empty(slot), 4 * Plan::kGroups * kWarpArrivals);
    }
    publish_barriers();
  }
  __syncthreads();
  if (role == 0) {
    give_registers<Plan::kGroups == 2 ? 40 : 32>();
    if (threadIdx.x == 0) forward_copies<Plan>(p, memory);
  } else {
    take_registers<Plan::kGroups == 2 ? 232 : 160>();
    forward_products<Plan>(p, memory, role - 1);
  }
}

template <class Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1)
    attention_hopper_forward_kernel(const __grid_constant__ ForwardArguments p) {
  if constexpr (kCompiled) forward_block<Plan>(p);
}

}  // namespace egmla::hopper

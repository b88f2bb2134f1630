// Flash attention, backward, on Hopper: one kernel, five products (Dao 2023). A block owns a pair of tiles of 128 keys
// and sums their dK and dV in registers; dQ is summed over blocks in device memory, in f32, by red.add: the blocks of a
// head take turns at each tile of queries in an order fixed by AddOrder below, so results repeat bit for bit. The order
// is such that blocks running in step never wait: no two come to one tile at the same time.
#pragma once

#include "kernels/attention_hopper.cuh"

namespace egmla::hopper {

struct BackwardArguments {
  CUtensorMap q, k, k_rope, v, out_grad;  // k_rope: a copy of k where there is none
  flash::Operand<Bf16> q_grad, k_grad, v_grad;
  float* rope_partials;     // [B, Hkv, T, rope_width], summed over the key heads afterwards
  float* statistics;        // [B, H, tiles of BM queries, 2, BM]: lse / ln 2, then delta
  float* sums;              // [B, H, tiles of BM queries, BM QK] in the order of registers
  int* turns;               // [B, H, tiles of BM queries]: adds done so far; then the next free block
  const int* document_start;  // [B, T] or null
  int length, heads, group, key_heads, own_panels, rope_width;
  int tiles, pairs;  // of keys: ceil(T / 128) and half of that, rounded up
  int blocks_turn;   // place of the next free block in turns
  float scale;
};

template <int QK_, int V_, int BM_>
struct BackwardPlan {
  static constexpr int QK = QK_, V = V_, BM = BM_, BN = 128, kGroups = 2, kStages = 2;
  static constexpr int kThreads = (kGroups + 1) * kGroupThreads, kWarps = 4 * kGroups, kSubtiles = BN / BM;
  static constexpr bool kOverlapped = QK % 64 == 0 && QK <= 128;  // dQ runs beside the next softmax: registers allow it
  static constexpr int kScoreSlots = kOverlapped ? 2 : 1, kSumSlots = kOverlapped ? 2 : 1;  // memory allows
  static constexpr uint32_t kK = tile_bytes(BN, QK), kV = tile_bytes(BN, V);
  static constexpr uint32_t kQ = tile_bytes(BM, QK), kOut = tile_bytes(BM, V), kStatistics = 8 * BM;
  static constexpr uint32_t kScores = tile_bytes(BN, BM);  // dS^T: rows are keys
  static constexpr uint32_t kSums = BM * QK * 4;  // dQ, on its way to memory; one half each warpgroup's
  static constexpr uint32_t kShared =
      kK + kV + kStages * (kQ + kOut + kStatistics) + kScoreSlots * kScores + kSumSlots * kSums + 208;
};

template <class Plan>
struct BackwardMemory {
  uint32_t base;
  static constexpr uint32_t kQPlace = Plan::kK + Plan::kV, kOutPlace = kQPlace + Plan::kStages * Plan::kQ,
                            kScorePlace = kOutPlace + Plan::kStages * Plan::kOut,
                            kSumPlace = kScorePlace + Plan::kScoreSlots * Plan::kScores,
                            kStatisticPlace = kSumPlace + Plan::kSumSlots * Plan::kSums,
                            kBarrierPlace = kStatisticPlace + Plan::kStages * Plan::kStatistics;
  __device__ __forceinline__ uint32_t k() const { return base; }
  __device__ __forceinline__ uint32_t v() const { return base + Plan::kK; }
  __device__ __forceinline__ uint32_t q(int slot) const { return base + kQPlace + slot * Plan::kQ; }
  __device__ __forceinline__ uint32_t out_grad(int slot) const { return base + kOutPlace + slot * Plan::kOut; }
  __device__ __forceinline__ uint32_t scores(int slot) const { return base + kScorePlace + slot * Plan::kScores; }
  __device__ __forceinline__ uint32_t sums(int slot) const { return base + kSumPlace + slot * Plan::kSums; }
  __device__ __forceinline__ uint32_t lse(int slot) const { return base + kStatisticPlace + slot * Plan::kStatistics; }
  __device__ __forceinline__ uint32_t delta(int slot) const { return lse(slot) + 4 * Plan::BM; }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + kBarrierPlace + 8 * i; }
  __device__ __forceinline__ uint32_t keys_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t keys_empty() const { return barrier(1); }
  __device__ __forceinline__ uint32_t q_full(int slot) const { return barrier(2 + slot); }
  __device__ __forceinline__ uint32_t q_empty(int slot) const { return barrier(4 + slot); }
  __device__ __forceinline__ uint32_t out_full(int slot) const { return barrier(6 + slot); }
  __device__ __forceinline__ uint32_t out_empty(int slot) const { return barrier(8 + slot); }
  __device__ __forceinline__ uint32_t scores_full(int slot) const { return barrier(10 + slot); }
  __device__ __forceinline__ uint32_t scores_empty() const { return barrier(12); }
  __device__ __forceinline__ uint32_t sums_full(int adder) const { return barrier(13 + adder); }
  __device__ __forceinline__ uint32_t sums_empty(int slot) const { return barrier(15 + slot); }
  // What the copying thread tells the warpgroups, and those the adding threads.
  __device__ __forceinline__ uint32_t ticket() const { return barrier(17); }
  __device__ __forceinline__ uint32_t tile(int slot) const { return barrier(18 + 2 * slot); }
  __device__ __forceinline__ uint32_t key_tile() const { return barrier(22); }
  __device__ __forceinline__ uint32_t add(int adder) const { return barrier(23 + adder); }
};

struct Step {
  int head, m;          // the query head of the group and the tile of queries
  int rank, last_rank;  // which of the adds to its dQ, and the last one's rank
};

// What a block does. Block j of P pairs owns key tiles 2P - 1 - j and j, so that all blocks do equal work. With one
// step a tile of queries, and all blocks of a head in step:
//   A: keys 2P - 1 - j, queries from the diagonal on;
//   B: keys j, queries P - 1 down to the diagonal;
//   C: keys j, queries P + (j + s) mod P for s = 0, 1, ..., P - 1, a Latin square.
// A tile of queries m thus meets, one step after another, in A the keys m, m - 1, ..., P, in B the keys 0, ..., m, in C
// the keys m - P, m - P - 1, ... mod P; `rank` counts them. Steps beyond the last tile are left out. As every tile's
// order agrees with the steps' order, the blocks of a head, running at once, cannot wait for each other in a circle. Tiles
// that documents part are left out of the steps and of the ranks.
struct Walk {
  const BackwardArguments& p;
  int row, j, n;  // row: b Hkv + the key head; n: the key tile

  // False where the tile does not exist.
  __device__ __forceinline__ bool start(bool lower) {
    n = lower ? j : 2 * p.pairs - 1 - j;
    return n < p.tiles;
  }
  __device__ __forceinline__ int steps() const { return p.group * (n == j ? 2 * p.pairs - j : p.tiles - n); }
  // False where the tile of queries does not exist, or all its documents begin after these keys.
  __device__ __forceinline__ bool at(int i, Step& step) const {
    const int triangle = p.group * (p.pairs - j), square = i - triangle;
    if (n > j) {
      step.head = i / (p.tiles - n);
      step.m = n + i % (p.tiles - n);
    } else if (square < 0) {
      step.head = i / (p.pairs - j);
      step.m = p.pairs - 1 - i % (p.pairs - j);
    } else {
      step.head = square / p.pairs;
      step.m = p.pairs + (j + square) % p.pairs;
    }
    if (step.m >= p.tiles) return false;
    const int first = first_keys(step.m), turn = step.m - p.pairs;
    if (n < first) return false;
    step.last_rank = step.m - first;
    if (n > j) {
      step.rank = step.m - n;
    } else if (square < 0) {
      step.rank = n - first;
    } else {
      step.rank = turn + 1 + (n <= turn ? turn - n : max(0, turn - first + 1) + p.pairs - 1 - n);
    }
    return true;
  }
  // The first tile of keys that any of these queries sees.
  __device__ __forceinline__ int first_keys(int m) const {
    return p.document_start ? p.document_start[static_cast<int64_t>(row / p.key_heads) * p.length + m * 128] / 128 : 0;
  }
};

// A tile of BM queries: its index among all, its place in the sequence, and which of the adds to its dQ is due.
struct QueryTile {
  int index, place, rank;
  bool last;
};
enum TileFlags : int { kLastAdd = 1, kLastOfKeys = 2 };

// The walk in tiles of BM queries.
template <class Plan>
struct Cursor {
  int i = -1, sub = Plan::kSubtiles;
  // False at the end.
  __device__ __forceinline__ bool next(const Walk& walk, QueryTile& tile) {
    Step step;
    if (++sub < Plan::kSubtiles) {
      walk.at(i, step);
      if ((step.m * Plan::kSubtiles + sub) * Plan::BM < walk.p.length) return take(walk, step, tile);
    }
    sub = 0;
    const int steps = walk.steps();
    while (++i < steps) {
      if (walk.at(i, step)) return take(walk, step, tile);
    }
    return false;
  }

 private:
  __device__ __forceinline__ bool take(const Walk& walk, const Step& step, QueryTile& tile) const {
    tile.place = step.m * Plan::kSubtiles + sub;
    tile.index = (walk.row * walk.p.group + step.head) * walk.p.tiles * Plan::kSubtiles + tile.place;
    tile.rank = step.rank;
    tile.last = step.rank == step.last_rank;
    return true;
  }
};

// One thread: fills the slots as they become free.
template <class Plan>
__device__ __forceinline__ void backward_copies(const BackwardArguments& p, const BackwardMemory<Plan> memory,
                                                Walk walk) {
  const int batch = walk.row / p.key_heads, key_head = walk.row % p.key_heads;
  Ring<Plan::kStages> ring;
  uint32_t turn = 0;
  for (int half = 0; half < 2; ++half) {
    if (!walk.start(half == 1)) continue;
    wait(memory.keys_empty(), turn ^ 1);
    turn ^= 1;
    store_shared(memory.key_tile(), walk.n);
    arrive_expecting(memory.keys_full(), Plan::kK + Plan::kV);
#pragma unroll
    for (int i = 0; i < panels(Plan::QK); ++i) {
      const bool own = i < p.own_panels;
      load_panel(memory.k() + i * tile_bytes(Plan::BN, kPanel), own ? p.k : p.k_rope,
                 kPanel * (own ? i : i - p.own_panels), own ? key_head : 0, walk.n * Plan::BN, batch,
                 memory.keys_full());
    }
#pragma unroll
    for (int i = 0; i < panels(Plan::V); ++i)
      load_panel(memory.v() + i * tile_bytes(Plan::BN, kPanel), p.v, kPanel * i, key_head, walk.n * Plan::BN, batch,
                 memory.keys_full());
    Cursor<Plan> cursor;
    QueryTile tile, next;
    for (bool more = cursor.next(walk, tile); more; tile = next) {
      more = cursor.next(walk, next);
      const int head = tile.index / (p.tiles * Plan::kSubtiles) % p.heads, query = tile.place * Plan::BM;
      wait(memory.q_empty(ring.slot), ring.parity ^ 1);
      store_shared(memory.tile(ring.slot), tile.index, tile.place, tile.rank,
                   (tile.last ? kLastAdd : 0) | (more ? 0 : kLastOfKeys));
      arrive_expecting(memory.q_full(ring.slot), Plan::kQ + Plan::kStatistics);
#pragma unroll
      for (int c = 0; c < panels(Plan::QK); ++c)
        load_panel(memory.q(ring.slot) + c * tile_bytes(Plan::BM, kPanel), p.q, kPanel * c, head, query, batch,
                   memory.q_full(ring.slot));
      load_bytes(memory.lse(ring.slot), p.statistics + static_cast<int64_t>(tile.index) * 2 * Plan::BM, Plan::kStatistics,
                 memory.q_full(ring.slot));
      wait(memory.out_empty(ring.slot), ring.parity ^ 1);
      arrive_expecting(memory.out_full(ring.slot), Plan::kOut);
#pragma unroll
      for (int c = 0; c < panels(Plan::V); ++c)
        load_panel(memory.out_grad(ring.slot) + c * tile_bytes(Plan::BM, kPanel), p.out_grad, kPanel * c, head, query,
                   batch, memory.out_full(ring.slot));
      ring.advance();
    }
  }
  wait(memory.keys_empty(), turn ^ 1);
  store_shared(memory.key_tile(), -1);
  arrive(memory.keys_full());
}

// ---- the steps of a product warpgroup ----

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

  static __device__ __forceinline__ int main_panel(int group) {
    return kByRows ? 0 : kExtra ? 2 * group : group;
  }
  static __device__ __forceinline__ int extra_column(int group) { return kByRows ? 64 : 64 + 32 * group; }

  static __device__ __forceinline__ uint64_t left(uint32_t scores, int group) {
    return describe(scores + (kByRows ? group * kPanelBytes : 0), kPanelBytes);
  }
  __device__ __forceinline__ void start_main(uint32_t scores, uint32_t keys, int group) {
    begin_products();
    queue_main(scores, keys, group);
    commit_products();
  }
  __device__ __forceinline__ void start_extra(uint32_t scores, uint32_t keys, int group) {
    begin_products();
    queue_extra(scores, keys, group);
    commit_products();
  }
  __device__ __forceinline__ void start(uint32_t scores, uint32_t keys, int group) {
    begin_products();
    queue_main(scores, keys, group);
    if constexpr (kExtra > 0) queue_extra(scores, keys, group);
    commit_products();
  }
  __device__ __forceinline__ void pin_all() {
    pin(main);
    if constexpr (kExtra > 0) pin(extra);
  }

 private:
  __device__ __forceinline__ void queue_main(uint32_t scores, uint32_t keys, int group) {
    const uint64_t a = left(scores, group), b = describe(keys + main_panel(group) * kPanelBytes, kPanelBytes);
#pragma unroll
    for (int i = 0; i < Plan::BN / 16; ++i)
      multiply_add<true, true>(main, step(a, i * kRowStep), step(b, i * kRowStep), i > 0);
  }
  __device__ __forceinline__ void queue_extra(uint32_t scores, uint32_t keys, int group) {
    const uint64_t a = left(scores, group), b = describe(keys + kPanelBytes + (kByRows ? 0 : 64 * group), kPanelBytes);
#pragma unroll
    for (int i = 0; i < Plan::BN / 16; ++i)
      multiply_add<true, true>(extra, step(a, i * kRowStep), step(b, i * kRowStep), i > 0);
  }
};

// Until `rank` adds to a tile's sums are done.
__device__ __forceinline__ void await_turn(const int* turn, int rank) {
  int done;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(done) : "l"(turn) : "memory");
  } while (done < rank);
}

// Two threads, in turn: an add takes longer than a step until others may see it. Each takes dQ from shared memory and
// adds it when its turn has come.
template <class Plan>
__device__ __forceinline__ void backward_adds(const BackwardArguments& p, const BackwardMemory<Plan> memory,
                                              int adder) {
  const int slot = adder % Plan::kSumSlots;
  for (uint32_t parity = 0;; parity ^= 1) {
    wait(memory.sums_full(adder), parity);
    const int tile = load_shared(memory.add(adder)), rank = load_shared(memory.add(adder) + 4);
    if (tile < 0) return;
    float* const target = p.sums + static_cast<int64_t>(tile) * (Plan::kSums / 4);
    if (rank == 0) {
      store_bytes(target, memory.sums(slot), Plan::kSums);
    } else {
      await_turn(p.turns + tile, rank);
      publish_all();
      add_bytes(target, memory.sums(slot), Plan::kSums);
    }
    commit_copies();
    wait_copies_read();
    arrive(memory.sums_empty(slot));
    wait_copies_done();
    publish_all();
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(p.turns + tile) : "memory");
  }
}

// Hands what stands in shared memory to an adder, or the end of the work: tile -1.
template <class Plan>
__device__ __forceinline__ void hand_over(const BackwardMemory<Plan>& memory, int adder, int tile, int rank) {
  publish_shared();
  __syncwarp();
  if (flash::fresh_thread() == kGroupThreads) {  // the first of the first warpgroup's
    store_shared(memory.add(adder), tile);
    store_shared(memory.add(adder) + 4, rank);
  }
  if (leads_warp()) arrive(memory.sums_full(adder));
}

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
__device__ __forceinline__ void finish_part(const BackwardArguments& p, float (&dq)[N], const QueryTile& tile, int group,
                                            int first_value, int column) {
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
    for (int e = 0; e < 4; ++e)
      s[4 * n + e] = flash::power_of_two(s[4 * n + e] * scale2 - (e % 2 ? at.y : at.x));
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
      if (row < end && place < width) *reinterpret_cast<float2*>(target + static_cast<int64_t>(row) * width + place) = pair;
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
  float* const partials =
      p.rope_partials + static_cast<int64_t>(row) * p.length * p.rope_width;
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
                                                       const BackwardMemory<Plan>& memory, int slot, int score_slot,
                                                       int group, Split<Plan::QK>& dk) {
  score_gradients(dp, operand, memory.delta(slot));
  uint32_t ds[Plan::BM / 16][4];
  to_operand(ds, dp);
  store_scores<Plan>(memory.scores(score_slot), ds, group);
  publish_shared();
  sync_named(1 + group, kGroupThreads);
  if (leads_warp()) arrive(memory.scores_full(score_slot));
  begin_products();
  start_weighted<Plan::QK, Plan::BM / 16>(dk, memory.scores(score_slot) + group * tile_bytes(64, kPanel),
                                          tile_bytes(Plan::BN, kPanel), memory.q(slot));
  commit_products();
}

// What a product warpgroup keeps from step to step.
template <class Plan>
struct BackwardState {
  Split<Plan::QK> dk;
  Split<Plan::V> dv;
  uint32_t steps = 0;   // done; they take the slots in turn
  uint32_t staged = 0;  // dQs handed to backward_adds
  int pending = -1;     // index of the tile whose dQ is still to come, or -1: none
  int pending_rank = 0;
  bool pending_last = false;
};

// Brings dQ of a tile on its way: part by part, then closed.
template <class Plan>
struct Delivery {
  const BackwardArguments& p;
  const BackwardMemory<Plan>& memory;
  const QueryTile& tile;
  int group;
  using Gradient = QueryGradient<Plan>;

  __device__ __forceinline__ void main(Gradient& dq, const BackwardState<Plan>& state) const {
    if (tile.last) {
      if (tile.rank > 0) await_turn(p.turns + tile.index, tile.rank);
      finish_part<Plan>(p, dq.main, tile, group, 0, kPanel * Gradient::main_panel(group));
    } else {
      wait(memory.sums_empty(state.staged % Plan::kSumSlots), ~(state.staged / Plan::kSumSlots) & 1);
      stage_part<Plan>(dq.main, staging(state), 0);
    }
  }
  __device__ __forceinline__ void extra(Gradient& dq, const BackwardState<Plan>& state) const {
    if constexpr (Gradient::kExtra > 0) {
      if (tile.last) {
        finish_part<Plan>(p, dq.extra, tile, group, 32, Gradient::extra_column(group));
      } else {
        stage_part<Plan>(dq.extra, staging(state), 32);
      }
    }
  }
  __device__ __forceinline__ void close(BackwardState<Plan>& state) const {
    if (tile.last) return;
    hand_over(memory, state.staged % 2, tile.index, tile.rank);
    ++state.staged;
  }
  // This warpgroup's half.
  __device__ __forceinline__ uint32_t staging(const BackwardState<Plan>& state) const {
    return memory.sums(state.staged % Plan::kSumSlots) + group * (Plan::kSums / Plan::kGroups);
  }
};

template <class Plan>
__device__ __forceinline__ void deliver_pending(const BackwardArguments& p, const BackwardMemory<Plan>& memory,
                                                QueryGradient<Plan>& dq, int group, BackwardState<Plan>& state) {
  const QueryTile tile{state.pending, state.pending % (p.tiles * Plan::kSubtiles), state.pending_rank,
                       state.pending_last};
  const Delivery<Plan> delivery{p, memory, tile, group};
  delivery.main(dq, state);
  delivery.extra(dq, state);
  delivery.close(state);
}

// One step of BM queries against this warpgroup's 64 keys from `key` on, in which dQ of the step before is summed. The
// tensor cores always have something to do: that dQ during softmax, dP and dV while it leaves, dV during dS.
template <class Plan>
__device__ __forceinline__ bool overlapped_step(const BackwardArguments& p, const BackwardMemory<Plan> memory, int key,
                                                int group, BackwardState<Plan>& state) {
  static_assert(Plan::kStages == 2 && Plan::kScoreSlots == 2);
  const int slot = state.steps & 1, before = slot ^ 1;
  const uint32_t parity = state.steps >> 1 & 1;
  const bool pending = state.pending >= 0;
  float s[Plan::BM / 2], dp[Plan::BM / 2];
  uint32_t operand[Plan::BM / 16][4];
  QueryGradient<Plan> dq;
  wait(memory.q_full(slot), parity);
  start_scores<Plan>(s, memory, slot, group);
  bool more;
  const QueryTile tile = tile_in_slot(memory, slot, more);
  if (pending) wait(memory.scores_full(before), (state.steps - 1) >> 1 & 1);
  dq.start(memory.scores(before), memory.k(), group);  // at first of whatever is there, for nothing
  wait_products<1>();
  pin(s);
  finish_scores<Plan>(p, s, memory.lse(slot), tile, key, operand);
  wait(memory.out_full(slot), parity);
  start_probability_gradients<Plan>(dp, memory, slot, group);
  pin(operand);
  begin_products();
  start_weighted<Plan::V>(state.dv, operand, memory.out_grad(slot));
  commit_products();
  wait_products<2>();
  dq.pin_all();
  if (pending) deliver_pending(p, memory, dq, group, state);
  wait_products<1>();
  pin(dp);
  finish_score_gradients<Plan>(dp, operand, memory, slot, slot, group, state.dk);
  wait_products<0>();
  pin(state.dk);
  pin(state.dv);
  if (leads_warp()) {
    arrive(memory.out_empty(slot));
    arrive(memory.q_empty(slot));
  }
  state.pending = tile.index;
  state.pending_rank = tile.rank;
  state.pending_last = tile.last;
  ++state.steps;
  return more;
}

// dQ of the last step of a tile of keys.
template <class Plan>
__device__ __forceinline__ void finish_steps(const BackwardArguments& p, const BackwardMemory<Plan> memory, int group,
                                             BackwardState<Plan>& state) {
  const int slot = (state.steps - 1) & 1;
  QueryGradient<Plan> dq;
  wait(memory.scores_full(slot), (state.steps - 1) >> 1 & 1);
  dq.start(memory.scores(slot), memory.k(), group);
  wait_products<0>();
  dq.pin_all();
  deliver_pending(p, memory, dq, group, state);
}

// One step that keeps fewer sums at a time: dQ follows dS at once.
template <class Plan>
__device__ __forceinline__ bool plain_step(const BackwardArguments& p, const BackwardMemory<Plan> memory, int key,
                                           int group, BackwardState<Plan>& state) {
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
  finish_score_gradients<Plan>(dp, operand, memory, slot, 0, group, state.dk);
  QueryGradient<Plan> dq;
  wait(memory.scores_full(0), state.steps & 1);
  dq.start_main(memory.scores(0), memory.k(), group);
  wait_products<1>();
  pin(state.dk);
  pin(state.dv);
  if (leads_warp()) {
    arrive(memory.out_empty(slot));
    arrive(memory.q_empty(slot));
  }
  wait_products<0>();
  pin(dq.main);
  const Delivery<Plan> delivery{p, memory, tile, group};
  if constexpr (QueryGradient<Plan>::kExtra > 0) dq.start_extra(memory.scores(0), memory.k(), group);
  delivery.main(dq, state);
  wait_products<0>();
  if constexpr (QueryGradient<Plan>::kExtra > 0) pin(dq.extra);
  if (leads_warp()) arrive(memory.scores_empty());
  delivery.extra(dq, state);
  delivery.close(state);
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
    state.pending = -1;
    bool more;
    do {  // every tile of keys meets its own queries at least
      const BackwardMemory<Plan> here{fresh(memory.base)};
      if constexpr (Plan::kOverlapped) {
        more = overlapped_step<Plan>(p, here, key, fresh(group), state);
      } else {
        more = plain_step<Plan>(p, here, key, fresh(group), state);
      }
    } while (more);
    if constexpr (Plan::kOverlapped) finish_steps<Plan>(p, memory, group, state);
    if (leads_warp()) arrive(memory.keys_empty());
    store_key_gradients<Plan>(p, state.dk, state.dv, row, key);
  }
  for (int i = 0; i < 2; ++i, ++state.staged) {
    if (i < Plan::kSumSlots)
      wait(memory.sums_empty(state.staged % Plan::kSumSlots), ~(state.staged / Plan::kSumSlots) & 1);
    hand_over(memory, state.staged % 2, -1, 0);
  }
}

template <class Plan>
__device__ __forceinline__ void backward_block(const BackwardArguments& p) {
  const BackwardMemory<Plan> memory{flash::dynamic_shared()};
  if (memory.base % 1024 != 0) __trap();  // the panels' swizzle counts on it, and no room is left to align
  const int role = static_cast<int>(threadIdx.x) / kGroupThreads;
  if (threadIdx.x == 0) {
    init_barrier(memory.keys_full(), 1);
    init_barrier(memory.keys_empty(), Plan::kWarps);
    init_barrier(memory.scores_empty(), Plan::kWarps);
    for (int i = 0; i < 2; ++i) {
      init_barrier(memory.sums_full(i), Plan::kWarps);
      init_barrier(memory.sums_empty(i), 1);
    }
    for (int slot = 0; slot < Plan::kStages; ++slot) {
      init_barrier(memory.q_full(slot), 1);
      init_barrier(memory.out_full(slot), 1);
      init_barrier(memory.scores_full(slot), Plan::kWarps);
      init_barrier(memory.q_empty(slot), Plan::kWarps);
      init_barrier(memory.out_empty(slot), Plan::kWarps);
    }
    publish_barriers();
    // Blocks take work in the order in which they start: those that others wait for are always running.
    const int ticket = atomicAdd(p.turns + p.blocks_turn, 1);
    store_shared(memory.ticket(), ticket);
  }
  __syncthreads();
  const int ticket = load_shared(memory.ticket());
  if (role == 0) {
    give_registers<24>();
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (threadIdx.x == 0) backward_copies<Plan>(p, memory, {p, ticket / p.pairs, ticket % p.pairs, 0});
    if (threadIdx.x % 32 == 0 && (warp == 1 || warp == 2)) backward_adds<Plan>(p, memory, warp - 1);
  } else {
    take_registers<240>();
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

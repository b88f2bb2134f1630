// What a block of attention's backward kernel on Hopper works on and in which order, and the threads that move data:
// one copies tiles into shared memory, two add dQ to its sums in device memory.
#pragma once

#include "kernels/attention_hopper.cuh"

namespace egmla::hopper {

struct BackwardArguments {
  CUtensorMap q, k, k_rope, v, out_grad;  // k_rope: a copy of k where there is none
  flash::Operand<Bf16> q_grad, k_grad, v_grad;
  float* rope_partials;       // [B, Hkv, T, rope_width], summed over the key heads afterwards
  float* statistics;          // [B, H, tiles of BM queries, 2, BM]: lse / ln 2, then delta
  float* sums;                // [B, H, tiles of BM queries, BM QK] in the order of registers
  int* turns;                 // [B, H, tiles of BM queries]: adds done so far; then the next free block
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
  static constexpr uint32_t kK = tile_bytes(BN, QK), kV = tile_bytes(BN, V);
  static constexpr uint32_t kQ = tile_bytes(BM, QK), kOut = tile_bytes(BM, V), kStatistics = 8 * BM;
  static constexpr uint32_t kScores = tile_bytes(BN, BM);  // dS^T: rows are keys
  static constexpr uint32_t kSums = BM * QK * 4;           // dQ, on its way to memory; one half each warpgroup's
  static constexpr uint32_t kShared = kK + kV + kStages * (kQ + kOut + kStatistics) + kScores + kSums + 184;
};

template <class Plan>
struct BackwardMemory {
  uint32_t base;
  static constexpr uint32_t kQPlace = Plan::kK + Plan::kV, kOutPlace = kQPlace + Plan::kStages * Plan::kQ,
                            kScorePlace = kOutPlace + Plan::kStages * Plan::kOut,
                            kSumPlace = kScorePlace + Plan::kScores, kStatisticPlace = kSumPlace + Plan::kSums,
                            kBarrierPlace = kStatisticPlace + Plan::kStages * Plan::kStatistics;
  __device__ __forceinline__ uint32_t k() const { return base; }
  __device__ __forceinline__ uint32_t v() const { return base + Plan::kK; }
  __device__ __forceinline__ uint32_t q(int slot) const { return base + kQPlace + slot * Plan::kQ; }
  __device__ __forceinline__ uint32_t out_grad(int slot) const { return base + kOutPlace + slot * Plan::kOut; }
  __device__ __forceinline__ uint32_t scores() const { return base + kScorePlace; }
  __device__ __forceinline__ uint32_t sums() const { return base + kSumPlace; }
  __device__ __forceinline__ uint32_t lse(int slot) const { return base + kStatisticPlace + slot * Plan::kStatistics; }
  __device__ __forceinline__ uint32_t delta(int slot) const { return lse(slot) + 4 * Plan::BM; }
  __device__ __forceinline__ uint32_t barrier(int i) const { return base + kBarrierPlace + 8 * i; }
  __device__ __forceinline__ uint32_t keys_full() const { return barrier(0); }
  __device__ __forceinline__ uint32_t keys_empty() const { return barrier(1); }
  __device__ __forceinline__ uint32_t q_full(int slot) const { return barrier(2 + slot); }
  __device__ __forceinline__ uint32_t q_empty(int slot) const { return barrier(4 + slot); }
  __device__ __forceinline__ uint32_t out_full(int slot) const { return barrier(6 + slot); }
  __device__ __forceinline__ uint32_t out_empty(int slot) const { return barrier(8 + slot); }
  __device__ __forceinline__ uint32_t scores_full() const { return barrier(10); }
  __device__ __forceinline__ uint32_t scores_empty() const { return barrier(11); }
  __device__ __forceinline__ uint32_t sums_full(int adder) const { return barrier(12 + adder); }
  __device__ __forceinline__ uint32_t sums_empty() const { return barrier(14); }
  // What the copying thread tells the warpgroups, and those the adding threads.
  __device__ __forceinline__ uint32_t ticket() const { return barrier(15); }
  __device__ __forceinline__ uint32_t tile(int slot) const { return barrier(16 + 2 * slot); }
  __device__ __forceinline__ uint32_t key_tile() const { return barrier(20); }
  __device__ __forceinline__ uint32_t add(int adder) const { return barrier(21 + adder); }
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
// order agrees with the steps' order, the blocks of a head, running at once, cannot wait for each other in a circle.
// Tiles that documents part are left out of the steps and of the ranks.
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
      load_bytes(memory.lse(ring.slot), p.statistics + static_cast<int64_t>(tile.index) * 2 * Plan::BM,
                 Plan::kStatistics, memory.q_full(ring.slot));
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
  for (uint32_t parity = 0;; parity ^= 1) {
    wait(memory.sums_full(adder), parity);
    const int tile = load_shared(memory.add(adder)), rank = load_shared(memory.add(adder) + 4);
    if (tile < 0) return;
    float* const target = p.sums + static_cast<int64_t>(tile) * (Plan::kSums / 4);
    if (rank == 0) {
      store_bytes(target, memory.sums(), Plan::kSums);
    } else {
      await_turn(p.turns + tile, rank);
      publish_all();
      add_bytes(target, memory.sums(), Plan::kSums);
    }
    commit_copies();
    wait_copies_read();
    arrive(memory.sums_empty());
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
  if (arrives_for_warp()) arrive(memory.sums_full(adder));
}

}  // namespace egmla::hopper

// What the parts of a chain (kernels/decode_chain_cuda.cu) share: how each is described to the device, the block's
// shared memory, how blocks meet between parts, and the mean over splits of attention.
#pragma once

#include "kernels/attention_hopper.cuh"
#include "kernels/cuda_utils.cuh"
#include "kernels/decode_tile.cuh"

namespace egmla::chain {

using gpu::kPacket;
using gpu::Packet;

constexpr int kWarps = 12;                  // that compute
constexpr int kThreads = 32 * kWarps;       // theirs
constexpr int kAllThreads = kThreads + 64;  // with a warp that copies and one that meets other blocks
constexpr int kSlots = 24;
// A slot is always read by the same warp: the parity alone does not tell a barrier's next phase from the one before the
// last, so who waits for a phase must have seen the one before it.
static_assert(kSlots % kWarps == 0);
constexpr int kSlotRows = 2;  // with SwiGLU the rows of gate and up of one output
constexpr int kPieceColumns = 1792;
constexpr int kSlotBytes = kSlotRows * kPieceColumns * 2;
constexpr int kMostSums = 2048;  // pieces of rows of a block
constexpr int kMostColumns = 9216;
constexpr int kMostNormed = 4096;                                  // columns of a normalised input
constexpr int kMostLatent = 256, kMostRope = 64, kMostNope = 128;  // MLA's d_c, d_r, d_n

// A product. Its input row is x, a row of x by ids, or (partials) the mean over splits that a part of attention left.
struct Product {
  bf16 *out, *sum;
  const bf16 *x, *delta, *norm_weight, *norm_bias, *weight;
  const int32_t* ids;
  const float* partials;
  int64_t x_stride, weight_stride;
  int N, K, pieces, piece_columns, splits, head_width;
  float eps;
  bool swiglu;

  // Outputs [first, end) of a block; its rows of the weight are twice as many with SwiGLU: gate, up, gate, up, ...
  __device__ int first(unsigned block) const { return static_cast<int>(static_cast<unsigned>(N) * block / gridDim.x); }
  __device__ int rows() const { return (first(blockIdx.x + 1) - first(blockIdx.x)) * (swiglu ? 2 : 1); }
  __device__ const bf16* row(int first_output, int r) const {
    const int at = swiglu ? first_output + r / 2 + (r % 2 ? N : 0) : first_output + r;
    return weight + at * weight_stride;
  }
  __device__ int columns(int piece) const { return min(piece_columns, K - piece * piece_columns); }
};

// Attention of one head (or latents) a block and split; the newest row is appended on the way. partials hold
// [H][splits][width] of sum_j 2^(score_j - m) v_j, behind them [H][splits] pairs of m and sum_j 2^(score_j - m), scores
// in units of log 2.
struct Attend {
  bf16* row;                // of the cache: token 0
  const bf16 *q, *newest;   // queries of head 0; the new row before norm and rotation
  const bf16* norm_weight;  // of the latent, or null
  const bf16* up;           // W^UK of head 0, MLA alone
  const float *cos, *sin;   // [P][half]
  const int32_t* position;  // of the new token
  float* partials;
  int64_t row_stride, q_head, up_head, up_row;
  int H, group, splits;
  int width;                    // of values: d_v, or d_c
  int k_head, v_first, v_head;  // offsets of keys and values in a row
  int rope_first, half;         // in q: first rotated column (d_n with MLA), pairs
  float scale, eps;             // scale in units of log 2
  bool interleave;

  __device__ float* mean(int h, int split) const { return partials + (h * splits + split) * width; }
  __device__ float2* stats(int h, int split) const {
    return reinterpret_cast<float2*>(partials + H * splits * width) + h * splits + split;
  }
  // Cached tokens of a split, without the new one.
  __device__ decode::Range past(int split, int position) const {
    const auto n = static_cast<unsigned>(position) + 1, part = static_cast<unsigned>(split),
               all = static_cast<unsigned>(splits);
    return {static_cast<int>(n * part / all), min(position, static_cast<int>(n * (part + 1) / all))};
  }
};

// The mean over splits, for MLA times W^UV; a block owns some outputs of a head.
struct Expand {
  bf16* out;
  const bf16* up;  // or null: the mean itself
  const float* partials;
  int64_t out_head, up_head, up_row;
  int H, splits, width, outputs;
};

enum class Kind : int { product, heads, latent, expand };

struct Part {
  Kind kind;
  union {
    Product product;
    Attend attend;
    Expand expand;
  };
};

constexpr int kMostParts = 160;

struct Args {
  Part parts[kMostParts];
  uint32_t* turn;
  int count;
};
static_assert(sizeof(Args) <= 32764, "more than a kernel's parameters may take");

// Merging warps' softmaxes: kWarps rows of a head's width and m, sum.
constexpr int kMergeStride = kMostLatent + 4;
constexpr int kBarrierBytes = 512;
constexpr int kReducedBytes = 128;
constexpr int kQueryBytes = (kMostLatent + kMostRope) * 4;
constexpr int kNewestBytes = (kMostLatent + kMostRope) * 2;
static_assert(2 * kSlots * 8 + 16 <= kBarrierBytes && 2 * kWarps * 4 <= kReducedBytes);

struct Memory {
  uint32_t full, empty;  // barriers of the slots
  uint32_t zeros;        // 16 bytes
  unsigned char* ring;
  float *sums, *reduced;              // [rows][pieces]; [2][kWarps]
  bf16 *x, *norm_weight, *norm_bias;  // of a product
  float* merge;                       // attention: [kWarps][kMergeStride]
  float* query;                       // [kMostLatent + kMostRope]
  bf16* newest;                       // [kMostLatent + kMostRope]

  __device__ explicit Memory(unsigned char* memory)
      : full(static_cast<uint32_t>(__cvta_generic_to_shared(memory))),
        empty(full + 8 * kSlots),
        zeros(full + 16 * kSlots),
        ring(memory + kBarrierBytes),
        sums(reinterpret_cast<float*>(ring + kSlots * kSlotBytes)),
        reduced(sums + kMostSums),
        x(reinterpret_cast<bf16*>(reduced + kReducedBytes / 4)),
        norm_weight(x + kMostColumns),
        norm_bias(norm_weight + kMostNormed),
        merge(reinterpret_cast<float*>(norm_bias + kMostNormed)),
        query(merge + kWarps * kMergeStride),
        newest(reinterpret_cast<bf16*>(query + kMostLatent + kMostRope)) {}
};
constexpr size_t kMemoryBytes = kBarrierBytes + kSlots * kSlotBytes + 4 * kMostSums + kReducedBytes + 2 * kMostColumns +
                                4 * kMostNormed + 4 * kWarps * kMergeStride + kQueryBytes + kNewestBytes;
static_assert(kMemoryBytes <= 227 * 1024);

// ---- between parts all blocks meet ----

// The warps that compute, among themselves.
__device__ __forceinline__ void sync_warps() {
  hopper::sync_named(1, kThreads);
}

// Between the computing warps and the one that meets the other blocks. It is a warp of its own, as a fence waits for
// whatever its thread has asked of the memory.
constexpr int kPartDone = 2, kPartBegins = 3;  // named barriers

class Meeting {
 public:
  __device__ __forceinline__ void arrive() {
    arrived_ = true;
    hopper::arrive_named(kPartDone, kThreads + 32);
  }
  // What the parts before wrote may be read from here on, and shared memory be written.
  __device__ __forceinline__ void wait() {
    if (arrived_) hopper::sync_named(kPartBegins, kThreads + 32);
  }

 private:
  bool arrived_ = false;  // else nothing stands before this part
};

// What the warp that meets does. The first block's arrival is 2^31 less the others, so the last one flips the highest
// bit of the turn.
__device__ __forceinline__ void meet_blocks(const Args& a) {
  for (int p = 1; p < a.count; ++p) {
    hopper::sync_named(kPartDone, kThreads + 32);
    if (threadIdx.x % 32 == 0) {
      const uint32_t step = blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u;
      uint32_t before, now;
      asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(a.turn), "r"(step) : "memory");
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(a.turn) : "memory");
      } while (((now ^ before) & 0x80000000u) == 0);
    }
    __syncwarp();
    hopper::arrive_named(kPartBegins, kThreads + 32);
  }
}

// ---- what other blocks wrote while this kernel ran is read past the first-level cache ----

__device__ __forceinline__ Packet<bf16> load_fresh(const bf16* source) {
  const uint4 words = __ldcg(reinterpret_cast<const uint4*>(source));
  Packet<bf16> out;
  memcpy(&out, &words, sizeof(out));
  return out;
}

__device__ __forceinline__ float load_fresh_one(const bf16* source) {
  return gpu::to_float(__ushort_as_bfloat16(__ldcg(reinterpret_cast<const unsigned short*>(source))));
}

// kCount columns of the softmax-weighted mean over a head's splits, which are added in their order.
template <int kCount>
__device__ __forceinline__ void mean_of_splits(const float* partials, int heads, int splits, int width, int h,
                                               int column, float (&out)[kCount]) {
  constexpr int kBatch = 9;  // splits under way at once
  using Word = std::conditional_t<kCount % 4 == 0, float4, float>;
  constexpr int kWords = kCount * 4 / static_cast<int>(sizeof(Word));
  const auto* const stats = reinterpret_cast<const float2*>(partials + heads * splits * width) + h * splits;
  const float* const values = partials + h * splits * width + column;
  float largest = -1e30f, sum = 0;
#pragma unroll
  for (float& x : out) x = 0;
  for (int first = 0; first < splits; first += kBatch) {
    float2 stat[kBatch];
    Word words[kBatch][kWords];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int s = min(first + i, splits - 1);
      stat[i] = __ldcg(stats + s);
#pragma unroll
      for (int w = 0; w < kWords; ++w) words[i][w] = __ldcg(reinterpret_cast<const Word*>(values + s * width) + w);
    }
    float best = largest;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (first + i >= splits) stat[i] = {-1e30f, 0.0f};
      best = fmaxf(best, stat[i].x);
    }
    const float correction = flash::power_of_two(largest - best);
    largest = best;
    sum *= correction;
#pragma unroll
    for (float& x : out) x *= correction;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float weight = first + i < splits ? flash::power_of_two(stat[i].x - best) : 0.0f;
      sum += weight * stat[i].y;
      float own[kCount];
      memcpy(own, words[i], sizeof(own));
#pragma unroll
      for (int c = 0; c < kCount; ++c) out[c] += weight * own[c];
    }
  }
#pragma unroll
  for (float& x : out) x /= sum;
}

}  // namespace egmla::chain

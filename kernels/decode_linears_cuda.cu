// Bytes: the weights once. A step for one sequence is a chain of products that each need the one before, with a few
// microseconds of launch, first loads and last adds between them; for those the memory would stand still. Here one
// block on each multiprocessor runs the whole chain. Its last warp copies the block's rows of all weights, one product
// after the other, into a ring in shared memory, as far ahead as the ring reaches; the other warps multiply a slot
// each, and meet those of the other blocks between two products. What a warp leaves is the sum of a piece of a row; the
// pieces are added in their order.
#include "kernels/attention_hopper.cuh"
#include "kernels/cuda_utils.cuh"
#include "kernels/decode_linear.h"

namespace egmla {
namespace chain {  // named, as code that only sm_90a uses would be unused elsewhere

using gpu::kPacket;
using gpu::Packet;

constexpr int kWarps = 12;  // that multiply; one more copies
constexpr int kThreads = 32 * kWarps;
constexpr int kSlots = 24;
// A slot is always read by the same warp: the parity alone does not tell a barrier's next phase from the one before the
// last, so who waits for a phase must have seen the one before it.
static_assert(kSlots % kWarps == 0);
constexpr int kSlotRows = 2;  // with SwiGLU the rows of gate and up of one output
constexpr int kPieceColumns = 2048;
constexpr int kSlotBytes = kSlotRows * kPieceColumns * 2;
constexpr int kMostShared = 225 * 1024;
constexpr int kMeeting = 1;  // named barrier of the warps that multiply

struct Part {
  bf16 *out, *sum;
  const bf16 *x, *delta, *norm_weight, *norm_bias, *weight;
  const int32_t* ids;
  int64_t x_stride, weight_stride;
  int N, K, pieces, piece_columns;
  float eps;
  bool swiglu;

  // Outputs [first, end) of a block; its rows of the weight are twice as many with SwiGLU: gate, up, gate, up, ...
  __device__ int first(int block, int blocks) const { return static_cast<int>(int64_t{N} * block / blocks); }
  __device__ int rows(int block, int blocks) const {
    return (first(block + 1, blocks) - first(block, blocks)) * (swiglu ? 2 : 1);
  }
  // Slots it takes: pieces of pairs of rows.
  __device__ int slots(int rows) const { return (rows + kSlotRows - 1) / kSlotRows * pieces; }
  __device__ const bf16* row(int first_output, int r) const {
    const int at = swiglu ? first_output + r / 2 + (r % 2 ? N : 0) : first_output + r;
    return weight + at * weight_stride;
  }
  __device__ int columns(int piece) const { return min(piece_columns, K - piece * piece_columns); }
};

struct Args {
  Part parts[DecodeLinears::kMost];
  uint32_t* turn;
  int count, sums;  // sums: pieces of rows of the largest part
};

constexpr size_t kBarrierBytes = (2 * kSlots * 8 + 127) / 128 * 128;

struct Memory {
  uint32_t full, empty;  // barriers of the slots
  unsigned char* ring;
  float *sums, *reduced;  // [rows][pieces]; [2][kWarps]
  bf16* x;

  __device__ explicit Memory(unsigned char* memory, const Args& a)
      : full(static_cast<uint32_t>(__cvta_generic_to_shared(memory))),
        empty(full + 8 * kSlots),
        ring(memory + kBarrierBytes),
        sums(reinterpret_cast<float*>(ring + kSlots * kSlotBytes)),
        reduced(sums + a.sums),
        x(reinterpret_cast<bf16*>(reduced + 2 * kWarps)) {}
  static size_t bytes(int64_t sums, int64_t columns) {
    return kBarrierBytes + kSlots * kSlotBytes + sizeof(float) * static_cast<size_t>(sums + 2 * kWarps) +
           sizeof(bf16) * static_cast<size_t>(columns);
  }
};

// The n-th slot of a kernel's life.
__device__ __forceinline__ int slot_of(int n) {
  return n % kSlots;
}
__device__ __forceinline__ uint32_t parity_of(int n) {
  return static_cast<uint32_t>(n / kSlots) & 1;
}

__device__ __forceinline__ void copy_weights(const Args& a, const Memory& memory) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const auto ring = static_cast<uint32_t>(__cvta_generic_to_shared(memory.ring));
  int n = 0;
  for (int p = 0; p < a.count; ++p) {
    const Part& part = a.parts[p];
    const int first = part.first(block, blocks), rows = part.rows(block, blocks);
    for (int r = 0; r < rows; r += kSlotRows) {
      const int count = min(kSlotRows, rows - r);
      const bf16* const source = part.row(first, r + min(lane, count - 1));
      for (int piece = 0; piece < part.pieces; ++piece, ++n) {
        const auto bytes = static_cast<uint32_t>(part.columns(piece)) * 2u;
        const uint32_t full = memory.full + 8 * slot_of(n);
        hopper::wait(memory.empty + 8 * slot_of(n), parity_of(n) ^ 1);
        if (lane == 0) hopper::arrive_expecting(full, static_cast<uint32_t>(count) * bytes);
        __syncwarp();
        if (lane < count)
          hopper::load_bytes(ring + slot_of(n) * kSlotBytes + lane * bytes, source + piece * part.piece_columns, bytes,
                             full);
      }
    }
  }
}

// Eight elements that other blocks wrote while this kernel ran, past the first-level cache.
__device__ __forceinline__ Packet<bf16> load_fresh(const bf16* source) {
  const uint4 words = __ldcg(reinterpret_cast<const uint4*>(source));
  Packet<bf16> out;
  memcpy(&out, &words, sizeof(out));
  return out;
}

// Over the warps that multiply, in their order.
__device__ __forceinline__ float sum_of_warps(float value, float* reduced) {
  value = gpu::warp_sum(value);
  if (threadIdx.x % 32 == 0) reduced[threadIdx.x / 32] = value;
  hopper::sync_named(kMeeting, kThreads);
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += reduced[w];
  return sum;
}

constexpr int kRounds = 3;  // packets of the input row that a thread owns
constexpr int64_t kMostColumns = int64_t{kRounds} * kThreads * kPacket;

// What a part reads that no kernel writes, asked for before its turn.
struct NormWeights {
  Packet<bf16> weight[kRounds], bias[kRounds];
  __device__ explicit NormWeights(const Part& part) {
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      const int column = (static_cast<int>(threadIdx.x) + i * kThreads) * kPacket;
      if (column >= part.K) continue;
      if (part.norm_weight) weight[i] = gpu::load(part.norm_weight + column, true, kPacket);
      if (part.norm_bias) bias[i] = gpu::load(part.norm_bias + column, true, kPacket);
    }
  }
};

// The input row after sum and norm, into shared memory.
__device__ __forceinline__ void stage_input(const Part& part, const NormWeights& norm, const Memory& memory) {
  const bf16* const source = part.x + (part.ids ? part.ids[0] * part.x_stride : 0);
  Packet<bf16> row[kRounds];
  float total = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int column = (static_cast<int>(threadIdx.x) + i * kThreads) * kPacket;
    if (column >= part.K) continue;
    row[i] = load_fresh(source + column);
    if (part.delta) {
      const Packet<bf16> delta = load_fresh(part.delta + column);
      float values[kPacket];
#pragma unroll
      for (int e = 0; e < kPacket; ++e) values[e] = row[i][e] + delta[e];
      gpu::round_to(row[i], values);
    }
    if (part.sum && blockIdx.x == 0) gpu::store(part.sum + column, row[i], true, kPacket);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) total += row[i][e];
  }
  float mean = 0, rstd = 1;
  if (part.norm_weight) {
    const float width = static_cast<float>(part.K);
    if (part.norm_bias) mean = sum_of_warps(total, memory.reduced) / width;
#pragma unroll
    for (int i = 0; i < kRounds; ++i) {
      if ((static_cast<int>(threadIdx.x) + i * kThreads) * kPacket >= part.K) continue;
#pragma unroll
      for (int e = 0; e < kPacket; ++e) squares += (row[i][e] - mean) * (row[i][e] - mean);
    }
    rstd = rsqrtf(sum_of_warps(squares, memory.reduced + kWarps) / width + part.eps);
  }
#pragma unroll
  for (int i = 0; i < kRounds; ++i) {
    const int column = (static_cast<int>(threadIdx.x) + i * kThreads) * kPacket;
    if (column >= part.K) continue;
    if (part.norm_weight) {
      float values[kPacket];
#pragma unroll
      for (int e = 0; e < kPacket; ++e) {
        values[e] = (row[i][e] - mean) * rstd * norm.weight[i][e];
        if (part.norm_bias) values[e] += norm.bias[i][e];
      }
      gpu::round_to(row[i], values);
    }
    gpu::store(memory.x + column, row[i], true, kPacket);
  }
  hopper::sync_named(kMeeting, kThreads);
}

// One slot: x times a piece of two rows; lanes 0 and 16 hold the rows' sums.
__device__ __forceinline__ float multiply_slot(const bf16* rows, const bf16* x, int columns, bool pair, int lane) {
  float sums[kSlotRows] = {};
  const bf16* const second = rows + (pair ? columns : 0);
#pragma unroll 4
  for (int c = lane * kPacket; c < columns; c += 32 * kPacket) {
    const auto v = gpu::load(x + c, true, kPacket), w0 = gpu::load(rows + c, true, kPacket),
               w1 = gpu::load(second + c, true, kPacket);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) {
      sums[0] += w0[e] * v[e];
      sums[1] += w1[e] * v[e];
    }
  }
  const bool upper = lane & 16;
  float sum = upper ? sums[1] : sums[0];
  sum += __shfl_xor_sync(0xffffffffu, upper ? sums[0] : sums[1], 16);
#pragma unroll
  for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// Multiplies a part; n: the first slot behind it.
__device__ __forceinline__ void multiply_part(const Part& part, const Memory& memory, int& n) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int first = part.first(block, blocks), rows = part.rows(block, blocks), slots = part.slots(rows);
  // Slots go round the warps, across the borders of parts too.
  for (int s = (warp - n % kWarps + kWarps) % kWarps; s < slots; s += kWarps) {
    const int slot = slot_of(n + s), pair = s / part.pieces, piece = s - pair * part.pieces;
    const bool whole = (pair + 1) * kSlotRows <= rows;
    hopper::wait(memory.full + 8 * slot, parity_of(n + s));
    const float sum = multiply_slot(reinterpret_cast<const bf16*>(memory.ring + slot * kSlotBytes),
                                    memory.x + piece * part.piece_columns, part.columns(piece), whole, lane);
    if (lane % 16 == 0 && (lane == 0 || whole)) memory.sums[(pair * kSlotRows + lane / 16) * part.pieces + piece] = sum;
    __syncwarp();
    if (lane == 0) hopper::arrive(memory.empty + 8 * slot);
  }
  n += slots;
  hopper::sync_named(kMeeting, kThreads);
  const auto row_sum = [&](int r) {
    float sum = 0;
    for (int piece = 0; piece < part.pieces; ++piece) sum += memory.sums[r * part.pieces + piece];
    return sum;
  };
  const int outputs = part.swiglu ? rows / 2 : rows;
  for (int o = thread; o < outputs; o += kThreads) {
    float y;
    if (part.swiglu) {
      const float gate = row_sum(2 * o);
      y = gate * gpu::sigmoid(gate) * row_sum(2 * o + 1);
    } else {
      y = row_sum(o);
    }
    part.out[first + o] = __float2bfloat16(y);
  }
}

// All blocks meet: the first block's arrival is 2^31 less the others, so the last one flips the highest bit.
__device__ __forceinline__ uint32_t arrive_at_turn(uint32_t* turn) {
  __threadfence();
  return atomicAdd(turn, blockIdx.x == 0 ? 0x80000000u - (gridDim.x - 1) : 1u);
}
__device__ __forceinline__ void wait_for_turn(const uint32_t* turn, uint32_t before) {
  uint32_t now;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(turn) : "memory");
  } while (((now ^ before) & 0x80000000u) == 0);
}

__global__ void __launch_bounds__(kThreads + 32) chain_kernel(const __grid_constant__ Args a) {
  if constexpr (hopper::kCompiled) {
    extern __shared__ __align__(128) unsigned char bytes[];
    const Memory memory(bytes, a);
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) {
      for (int s = 0; s < kSlots; ++s) {
        hopper::init_barrier(memory.full + 8 * s, 1);
        hopper::init_barrier(memory.empty + 8 * s, 1);
      }
      hopper::publish_barriers();
    }
    __syncthreads();
    gpu::release_next();
    if (thread >= kThreads) return copy_weights(a, memory);
    uint32_t before = 0;
    int n = 0;
    for (int p = 0; p < a.count; ++p) {
      const Part& part = a.parts[p];
      const NormWeights norm(part);
      if (p == 0) {
        gpu::wait_for_previous();
      } else {
        if (thread == 0) wait_for_turn(a.turn, before);
        hopper::sync_named(kMeeting, kThreads);
      }
      stage_input(part, norm, memory);
      multiply_part(part, memory, n);
      if (p + 1 == a.count) return;
      hopper::sync_named(kMeeting, kThreads);
      if (thread == 0) before = arrive_at_turn(a.turn);
    }
  }
}

}  // namespace chain

namespace {

using namespace chain;

Part part_of(const DecodeLinear& k) {
  const auto data = [](const View& view) { return view.defined() ? view.as<bf16>() : nullptr; };
  const int64_t K = k.x.size(1), pieces = gpu::ceil_div(K, kPieceColumns);
  return {.out = k.out.as<bf16>(),
          .sum = data(k.sum),
          .x = k.x.as<bf16>(),
          .delta = data(k.delta),
          .norm_weight = data(k.norm_weight),
          .norm_bias = data(k.norm_bias),
          .weight = k.weight.as<bf16>(),
          .ids = k.ids.defined() ? k.ids.as<int32_t>() : nullptr,
          .x_stride = k.x.stride(0),
          .weight_stride = k.weight.stride(0),
          .N = static_cast<int>(k.out.size(1)),
          .K = static_cast<int>(K),
          .pieces = static_cast<int>(pieces),
          .piece_columns = static_cast<int>(gpu::ceil_div(K / kPacket, pieces) * kPacket),
          .eps = static_cast<float>(k.eps),
          .swiglu = k.swiglu};
}

bool suits(const DecodeLinear& k) {
  const int64_t K = k.x.size(1);
  return k.out.dtype == DType::bf16 && k.out.size(0) == 1 && k.out.size(1) > 0 && K % kPacket == 0 &&
         K <= kMostColumns && gpu::all_aligned(k.x, k.sum, k.delta, k.norm_weight, k.norm_bias, k.weight);
}

}  // namespace

void run(CudaContext& context, const DecodeLinears& k) {
  check(k.parts.size() <= DecodeLinears::kMost, "decode_linears: {} products, at most {} are taken", k.parts.size(),
        DecodeLinears::kMost);
  const int blocks = context.state().multiprocessors;
  const bool taken =
      hopper::kBuilt && context.state().capability == 90 && std::all_of(k.parts.begin(), k.parts.end(), suits);
  Args a{};
  a.turn = reinterpret_cast<uint32_t*>(k.turn.as<int32_t>());
  a.count = static_cast<int>(k.parts.size());
  int64_t sums = 0, columns = 0;
  for (size_t i = 0; taken && i < k.parts.size(); ++i) {
    check_decode_linear(k.parts[i]);
    a.parts[i] = part_of(k.parts[i]);
    const int64_t rows = gpu::ceil_div(k.parts[i].out.size(1), blocks) * (k.parts[i].swiglu ? 2 : 1);
    sums = std::max(sums, gpu::ceil_div(rows * a.parts[i].pieces, 4) * 4);
    columns = std::max<int64_t>(columns, a.parts[i].K);
  }
  a.sums = static_cast<int>(sums);
  const size_t shared = Memory::bytes(sums, columns);
  if (!taken || shared > kMostShared) {
    for (const DecodeLinear& part : k.parts) run(context, part);
    return;
  }
  launch_chained(context, DecodeLinears::kName, static_cast<unsigned>(blocks), kThreads + 32, shared, chain_kernel, a);
}

}  // namespace egmla

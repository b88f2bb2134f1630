// Products of a chain. A warp of its own copies the block's rows of all weights into slots of shared memory, one
// product after the other and as far ahead as there are slots, past attention and meetings too. A slot is a piece of
// two rows, multiplied by one warp; the pieces' sums are added in their order.
#pragma once

#include "kernels/decode_chain_part.cuh"

namespace egmla::chain {

// The n-th slot of a kernel's life.
__device__ __forceinline__ int slot_of(int n) {
  return n % kSlots;
}
__device__ __forceinline__ uint32_t parity_of(int n) {
  return static_cast<uint32_t>(n / kSlots) & 1;
}

// What the copying warp does, by one thread: a copy may have to wait until those before it have gone out.
__device__ __forceinline__ void copy_weights(const Args& a, const Memory& memory) {
  if (threadIdx.x % 32 > 0) return;
  const uint32_t ring = decode::shared_address(memory.ring);
  int n = 0;
  for (int p = 0; p < a.count; ++p) {
    if (a.parts[p].kind != Kind::product) continue;
    const Product& part = a.parts[p].product;
    const int first = part.first(blockIdx.x), rows = part.rows();
    for (int r = 0; r < rows; r += kSlotRows) {
      const bool whole = r + 1 < rows;
      const bf16 *const source = part.row(first, r), *const second = part.row(first, whole ? r + 1 : r);
      for (int piece = 0; piece < part.pieces; ++piece, ++n) {
        const int slot = slot_of(n), begin = piece * part.piece_columns;
        const auto bytes = static_cast<uint32_t>(part.columns(piece)) * 2u;
        const uint32_t full = memory.full + 8 * slot, target = ring + slot * kSlotBytes;
        hopper::wait(memory.empty + 8 * slot, parity_of(n) ^ 1);
        hopper::arrive_expecting(full, whole ? 2 * bytes : bytes);
        hopper::load_bytes(target, source + begin, bytes, full);
        if (whole) hopper::load_bytes(target + bytes, second + begin, bytes, full);
      }
    }
  }
}

// Over the warps that multiply, in their order.
__device__ __forceinline__ float sum_of_warps(float value, float* reduced) {
  value = gpu::warp_sum(value);
  if (threadIdx.x % 32 == 0) reduced[threadIdx.x / 32] = value;
  sync_warps();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += reduced[w];
  return sum;
}

// Norm weights come ahead of the input row, to where sums and attention's merging will stand.
__device__ __forceinline__ void prefetch_norm(const Product& part, const Memory& memory) {
  if (!part.norm_weight) return;
#pragma unroll 1
  for (int column = static_cast<int>(threadIdx.x) * kPacket; column < part.K; column += kThreads * kPacket) {
    flash::copy_async_16(decode::shared_address(memory.norm_weight + column), part.norm_weight + column, true);
    if (part.norm_bias)
      flash::copy_async_16(decode::shared_address(memory.norm_bias + column), part.norm_bias + column, true);
  }
}

// The input row after sum and norm, into shared memory. A thread reads there what it wrote itself.
__device__ __forceinline__ void stage_input(const Product& part, const Memory& memory) {
  const bf16* const source = part.x + (part.ids ? part.ids[0] * part.x_stride : 0);
  const int first = static_cast<int>(threadIdx.x) * kPacket;
  constexpr int kStep = kThreads * kPacket;
  if (!part.delta && !part.sum && !part.norm_weight) {
#pragma unroll 1
    for (int column = first; column < part.K; column += kStep)
      flash::copy_async_16(decode::shared_address(memory.x + column), source + column, true);
    flash::wait_for_copies();
    sync_warps();
    return;
  }
  float total = 0, squares = 0;
#pragma unroll 1
  for (int column = first; column < part.K; column += kStep) {
    Packet<bf16> row = load_fresh(source + column);
    if (part.delta) {
      const Packet<bf16> delta = load_fresh(part.delta + column);
      float values[kPacket];
#pragma unroll
      for (int e = 0; e < kPacket; ++e) values[e] = row[e] + delta[e];
      gpu::round_to(row, values);
    }
    if (part.sum && blockIdx.x == 0) gpu::store(part.sum + column, row, true, kPacket);
    gpu::store(memory.x + column, row, true, kPacket);
#pragma unroll
    for (int e = 0; e < kPacket; ++e) {
      total += row[e];
      squares += row[e] * row[e];
    }
  }
  if (part.norm_weight) {
    const float width = static_cast<float>(part.K);
    float mean = 0;
    if (part.norm_bias) {
      mean = sum_of_warps(total, memory.reduced) / width;
      squares = 0;
#pragma unroll 1
      for (int column = first; column < part.K; column += kStep) {
        const Packet<bf16> row = gpu::load(memory.x + column, true, kPacket);
#pragma unroll
        for (int e = 0; e < kPacket; ++e) squares += (row[e] - mean) * (row[e] - mean);
      }
    }
    const float rstd = rsqrtf(sum_of_warps(squares, memory.reduced + kWarps) / width + part.eps);
    flash::wait_for_copies();
#pragma unroll 1
    for (int column = first; column < part.K; column += kStep) {
      Packet<bf16> row = gpu::load(memory.x + column, true, kPacket);
      const Packet<bf16> weight = gpu::load(memory.norm_weight + column, true, kPacket);
      float values[kPacket];
#pragma unroll
      for (int e = 0; e < kPacket; ++e) values[e] = (row[e] - mean) * rstd * weight[e];
      if (part.norm_bias) {
        const Packet<bf16> bias = gpu::load(memory.norm_bias + column, true, kPacket);
#pragma unroll
        for (int e = 0; e < kPacket; ++e) values[e] += bias[e];
      }
      gpu::round_to(row, values);
      gpu::store(memory.x + column, row, true, kPacket);
    }
  }
  sync_warps();
}

// The input row as attention left it.
__device__ __forceinline__ void stage_mean(const Product& part, const Memory& memory) {
#pragma unroll 1
  for (int column = static_cast<int>(threadIdx.x) * kPacket; column < part.K; column += kThreads * kPacket) {
    const int h = column / part.head_width;
    float mean[kPacket];
    mean_of_splits(part.partials, part.K / part.head_width, part.splits, part.head_width, h,
                   column - h * part.head_width, mean);
    gpu::store_floats(memory.x + column, mean, true, kPacket);
  }
  sync_warps();
}

// A piece of x as a warp holds it for the tensor cores: chunks of 64 columns, each as eight rows of eight.
struct Fragments {
  static constexpr int kChunk = 64, kStep = 4 * kChunk, kSteps = kPieceColumns / kStep;
  uint32_t words[kSteps][4];

  __device__ __forceinline__ void load(uint32_t x, uint32_t zeros, int columns, int lane) {
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int column = i * kStep + lane * kPacket;
      flash::load_matrices(words[i], column < columns ? x + 2 * static_cast<uint32_t>(column) : zeros);
    }
  }
};
static_assert(kPieceColumns % Fragments::kStep == 0);

// x times the piece of two rows in a slot; lanes 0 and 4 return the rows' sums. Both rows' chunks stand above each
// other as x's do, and the diagonals of their product with x are what is wanted. Beyond the piece zeros are read.
__device__ __forceinline__ float multiply_slot(const Fragments& x, uint32_t rows, uint32_t zeros, int columns,
                                               bool pair, int lane) {
  constexpr int kChunk = Fragments::kChunk, kStep = Fragments::kStep;
  const int own = lane / 16 * kChunk + lane % 8 * kPacket;
  const uint32_t row = rows + (lane & 8 && pair ? 2 * static_cast<uint32_t>(columns) : 0);
  float even[4] = {}, odd[4] = {};
#pragma unroll
  for (int i = 0; i < Fragments::kSteps; ++i) {
    if (i * kStep >= columns) break;
    uint32_t low[4], high[4];
    const int column = i * kStep + own;
    const uint32_t address = row + 2 * static_cast<uint32_t>(column);
    const bool inside = (i + 1) * kStep <= columns;
    flash::load_matrices(low, inside || column < columns ? address : zeros);
    flash::load_matrices(high, inside || column + 2 * kChunk < columns ? address + 4 * kChunk : zeros);
    flash::multiply_add(even, low, x.words[i][0], x.words[i][1]);
    flash::multiply_add(odd, high, x.words[i][2], x.words[i][3]);
  }
  // Row lane / 4 meets its own column, 2 (lane % 4) + {0, 1}, in lanes 9 j and 9 j + 4.
  const bool second = lane & 4;
  const float own_row = second ? even[3] + odd[3] : even[0] + odd[0];
  const float other_row = second ? even[1] + odd[1] : even[2] + odd[2];
  float sum = own_row + __shfl_xor_sync(0xffffffffu, other_row, 4);
  sum += __shfl_xor_sync(0xffffffffu, sum, 9);
  return sum + __shfl_xor_sync(0xffffffffu, sum, 18);
}

// Multiplies a product; n: its first slot, then the first one behind it.
__device__ __forceinline__ void multiply_product(const Product& part, const Memory& memory, int& n) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int first = part.first(blockIdx.x), rows = part.rows(),
            slots = (rows + kSlotRows - 1) / kSlotRows * part.pieces;
  // Slots go round the warps, across the borders of parts too.
  int s = (warp - n % kWarps + kWarps) % kWarps;
  if (s < slots) {
    const int piece = s % part.pieces, columns = part.columns(piece);  // of all the warp's slots
    const uint32_t ring = decode::shared_address(memory.ring);
    Fragments x;
    x.load(decode::shared_address(memory.x + piece * part.piece_columns), memory.zeros, columns, lane);
#pragma unroll 1
    for (; s < slots; s += kWarps) {
      const int slot = slot_of(n + s), r = s / part.pieces * kSlotRows;
      const bool whole = r + 1 < rows;
      hopper::wait(memory.full + 8 * slot, parity_of(n + s));
      const float sum = multiply_slot(x, ring + slot * kSlotBytes, memory.zeros, columns, whole, lane);
      __syncwarp();
      if (hopper::arrives_for_warp(lane)) hopper::arrive(memory.empty + 8 * slot);
      if (lane % 4 == 0 && (lane == 0 || (lane == 4 && whole))) memory.sums[(r + lane / 4) * part.pieces + piece] = sum;
    }
  }
  n += slots;
  sync_warps();
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

}  // namespace egmla::chain

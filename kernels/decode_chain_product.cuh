// Products of a chain. A warp of its own copies the block's rows of all weights into a ring in shared memory, one
// product after the other and as far ahead as the ring reaches, past attention too; the others multiply a slot each.
// What a warp leaves is the sum of a piece of a row; the pieces are added in their order.
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

// What the copying warp does, by one thread.
__device__ __forceinline__ void copy_weights(const Args& a, const Memory& memory) {
  if (threadIdx.x % 32 > 0) return;
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const uint32_t ring = decode::shared_address(memory.ring);
  int n = 0;
  for (int p = 0; p < a.count; ++p) {
    if (a.parts[p].kind != Kind::product) continue;
    const Product& part = a.parts[p].product;
    const int first = part.first(block, blocks), rows = part.rows(block, blocks);
    for (int r = 0; r < rows; r += kSlotRows) {
      const int count = min(kSlotRows, rows - r);
      const bf16 *const source = part.row(first, r), *const second = part.row(first, r + count - 1);
      for (int piece = 0; piece < part.pieces; ++piece, ++n) {
        const int slot = slot_of(n), begin = piece * part.piece_columns;
        const auto bytes = static_cast<uint32_t>(part.columns(piece)) * 2u;
        const uint32_t full = memory.full + 8 * slot, target = ring + slot * kSlotBytes;
        if (n >= kUnderWay) hopper::wait(memory.full + 8 * slot_of(n - kUnderWay), parity_of(n - kUnderWay));
        hopper::wait(memory.empty + 8 * slot, parity_of(n) ^ 1);
        hopper::arrive_expecting(full, static_cast<uint32_t>(count) * bytes);
        hopper::load_bytes(target, source + begin, bytes, full);
        if (count > 1) hopper::load_bytes(target + bytes, second + begin, bytes, full);
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
    flash::copy_async_16(decode::shared_address(memory.norm_weight() + column), part.norm_weight + column, true);
    if (part.norm_bias)
      flash::copy_async_16(decode::shared_address(memory.norm_bias() + column), part.norm_bias + column, true);
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
      const Packet<bf16> weight = gpu::load(memory.norm_weight() + column, true, kPacket);
      float values[kPacket];
#pragma unroll
      for (int e = 0; e < kPacket; ++e) values[e] = (row[e] - mean) * rstd * weight[e];
      if (part.norm_bias) {
        const Packet<bf16> bias = gpu::load(memory.norm_bias() + column, true, kPacket);
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

// One slot: x times a piece of two rows; lanes 0 and 16 return the rows' sums. On tensor cores: chunks of 64 columns
// are taken as eight rows of eight, of the weights (the two rows above each other) as of x; the diagonals of their
// product are what is wanted. Chunks beyond the piece are read from a place that holds zeros.
__device__ __forceinline__ float multiply_slot(uint32_t rows, uint32_t x, uint32_t zeros, int columns, bool pair,
                                               int lane) {
  constexpr int kChunk = 64;
  const int part = lane / 8, own = lane % 8 * kPacket;
  const uint32_t weight = rows + (part % 2 && pair ? 2 * static_cast<uint32_t>(columns) : 0);
  const int weight_column = part / 2 * kChunk + own, x_column = part * kChunk + own;
  const auto at = [&](uint32_t base, int column) {
    return column < columns ? base + 2 * static_cast<uint32_t>(column) : zeros;
  };
  float even[4] = {}, odd[4] = {};
#pragma unroll 4
  for (int c = 0; c < columns; c += 4 * kChunk) {
    uint32_t v[4], w0[4], w1[4];
    flash::load_matrices(w0, at(weight, c + weight_column));
    flash::load_matrices(v, at(x, c + x_column));
    flash::load_matrices(w1, at(weight, c + 2 * kChunk + weight_column));
    flash::multiply_add(even, w0, v[0], v[1]);
    flash::multiply_add(odd, w1, v[2], v[3]);
  }
  // Row lane / 4 meets its own column in lanes where that is one of 2 (lane % 4) + {0, 1}.
  const bool diagonal = lane / 8 == lane % 4, second = lane & 4;
  const float first_row = second ? even[1] + odd[1] : even[0] + odd[0];
  const float second_row = second ? even[3] + odd[3] : even[2] + odd[2];
  const bool upper = lane & 16;
  float sum = diagonal ? (upper ? second_row : first_row) : 0.0f;
  sum += __shfl_xor_sync(0xffffffffu, diagonal ? (upper ? first_row : second_row) : 0.0f, 16);
#pragma unroll
  for (int step = 8; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  return sum;
}

// Multiplies a product; n: the first slot behind it.
__device__ __forceinline__ void multiply_product(const Product& part, const Memory& memory, int& n) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int first = part.first(block, blocks), rows = part.rows(block, blocks), slots = part.slots(rows);
  const uint32_t ring = decode::shared_address(memory.ring), x = decode::shared_address(memory.x);
  // Slots go round the warps, across the borders of parts too.
  for (int s = (warp - n % kWarps + kWarps) % kWarps; s < slots; s += kWarps) {
    const int slot = slot_of(n + s), pair = s / part.pieces, piece = s - pair * part.pieces;
    const bool whole = (pair + 1) * kSlotRows <= rows;
    hopper::wait(memory.full + 8 * slot, parity_of(n + s));
    const float sum = multiply_slot(ring + slot * kSlotBytes, x + 2 * piece * part.piece_columns, memory.zeros,
                                    part.columns(piece), whole, lane);
    if (lane % 16 == 0 && (lane == 0 || whole)) memory.sums[(pair * kSlotRows + lane / 16) * part.pieces + piece] = sum;
    __syncwarp();
    if (lane == 0) hopper::arrive(memory.empty + 8 * slot);
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

// Norms: a row is owned by a team of whole warps that keeps it in registers, kTeamPackets packets a thread; a block
// holds several teams (threadIdx.y). Teams of one block never wait for each other while they walk over rows, so one's
// loads overlap another's sums. Weight gradients: block p sums set p of kNormPartials sets of rows, then the sets are
// added.
#pragma once

#include <algorithm>

#include "kernels/cuda_utils.cuh"
#include "kernels/norm.h"

namespace egmla::gpu {

constexpr int kTeamPackets = 3;    // 32 threads own 768 features, 64 own 1536, 96 own 2304
constexpr int kTeamThreads = 384;  // most in a block, which leaves 168 registers a thread
constexpr int kTeamsInBlock = 15;  // named barriers 1 to 15

// A block for rows of `packets` packets with about `threads` threads.
inline dim3 team_block(const char* kernel, int64_t packets, int64_t threads) {
  const int64_t team = std::max<int64_t>(1, ceil_div(packets, kTeamPackets * 32)) * 32;
  check(team <= kTeamThreads, "{}: rows of {} elements are too wide; the CUDA back end takes up to {}", kernel,
        packets * kPacket, kTeamThreads * kTeamPackets * kPacket);
  return dim3(static_cast<unsigned>(team),
              static_cast<unsigned>(std::clamp<int64_t>(threads / team, 1, kTeamsInBlock)));
}

// Sums each value over the team in a fixed order; every thread receives it. scratch: [2][kTeamThreads / 32][kCount] in
// shared memory; `turn` alternates between its halves, so that one barrier a call suffices.
template <int kCount>
__device__ inline void team_sum(float (&values)[kCount], float* scratch, int& turn) {
#pragma unroll
  for (int c = 0; c < kCount; ++c) values[c] = warp_sum(values[c]);
  if (blockDim.x == 32) return;
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  float* slots = scratch + (turn * (kTeamThreads / 32) + static_cast<int>(threadIdx.y) * warps) * kCount;
  turn ^= 1;
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int c = 0; c < kCount; ++c) slots[warp * kCount + c] = values[c];
  }
  asm volatile("bar.sync %0, %1;" ::"r"(threadIdx.y + 1), "r"(blockDim.x) : "memory");
#pragma unroll
  for (int c = 0; c < kCount; ++c) {
    values[c] = 0;
    for (int w = 0; w < warps; ++w) values[c] += slots[w * kCount + c];
  }
}

// Where a thread's packet stands in the row.
struct PacketPlace {
  int column = 0;
  int count = 0;  // its elements; 0: beyond the row
};

// Bytes of shared memory that combine_teams wants.
inline size_t combine_bytes(dim3 block, int64_t columns) {
  return block.y * static_cast<size_t>(columns) * sizeof(float);
}

// Adds the teams' sums in the order of the teams and writes them to a row of partials. shared: [teams][columns] floats.
__device__ inline void combine_teams(float* target, int columns, const float (&sums)[kTeamPackets][kPacket],
                                     const PacketPlace (&places)[kTeamPackets], float* shared) {
  float* const own = shared + static_cast<int>(threadIdx.y) * columns;
#pragma unroll
  for (int p = 0; p < kTeamPackets; ++p) {
#pragma unroll
    for (int i = 0; i < kPacket; ++i) {
      if (i < places[p].count) own[places[p].column + i] = sums[p][i];
    }
  }
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x),
            threads = static_cast<int>(blockDim.x * blockDim.y), teams = static_cast<int>(blockDim.y);
  for (int c = thread; c < columns; c += threads) {
    float sum = shared[c];
    for (int team = 1; team < teams; ++team) sum += shared[team * columns + c];
    target[c] = sum;
  }
  __syncthreads();
}

// weight_grad (and bias_grad, when defined) [H, w] with a head stride or [C] = [+=] the sum over sets of
// partials [kNormPartials, 1 or 2, C]. Defined in norm_cuda.cu.
void sum_partials(CudaContext& context, const char* kernel, const View& partials, const View& weight_grad,
                  const View& bias_grad, bool accumulate);

}  // namespace egmla::gpu

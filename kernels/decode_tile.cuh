// Shared by the decoding kernels: rows of bf16 in shared memory with padding instead of permutation (any width that is
// a multiple of 16 elements), and copies that run ahead in groups.
#pragma once

#include "kernels/attention_ptx.cuh"
#include "kernels/cuda_utils.cuh"

namespace egmla::decode {

using flash::Bf16;

constexpr float kLog2E = 1.44269504088896341f;
constexpr int kRowPad = 8;  // elements behind each row: eight rows of one column then meet all 32 banks

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_groups() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint32_t shared_address(const void* data) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(data));
}

// This split's tokens: [first, end).
struct Range {
  int first, end;
};

__device__ __forceinline__ Range split_range(int count, int split, int splits, int tile) {
  const int chunk = ((count + splits - 1) / splits + tile - 1) / tile * tile;
  const int first = min(count, split * chunk);
  return {first, min(count, first + chunk)};
}

// What a split without tokens leaves.
__device__ __forceinline__ void write_nothing(float* partial, int width, int threads) {
  for (int i = static_cast<int>(threadIdx.x); i < width + 2; i += threads) partial[i] = i == width ? -1e30f : 0.0f;
}

}  // namespace egmla::decode

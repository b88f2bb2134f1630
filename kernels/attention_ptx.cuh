// The PTX instructions that attention is built from, each behind one function (sm_80 and newer):
// mma.sync on 16 x 8 x 16 bf16 tiles, ldmatrix, cp.async. Shared memory is addressed by its 32-bit address.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace egmla::flash {

using Bf16 = __nv_bfloat16;

// Start of the block's dynamic shared memory.
__device__ __forceinline__ uint32_t dynamic_shared() {
  extern __shared__ __align__(128) unsigned char memory[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}

// threadIdx.x, read anew at each call: what is computed from it is not kept in registers across a loop.
__device__ __forceinline__ int fresh_thread() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

// blockIdx.y and blockIdx.z in the same way.
__device__ __forceinline__ int fresh_head() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.y;" : "=r"(x));
  return x;
}

__device__ __forceinline__ int fresh_batch() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.z;" : "=r"(x));
  return x;
}

// Four 8 x 8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8 and receives, of each matrix, the
// elements (l / 4, 2 (l % 4) + {0, 1}).
__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address));
}

// The same with every matrix transposed.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&x)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address));
}

// c += a b: a is 16 x 16, b is 16 x 8. Lane l holds c at rows l / 4 (c[0], c[1]) and l / 4 + 8 (c[2], c[3]), columns
// 2 (l % 4) + {0, 1}.
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Copies 16 bytes to shared memory behind the program's back; zeros when not `inside` (source must still be valid).
__device__ __forceinline__ void copy_async_16(uint32_t target, const void* source, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(inside ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy_async_4(uint32_t target, const void* source, bool inside) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(source), "r"(inside ? 4 : 0)
               : "memory");
}

// Waits for every copy of this thread; a barrier must follow before others read.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ float2 load_shared_pair(uint32_t address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
  return x;
}

// 2^x to two units in the last place; 0 at -infinity.
__device__ __forceinline__ float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to bf16; `low` lands in the lower half.
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  uint32_t x;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(x) : "f"(high), "f"(low));
  return x;
}

}  // namespace egmla::flash

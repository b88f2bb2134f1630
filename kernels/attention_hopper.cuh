// Hopper's instructions as functions: mbarriers, the copy engine (TMA) and products of a warpgroup (wgmma).
// A tile in shared memory is a row of panels [rows, 64] bf16, each 1024-byte aligned, in TMA's 128-byte swizzle; the
// columns beyond a tensor's width are zeros. Accumulators are float[N / 2]: element 4 n + e of a lane lies in column
// 8 n + 2 (lane % 4) + e % 2 and row 16 (warp % 4) + lane / 4 + 8 (e / 2).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/attention_arguments.cuh"
#include "kernels/attention_hopper_space.h"
#include "kernels/attention_ptx.cuh"

namespace egmla::hopper {

// Only code for sm_90a knows these instructions; elsewhere the kernels are empty and never launched.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kCompiled = true;
#else
constexpr bool kCompiled = false;
#endif

#ifdef EGMLA_HOPPER
constexpr bool kBuilt = true;  // the build has code for sm_90a
#else
constexpr bool kBuilt = false;
#endif

using flash::Bf16;

constexpr int kGroupThreads = 128;  // a warpgroup

constexpr int panels(int width) {
  return (width + kPanel - 1) / kPanel;
}

// Bytes of a tile.
constexpr uint32_t tile_bytes(int rows, int width) {
  return static_cast<uint32_t>(rows * panels(width) * 2 * kPanel);
}

// The same value, but what is computed from it is not kept in registers across a loop.
template <class T>
__device__ __forceinline__ T fresh(T x) {
  asm volatile("" : "+r"(x));
  return x;
}

// First multiple of 1024 in the block's dynamic shared memory, as panels ask for.
__device__ __forceinline__ uint32_t aligned_shared() {
  return (flash::dynamic_shared() + 1023) & ~1023u;
}

// ---- barriers ----

__device__ __forceinline__ void init_barrier(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// After init_barrier, before a __syncthreads: the copy engine sees the barriers too.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One lane arrives for its warp. racecheck takes that for an arrival of this lane alone, so for it every lane arrives.
#ifdef EGMLA_EVERY_LANE_ARRIVES
constexpr int kWarpArrivals = 32;
#else
constexpr int kWarpArrivals = 1;
#endif

__device__ __forceinline__ bool arrives_for_warp(int lane = flash::fresh_thread() & 31) {
  return kWarpArrivals == 32 || lane == 0;
}

// Arrives, and makes the phase wait for so many bytes of copies.
__device__ __forceinline__ void arrive_expecting(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Returns once the phase of this parity is complete.
__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra finished;\n"
      "bra again;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Named barriers among `threads` threads of the block; 0 is __syncthreads.
__device__ __forceinline__ void sync_named(int name, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(name), "r"(threads) : "memory");
}
__device__ __forceinline__ void arrive_named(int name, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(name), "r"(threads) : "memory");
}

// A ring of `kStages` slots: the place of the next slot and the parity of its current turn.
template <int kStages>
struct Ring {
  int slot = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void advance() {
    if (++slot == kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ void store_shared(uint32_t address, int x) {
  asm volatile("st.shared.s32 [%0], %1;" ::"r"(address), "r"(x) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, float x, float y, float z, float w) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(x), "f"(y), "f"(z), "f"(w) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t address, int x, int y, int z, int w) {
  asm volatile("st.shared.v4.s32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
__device__ __forceinline__ int load_shared(uint32_t address) {
  int x;
  asm volatile("ld.shared.s32 %0, [%1];" : "=r"(x) : "r"(address) : "memory");
  return x;
}

// ---- copies ----

__device__ __forceinline__ void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// One box [rows, 64] of a tensor [B, T, heads, width]; the barrier receives its bytes, rows and columns beyond the
// tensor included.
__device__ __forceinline__ void load_panel(uint32_t target, const CUtensorMap& map, int column, int head, int row,
                                           int batch, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(target),
      "l"(&map), "r"(column), "r"(head), "r"(row), "r"(batch), "r"(barrier)
      : "memory");
}

// Multiples of 16 bytes, 16-byte aligned.
__device__ __forceinline__ void load_bytes(uint32_t target, const void* source, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(target),
               "l"(source), "r"(bytes), "r"(barrier)
               : "memory");
}

// From shared memory to device memory: stored, or added as f32.
__device__ __forceinline__ void store_bytes(void* target, uint32_t source, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(target), "r"(source), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void add_bytes(void* target, uint32_t source, uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(target), "r"(source),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until the source may be overwritten; until the target is written.
__device__ __forceinline__ void wait_copies_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void wait_copies_done() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}
// Orders copies of this thread after what it has seen, and what it does next after its copies.
__device__ __forceinline__ void publish_all() {
  asm volatile("fence.proxy.async;" ::: "memory");
}

// What this thread wrote to shared memory becomes visible to products and copies; a barrier must follow.
__device__ __forceinline__ void publish_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Four 8 x 8 matrices of 16-bit elements: lane l names row l % 8 of matrix l / 8; the layout is load_matrices'.
__device__ __forceinline__ void store_matrices(uint32_t address, uint32_t x0, uint32_t x1, uint32_t x2, uint32_t x3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x0), "r"(x1),
               "r"(x2), "r"(x3)
               : "memory");
}

// ---- registers ----

template <int kRegisters>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- products ----

__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Until at most kLeft of the committed groups run.
template <int kLeft>
__device__ __forceinline__ void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// Keeps the compiler from moving uses of an accumulator across the point.
template <int N>
__device__ __forceinline__ void pin(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int M, int N>
__device__ __forceinline__ void pin(uint32_t (&x)[M][N]) {
#pragma unroll
  for (int i = 0; i < M * N; ++i) asm volatile("" : "+r"(x[i / N][i % N])::"memory");
}

// Describes an operand in panels. Along the rows' columns (k-major: the summed axis runs along the 64 columns) eight
// rows lie 1024 bytes apart; the other way round (the summed axis runs down the rows) panels lie `panel_bytes` apart.
__device__ __forceinline__ uint64_t describe(uint32_t address, uint32_t panel_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62, kEightRows = uint64_t{1024 >> 4} << 32;
  return kSwizzle128 | kEightRows | static_cast<uint64_t>(panel_bytes >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// The descriptor `bytes` further on.
__device__ __forceinline__ uint64_t step(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}

constexpr uint32_t kColumnStep = 32;     // 16 columns
constexpr uint32_t kRowStep = 16 * 128;  // 16 rows

// Byte offset of column 16 i of a tile whose panels are `panel_bytes` long.
__device__ __forceinline__ constexpr uint32_t column_offset(int i, uint32_t panel_bytes) {
  return static_cast<uint32_t>(i / 4) * panel_bytes + static_cast<uint32_t>(i % 4) * kColumnStep;
}

#define EGMLA_F4(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define EGMLA_F16(x, i) EGMLA_F4(x, i), EGMLA_F4(x, i + 4), EGMLA_F4(x, i + 8), EGMLA_F4(x, i + 12)
#define EGMLA_NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define EGMLA_NAMES_32 EGMLA_NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define EGMLA_NAMES_64                                                                                     \
  EGMLA_NAMES_32                                                                                           \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
  "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// acc (+)= A B with both operands in shared memory; kRowsA and kRowsB: the operand's summed axis runs down its rows.
#define EGMLA_PRODUCT_SHARED(N, NAMES, A, B, KEEP, RA, RB, ...)                                                      \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " KEEP                                                        \
               ", 0;\n"                                                                                              \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" NAMES "}, " A ", " B ", keep, 1, 1, " RA \
               ", " RB ";\n}\n"                                                                                      \
               : __VA_ARGS__                                                                                         \
               : "l"(a), "l"(b), "r"(keep ? 1 : 0), "n"(kRowsA ? 1 : 0), "n"(kRowsB ? 1 : 0))

template <bool kRowsA, bool kRowsB>
__device__ __forceinline__ void multiply_add(float (&acc)[16], uint64_t a, uint64_t b, bool keep) {
  EGMLA_PRODUCT_SHARED(32, EGMLA_NAMES_16, "%16", "%17", "%18", "%19", "%20", EGMLA_F16(acc, 0));
}
template <bool kRowsA, bool kRowsB>
__device__ __forceinline__ void multiply_add(float (&acc)[32], uint64_t a, uint64_t b, bool keep) {
  EGMLA_PRODUCT_SHARED(64, EGMLA_NAMES_32, "%32", "%33", "%34", "%35", "%36", EGMLA_F16(acc, 0), EGMLA_F16(acc, 16));
}
template <bool kRowsA, bool kRowsB>
__device__ __forceinline__ void multiply_add(float (&acc)[64], uint64_t a, uint64_t b, bool keep) {
  EGMLA_PRODUCT_SHARED(128, EGMLA_NAMES_64, "%64", "%65", "%66", "%67", "%68", EGMLA_F16(acc, 0), EGMLA_F16(acc, 16),
                       EGMLA_F16(acc, 32), EGMLA_F16(acc, 48));
}
#undef EGMLA_PRODUCT_SHARED

// acc (+)= A B with 64 x 16 of A in registers, laid out as an accumulator rounded pair by pair, and B's summed axis
// down its rows.
#define EGMLA_PRODUCT_REGISTERS(N, NAMES, A, B, KEEP, ...)                                         \
  asm volatile("{\n.reg .pred keep;\nsetp.ne.b32 keep, " KEEP                                      \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" NAMES "}, {" A "}, " B \
               ", keep, 1, 1, 1;\n}\n"                                                             \
               : __VA_ARGS__                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep ? 1 : 0))

__device__ __forceinline__ void multiply_add(float (&acc)[16], const uint32_t (&a)[4], uint64_t b, bool keep) {
  EGMLA_PRODUCT_REGISTERS(32, EGMLA_NAMES_16, "%16, %17, %18, %19", "%20", "%21", EGMLA_F16(acc, 0));
}
__device__ __forceinline__ void multiply_add(float (&acc)[32], const uint32_t (&a)[4], uint64_t b, bool keep) {
  EGMLA_PRODUCT_REGISTERS(64, EGMLA_NAMES_32, "%32, %33, %34, %35", "%36", "%37", EGMLA_F16(acc, 0),
                          EGMLA_F16(acc, 16));
}
__device__ __forceinline__ void multiply_add(float (&acc)[64], const uint32_t (&a)[4], uint64_t b, bool keep) {
  EGMLA_PRODUCT_REGISTERS(128, EGMLA_NAMES_64, "%64, %65, %66, %67", "%68", "%69", EGMLA_F16(acc, 0),
                          EGMLA_F16(acc, 16), EGMLA_F16(acc, 32), EGMLA_F16(acc, 48));
}
#undef EGMLA_PRODUCT_REGISTERS
#undef EGMLA_NAMES_64
#undef EGMLA_NAMES_32
#undef EGMLA_NAMES_16
#undef EGMLA_F16
#undef EGMLA_F4

// An accumulator becomes the left operand of the next product.
template <int N>
__device__ __forceinline__ void to_operand(uint32_t (&out)[N / 8][4], const float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N / 2; ++i) out[i / 4][i % 4] = flash::pack_pair(x[2 * i], x[2 * i + 1]);
}

// ---- results ----

// The four lanes of a row hold a pair of columns each of four column tiles (32 columns); afterwards each holds the
// eight columns of one tile: word i of lane l becomes word l of lane i.
__device__ __forceinline__ void transpose_quad(uint32_t (&x)[4]) {
  const bool odd = flash::fresh_thread() & 1, upper = flash::fresh_thread() & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, odd ? x[i] : x[i + 1], 1);
    x[i] = odd ? got : x[i];
    x[i + 1] = odd ? x[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, upper ? x[i] : x[i + 2], 2);
    x[i] = upper ? got : x[i];
    x[i + 2] = upper ? x[i + 2] : got;
  }
}

// Writes factor[half] * the accumulator's 64 rows, rounded, to rows [first, ...) below `end` of `target`, from
// `column` on below `width`, 16 bytes a lane.
template <int N>
__device__ __forceinline__ void store_rows(Bf16* target, int64_t stride, int width, int column, const float (&x)[N],
                                           const float (&factor)[2], int first, int end) {
  const int lane = flash::fresh_thread() & 31, row0 = first + (flash::fresh_thread() >> 5 & 3) * 16 + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = row0 + 8 * half;
#pragma unroll
    for (int n = 0; n < N / 4; n += 4) {
      uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (n + i) + 2 * half;
        words[i] = flash::pack_pair(factor[half] * x[at], factor[half] * x[at + 1]);
      }
      transpose_quad(words);
      const int place = column + 8 * (n + lane % 4);
      if (row < end && place < width)
        *reinterpret_cast<uint4*>(target + row * stride + place) = make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
}

}  // namespace egmla::hopper

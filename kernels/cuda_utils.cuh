// Shared by the CUDA kernels: the one launcher, dtype dispatch, 16-byte loads and stores with a fallback for what is
// not aligned, reductions in a fixed order. Arithmetic is f32 whatever the storage; accumulation orders depend on
// shapes alone, so results repeat bit for bit.
#pragma once

#include <cuda_bf16.h>

#include <cstring>
#include <type_traits>

#include "core/cuda_state.h"
#include "core/view.h"

namespace egmla {

using bf16 = __nv_bfloat16;

template <>
struct DTypeOf<bf16> {
  static constexpr DType value = DType::bf16;
};

// Runs a kernel on the context's stream and checks the launch; an empty grid is no work.
template <class Kernel, class... Args>
void launch_kernel(CudaContext& context, const char* name, dim3 grid, dim3 block, size_t shared, Kernel* kernel,
                   const Args&... args) {
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared > kSharedWithoutAsking)
    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared)),
               name);
  kernel<<<grid, block, shared, context.state().stream>>>(args...);
  context.state().check_launch(name);
}

// The same for kernels that begin with gpu::wait_for_previous(): on Hopper their blocks may be placed, and load what no
// kernel writes, while the kernel before them in the stream still runs (programmatic dependent launch).
template <class... Parameters, class... Args>
void launch_chained(CudaContext& context, const char* name, dim3 grid, dim3 block, size_t shared,
                    void (*kernel)(Parameters...), const Args&... args) {
  if (context.state().capability < 90) return launch_kernel(context, name, grid, block, shared, kernel, args...);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shared)),
             name);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = context.state().stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, Parameters(args)...), name);
  context.state().check_launch(name);
}

namespace gpu {

// What the kernels before this one wrote may be read, and what they read be written, from here on. Every thread calls
// it; the kernel behind this one may be placed from then on. Only for kernels started by launch_chained. What kernels
// further in front wrote may be read earlier, unless the one before this one called release_next().
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The kernel behind this one may be placed once every block has called this. What that kernel loads before its own
// wait_for_previous() must be written by no kernel.
__device__ __forceinline__ void release_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Calls function(T{}) with T = float or bf16.
template <class F>
void for_float(DType dtype, const char* kernel, F&& function) {
  if (dtype == DType::f32) return function(float{});
  if (dtype == DType::bf16) return function(bf16{});
  fail("{}: the CUDA back end computes in f32 or bf16, found {}", kernel, name_of(dtype));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

__device__ inline float to_float(float x) {
  return x;
}
__device__ inline float to_float(bf16 x) {
  return __bfloat162float(x);
}

// ---- packets: what a thread moves at once ----

constexpr int kPacket = 8;  // elements: 16 bytes of bf16, 32 of f32

template <class T, int kSize = kPacket>
struct alignas(kSize * sizeof(T) < 16 ? kSize * sizeof(T) : 16) Packet {
  T values[kSize];
  __device__ T get(int i) const { return values[i]; }
  __device__ void set(int i, T value) { values[i] = value; }
  __device__ float operator[](int i) const { return values[i]; }
};

// Two elements a word, so that a packet takes half as many registers.
template <int kSize>
struct alignas(kSize < 8 ? kSize * 2 : 16) Packet<bf16, kSize> {
  uint32_t words[kSize / 2];
  __device__ bf16 get(int i) const {
    return __ushort_as_bfloat16(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
  }
  // To be called for i = 0, 1, 2, ...: an even element clears its word.
  __device__ void set(int i, bf16 value) {
    const uint32_t bits = __bfloat16_as_ushort(value);
    words[i / 2] = i % 2 ? words[i / 2] | bits << 16 : bits;
  }
  __device__ float operator[](int i) const {
    return __uint_as_float(i % 2 ? words[i / 2] & 0xffff0000u : words[i / 2] << 16);
  }
};

namespace detail {

// Moves bytes in the widest words their alignment allows; both sides must be aligned to it.
template <size_t kBytes>
__device__ inline void move_words(void* target, const void* source) {
  using Word = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes % 8 == 0, uint2, uint32_t>>;
#pragma unroll
  for (size_t i = 0; i < kBytes / sizeof(Word); ++i)
    static_cast<Word*>(target)[i] = static_cast<const Word*>(source)[i];
}

}  // namespace detail

// Reads `count` <= kSize elements, zero beyond. `wide`: source is aligned for vector loads.
template <int kSize = kPacket, class T>
__device__ inline Packet<T, kSize> load(const T* source, bool wide, int count) {
  Packet<T, kSize> out;
  if (wide && count >= kSize) {
    detail::move_words<sizeof(out)>(&out, source);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out.set(i, i < count ? source[i] : T(0.0f));
  }
  return out;
}

template <int kSize, class T>
__device__ inline void store(T* target, const Packet<T, kSize>& packet, bool wide, int count) {
  if (wide && count >= kSize) {
    detail::move_words<sizeof(packet)>(target, &packet);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      if (i < count) target[i] = packet.get(i);
    }
  }
}

// Rounds floats to T.
template <int kSize>
__device__ inline void round_to(Packet<float, kSize>& packet, const float (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) packet.values[i] = values[i];
}

template <int kSize>
__device__ inline void round_to(Packet<bf16, kSize>& packet, const float (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; i += 2) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(values[i], values[i + 1]);
    memcpy(&packet.words[i / 2], &pair, sizeof(pair));
  }
}

template <int kSize, class T>
__device__ inline void store_floats(T* target, const float (&values)[kSize], bool wide, int count) {
  Packet<T, kSize> packet;
  round_to(packet, values);
  store(target, packet, wide, count);
}

// Whether every row of the view starts at a multiple of 16 bytes, so that `load` and `store` may be wide.
inline bool aligned(const View& view) {
  if (!view.defined()) return true;
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) return false;
  for (int axis = 0; axis + 1 < view.rank(); ++axis) {
    if (view.size(axis) > 1 && static_cast<size_t>(view.stride(axis)) * size_of(view.dtype) % 16 != 0) return false;
  }
  return true;
}

template <class... Views>
bool all_aligned(const Views&... views) {
  return (aligned(views) && ...);
}

// ---- reductions: butterflies, so that every lane holds the same sum of the same order ----

template <class T>
__device__ inline T warp_sum(T value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

__device__ inline float warp_max(float value) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, lane));
  return value;
}

// Sum over a one-dimensional block whose size is a multiple of 32; every thread receives it.
template <class T>
__device__ inline T block_sum(T value) {
  __shared__ T scratch[32];
  value = warp_sum(value);
  __syncthreads();  // readers of an earlier call are done
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? scratch[threadIdx.x % 32] : T(0));
}

__device__ inline float block_max(float value) {
  __shared__ float scratch[32];
  value = warp_max(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  return warp_max(scratch[threadIdx.x % 32 < blockDim.x / 32 ? threadIdx.x % 32 : 0]);
}

// ---- accurate enough under fast math, where tanhf alone is good to three digits ----

__device__ inline float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}
__device__ inline float tanh_of(float x) {
  return 1.0f - 2.0f / (__expf(2.0f * x) + 1.0f);
}

}  // namespace gpu
}  // namespace egmla

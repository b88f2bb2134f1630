// What attention's CUDA kernels receive, and the paths behind one interface: tensor cores for bf16 rows that start at
// multiples of 16 bytes, on Hopper by its own instructions, and a plain one for f32 and everything else.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/attention.h"

namespace egmla::flash {

// One tensor [B, T, heads, width]; strides in elements, the last axis is contiguous.
template <class T>
struct Operand {
  T* data = nullptr;
  int64_t batch = 0, row = 0, head = 0;
  int width = 0;
  __device__ __forceinline__ T* at(int b, int h) const { return data + b * batch + h * head; }
};

template <class T>
struct ForwardArguments {
  Operand<T> out, q, k, k_rope, v;
  float* lse;                 // [B, H, Tq]
  const int* document_start;  // [B, Tq] or null
  int queries, keys, heads, group;
  float scale;
};

template <class T>
struct BackwardArguments {
  Operand<T> q, k, k_rope, v, out_grad;
  Operand<T> q_grad, k_grad, v_grad;
  float* rope_partials;       // [B, Hkv, T, dr], summed over the key heads afterwards
  const float *lse, *delta;   // [B, H, T]
  const int* document_start;  // [B, T] or null
  int length, heads, group;
  float scale;
};

constexpr int kMaxWidth = 256;  // of qk and of v, on both paths

void forward_on_tensor_cores(CudaContext& context, const ForwardArguments<__nv_bfloat16>& arguments, int batch);
void backward_on_tensor_cores(CudaContext& context, const BackwardArguments<__nv_bfloat16>& arguments, int batch);
template <class T>  // float or bf16
void forward_plain(CudaContext& context, const ForwardArguments<T>& arguments, int batch);
template <class T>
void backward_plain(CudaContext& context, const BackwardArguments<T>& arguments, int batch);

// Hopper's kernels (wgmma, TMA), for operands that tensor cores take.
bool on_hopper(CudaContext& context);  // whether the device and the build have them
bool suits_hopper(CudaContext& context, const AttentionForward& kernel);
bool suits_hopper(CudaContext& context, const AttentionBackward& kernel);
void forward_on_hopper(CudaContext& context, const ForwardArguments<__nv_bfloat16>& arguments, int batch);
int64_t hopper_workspace(const AttentionBackward& kernel);  // elements
// Returns the gradients of the shared rope key by key head, [B, Hkv, T, dr], where there is such a key.
const float* backward_on_hopper(CudaContext& context, const BackwardArguments<__nv_bfloat16>& arguments,
                                const Operand<__nv_bfloat16>& out, float* workspace, int batch);

// First query of the sequence whose document starts after `key`; starts never decrease.
__device__ __forceinline__ int first_query_past(const int* starts, int length, int key) {
  int low = 0, high = length;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (starts[middle] > key) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace egmla::flash

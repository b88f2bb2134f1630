// Our attention on CUDA: checks, the choice between Hopper's kernels, tensor cores and the plain path, delta =
// rowsum(out * dout) and the sum of the shared rope key's gradient over heads. Two runs agree bit for bit.
#include <algorithm>
#include <initializer_list>
#include <type_traits>

#include "kernels/attention_arguments.cuh"
#include "kernels/attention_choice.h"
#include "kernels/cuda_utils.cuh"

namespace egmla {
namespace {

using flash::Operand;

constexpr int kDeltaWarps = 8;

// delta[b, h, i] = sum over c of out * out_grad; one warp a row.
template <class T>
__global__ void attention_delta_kernel(float* delta, const Operand<T> out, const Operand<T> out_grad, int length,
                                       int heads) {
  const int i = static_cast<int>(blockIdx.x) * kDeltaWarps + static_cast<int>(threadIdx.x) / 32;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (i >= length) return;
  const T* a = out.at(b, h) + i * out.row;
  const T* g = out_grad.at(b, h) + i * out_grad.row;
  float sum = 0.0f;
  for (int c = static_cast<int>(threadIdx.x) % 32; c < out.width; c += 32)
    sum += gpu::to_float(a[c]) * gpu::to_float(g[c]);
  sum = gpu::warp_sum(sum);
  if (threadIdx.x % 32 == 0) delta[(static_cast<int64_t>(b) * heads + h) * length + i] = sum;
}

// k_rope_grad[b, t, c] = sum over key heads of partials[b, head, t, c].
template <class T>
__global__ void attention_rope_gradient_kernel(const Operand<T> k_rope_grad, const float* partials, int length,
                                               int key_heads) {
  const int width = k_rope_grad.width, b = static_cast<int>(blockIdx.y);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, plane = int64_t{length} * width;
  if (index >= plane) return;
  float sum = 0.0f;
  for (int h = 0; h < key_heads; ++h) sum += partials[(static_cast<int64_t>(b) * key_heads + h) * plane + index];
  k_rope_grad.at(b, 0)[index / width * k_rope_grad.row + index % width] = T(sum);
}

template <class T>
Operand<T> operand(const View& view) {
  if (!view.defined()) return {};
  return {view.as<T>(), view.stride(0), view.stride(1), view.stride(2), static_cast<int>(view.size(3))};
}

template <class Kernel>
void check_kernel(const Kernel& k) {
  const int64_t qk = k.q.size(3), v = k.v.size(3);
  check(qk <= flash::kMaxWidth && v <= flash::kMaxWidth,
        "{}: the CUDA back end handles head widths up to {}; q has {}, v has {}", Kernel::kName, flash::kMaxWidth, qk,
        v);
  check(k.scale > 0, "{}: the scale must be positive, found {}", Kernel::kName, k.scale);
}

// Whether 16-byte copies reach every row of every tensor.
bool suits_tensor_cores(std::initializer_list<View> views) {
  return std::all_of(views.begin(), views.end(), [](const View& view) {
    return !view.defined() || (view.dtype == DType::bf16 && view.size(3) % gpu::kPacket == 0 && gpu::aligned(view));
  });
}

template <class T>
flash::ForwardArguments<T> forward_arguments(const AttentionForward& k) {
  return {.out = operand<T>(k.out),
          .q = operand<T>(k.q),
          .k = operand<T>(k.k),
          .k_rope = operand<T>(k.k_rope),
          .v = operand<T>(k.v),
          .lse = k.lse.as<float>(),
          .document_start = k.document_start.defined() ? k.document_start.as<int32_t>() : nullptr,
          .queries = static_cast<int>(k.q.size(1)),
          .keys = static_cast<int>(k.k.size(1)),
          .heads = static_cast<int>(k.q.size(2)),
          .group = static_cast<int>(k.q.size(2) / k.k.size(2)),
          .scale = static_cast<float>(k.scale)};
}

template <class T>
flash::BackwardArguments<T> backward_arguments(const AttentionBackward& k) {
  return {.q = operand<T>(k.q),
          .k = operand<T>(k.k),
          .k_rope = operand<T>(k.k_rope),
          .v = operand<T>(k.v),
          .out_grad = operand<T>(k.out_grad),
          .q_grad = operand<T>(k.q_grad),
          .k_grad = operand<T>(k.k_grad),
          .v_grad = operand<T>(k.v_grad),
          .rope_partials = k.workspace.defined() ? k.workspace.as<float>() : nullptr,
          .lse = k.lse.as<float>(),
          .delta = k.delta.as<float>(),
          .document_start = k.document_start.defined() ? k.document_start.as<int32_t>() : nullptr,
          .length = static_cast<int>(k.q.size(1)),
          .heads = static_cast<int>(k.q.size(2)),
          .group = static_cast<int>(k.q.size(2) / k.k.size(2)),
          .scale = static_cast<float>(k.scale)};
}

bool suits_tensor_cores(const AttentionForward& k) {
  return suits_tensor_cores({k.out, k.q, k.k, k.k_rope, k.v});
}
bool suits_tensor_cores(const AttentionBackward& k) {
  return suits_tensor_cores({k.q, k.k, k.k_rope, k.v, k.out, k.out_grad, k.q_grad, k.k_grad, k.v_grad});
}

// delta, then the gradients, by the kernels that every card runs.
template <class T>
const float* backward(CudaContext& context, const AttentionBackward& k, const flash::BackwardArguments<T>& p) {
  const int batch = static_cast<int>(k.q.size(0));
  const dim3 rows(static_cast<unsigned>(gpu::ceil_div(p.length, kDeltaWarps)), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(batch));
  launch_kernel(context, AttentionBackward::kName, rows, dim3(32 * kDeltaWarps), 0, attention_delta_kernel<T>,
                k.delta.as<float>(), operand<T>(k.out), p.out_grad, p.length, p.heads);
  if constexpr (std::is_same_v<T, bf16>) {
    if (suits_tensor_cores(k)) {
      flash::backward_on_tensor_cores(context, p, batch);
      return p.rope_partials;
    }
  }
  flash::backward_plain(context, p, batch);
  return p.rope_partials;
}

template <class T>
void sum_rope_gradients(CudaContext& context, const AttentionBackward& k, const float* partials) {
  constexpr unsigned kThreads = 256;
  const Operand<T> target = operand<T>(k.k_rope_grad);
  const int length = static_cast<int>(k.q.size(1));
  const dim3 grid(static_cast<unsigned>(gpu::ceil_div(int64_t{length} * target.width, kThreads)),
                  static_cast<unsigned>(k.q.size(0)));
  launch_kernel(context, AttentionBackward::kName, grid, dim3(kThreads), 0, attention_rope_gradient_kernel<T>, target,
                partials, length, static_cast<int>(k.k.size(2)));
}

}  // namespace

void run_native(CudaContext& context, const AttentionForward& k) {
  if (!hopper_accepts(context, k)) return run_portable(context, k);
  check_kernel(k);
  flash::forward_on_hopper(context, forward_arguments<bf16>(k), static_cast<int>(k.q.size(0)));
}

void run_native(CudaContext& context, const AttentionBackward& k) {
  if (!suits_tensor_cores(k) || !flash::suits_hopper(context, k)) return run_portable(context, k);
  check_kernel(k);
  const float* const partials = flash::backward_on_hopper(context, backward_arguments<bf16>(k), operand<bf16>(k.out),
                                                          k.workspace.as<float>(), static_cast<int>(k.q.size(0)));
  if (k.k_rope.defined()) sum_rope_gradients<bf16>(context, k, partials);
}

void run_portable(CudaContext& context, const AttentionForward& k) {
  check_kernel(k);
  const int batch = static_cast<int>(k.q.size(0));
  if (suits_tensor_cores(k)) return flash::forward_on_tensor_cores(context, forward_arguments<bf16>(k), batch);
  gpu::for_float(k.q.dtype, AttentionForward::kName,
                 [&](auto t) { flash::forward_plain(context, forward_arguments<decltype(t)>(k), batch); });
}

void run_portable(CudaContext& context, const AttentionBackward& k) {
  check_kernel(k);
  gpu::for_float(k.q.dtype, AttentionBackward::kName, [&](auto t) {
    using T = decltype(t);
    const float* const partials = backward<T>(context, k, backward_arguments<T>(k));
    if (k.k_rope.defined()) sum_rope_gradients<T>(context, k, partials);
  });
}

bool hopper_accepts(CudaContext& context, const AttentionForward& k) {
  return suits_tensor_cores(k) && flash::suits_hopper(context, k);
}

int64_t attention_backward_workspace(CudaContext& context, const AttentionBackward& k) {
  if (suits_tensor_cores(k) && flash::suits_hopper(context, k)) return flash::hopper_workspace(k);
  return k.k_rope.defined() ? k.k.size(0) * k.k.size(2) * k.k.size(1) * k.k_rope.size(3) : 0;
}

}  // namespace egmla

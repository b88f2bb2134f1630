// The gradient of the shared rope key from the gradients that whole keys received head by head.
#include "kernels/attention_cudnn.h"
#include "kernels/cuda_utils.cuh"

namespace egmla {
namespace {

constexpr unsigned kThreads = 256;

struct Rows {
  int64_t batch, row, head;  // strides in elements
};

Rows rows_of(const View& view) {
  return {view.stride(0), view.stride(1), view.stride(2)};
}

__global__ void __launch_bounds__(kThreads)
    sum_rope_gradient_kernel(bf16* out, const Rows to, const bf16* per_head, const Rows from, int64_t plane, int width,
                             int heads) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= plane) return;
  const int64_t b = blockIdx.y, t = index / width, c = index % width;
  const bf16* x = per_head + b * from.batch + t * from.row + c;
  float sum = 0.0f;
  for (int h = 0; h < heads; ++h) sum += gpu::to_float(x[h * from.head]);
  out[b * to.batch + t * to.row + c] = bf16(sum);
}

}  // namespace

void sum_rope_gradient(CudaContext& context, const View& k_rope_grad, const View& per_head) {
  const int64_t width = k_rope_grad.size(3), plane = k_rope_grad.size(1) * width;
  const dim3 grid(static_cast<unsigned>(gpu::ceil_div(plane, kThreads)), static_cast<unsigned>(k_rope_grad.size(0)));
  launch_kernel(context, AttentionBackward::kName, grid, dim3(kThreads), 0, sum_rope_gradient_kernel,
                k_rope_grad.as<bf16>(), rows_of(k_rope_grad), static_cast<const bf16*>(per_head.as<bf16>()),
                rows_of(per_head), plane, static_cast<int>(width), static_cast<int>(per_head.size(2)));
}

}  // namespace egmla

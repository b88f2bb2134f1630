// Launches of tensor-core attention, forward: which tile sizes a width class runs with.
#include "kernels/attention_forward.cuh"
#include "kernels/attention_widths.cuh"
#include "kernels/cuda_utils.cuh"

namespace egmla::flash {

void forward_on_tensor_cores(CudaContext& context, const ForwardArguments<bf16>& p, int batch) {
  for_widths(p.q.width, p.v.width, [&](auto widths) {
    constexpr int QK = decltype(widths)::kQk, V = decltype(widths)::kV;
    // 32 rows a warp read half the shared memory that 16 would; the output of 256 columns leaves room for 16 only.
    constexpr int MT = V > 128 ? 1 : 2, kWarps = V > 128 ? 8 : 4, BN = 64, BM = kWarps * 16 * MT;
    const dim3 grid(static_cast<unsigned>(gpu::ceil_div(p.queries, BM)), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(batch));
    launch_kernel(context, AttentionForward::kName, grid, dim3(kWarps * 32),
                  forward_shared_bytes<QK, V, MT, kWarps, BN>(), attention_forward_kernel<QK, V, MT, kWarps, BN>, p);
  });
}

}  // namespace egmla::flash

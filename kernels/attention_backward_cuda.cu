// Launches of tensor-core attention, backward: which tile sizes a width class runs with. The register budget decides:
// a thread holds MT (QK + V) / 2 sums of key gradients or MT QK / 2 of query gradients, and MT times the tile's width
// of scores.
#include "kernels/attention_backward.cuh"
#include "kernels/attention_widths.cuh"
#include "kernels/cuda_utils.cuh"

namespace egmla::flash {
namespace {

constexpr int kWarps = 4;
constexpr const char* kName = AttentionBackward::kName;

template <int QK, int V>
void query_gradient(CudaContext& context, const BackwardArguments<bf16>& p, int batch) {
  constexpr int MT = QK > 128 ? 1 : 2, BN = 32, BM = kWarps * 16 * MT;
  const dim3 grid(static_cast<unsigned>(gpu::ceil_div(p.length, BM)), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(batch));
  launch_kernel(context, kName, grid, dim3(kWarps * 32), query_gradient_shared_bytes<QK, V, MT, kWarps, BN>(),
                attention_query_gradient_kernel<QK, V, MT, kWarps, BN>, p);
}

template <int QK, int V, KeyGradients kWhat>
void key_gradient(CudaContext& context, const BackwardArguments<bf16>& p, int batch) {
  constexpr int MT = QK + V <= 128 ? 2 : 1, BM = MT == 2 || QK + V > 256 ? 32 : 64, BN = kWarps * 16 * MT;
  const dim3 grid(static_cast<unsigned>(gpu::ceil_div(p.length, BN)), static_cast<unsigned>(p.heads / p.group),
                  static_cast<unsigned>(batch));
  launch_kernel(context, kName, grid, dim3(kWarps * 32), key_gradient_shared_bytes<QK, V, MT, kWarps, BM>(),
                attention_key_gradient_kernel<QK, V, MT, kWarps, BM, kWhat>, p);
}

}  // namespace

void backward_on_tensor_cores(CudaContext& context, const BackwardArguments<bf16>& p, int batch) {
  for_widths(p.q.width, p.v.width, [&](auto widths) {
    constexpr int QK = decltype(widths)::kQk, V = decltype(widths)::kV;
    query_gradient<QK, V>(context, p, batch);
    if constexpr (QK + V > 320) {
      key_gradient<QK, V, KeyGradients::keys>(context, p, batch);
      key_gradient<QK, V, KeyGradients::values>(context, p, batch);
    } else {
      key_gradient<QK, V, KeyGradients::both>(context, p, batch);
    }
  });
}

}  // namespace egmla::flash

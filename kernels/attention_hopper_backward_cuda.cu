// Launches of Hopper's attention, backward, which operands it takes and how much workspace it needs.
#include "kernels/attention_hopper_launch.cuh"
#include "kernels/cuda_utils.cuh"

namespace egmla::flash {
namespace {

constexpr const char* kName = AttentionBackward::kName;

template <int QK, int V>
using Plan = hopper::BackwardPlan<QK, V, hopper::width_class(QK, V).rows>;

template <class Plan>
void launch_plan(CudaContext& context, const hopper::BackwardArguments& p, const Operand<bf16>& out,
                 const Operand<bf16>& out_grad, const float* lse, int batch) {
  constexpr unsigned kRows = 16;  // of a block of the first kernel
  const dim3 grid(static_cast<unsigned>(p.tiles * Plan::BN) / kRows, static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(batch));
  launch_kernel(context, kName, grid, dim3(16 * kRows), 0, hopper::attention_hopper_statistics_kernel<Plan::BM>,
                p.statistics, p.turns, p.blocks_turn + 1, out, out_grad, lse, p.length, p.heads);
  launch_kernel(context, kName, dim3(static_cast<unsigned>(p.pairs * batch * p.key_heads)), dim3(Plan::kThreads),
                Plan::kShared, hopper::attention_hopper_backward_kernel<Plan>, p);
}

}  // namespace

bool suits_hopper(CudaContext& context, const AttentionBackward& k) {
  return on_hopper(context) &&
         hopper::suits_shape(k.q.size(1), k.q.size(3), k.k_rope.defined() ? k.k.size(3) : 0, k.v.size(3)) &&
         2 * hopper::blocks_of_head(k.q.size(1)) <= context.state().multiprocessors;
}

int64_t hopper_workspace(const AttentionBackward& k) {
  return hopper::backward_space(k.q.size(0), k.q.size(2), k.k.size(2), k.q.size(1),
                                k.k_rope.defined() ? k.k_rope.size(3) : 0,
                                hopper::width_class(k.q.size(3), k.v.size(3)))
      .total();
}

const float* backward_on_hopper(CudaContext& context, const BackwardArguments<bf16>& p, const Operand<bf16>& out,
                                float* workspace, int batch) {
  const float* partials = nullptr;
  hopper::for_widths(p.q.width, p.v.width, [&](auto widths) {
    using Chosen = Plan<decltype(widths)::kQk, decltype(widths)::kV>;
    const hopper::BackwardArguments arguments = hopper::backward_arguments<Chosen>(p, batch, workspace);
    launch_plan<Chosen>(context, arguments, out, p.out_grad, p.lse, batch);
    partials = arguments.rope_partials;
  });
  return partials;
}

}  // namespace egmla::flash

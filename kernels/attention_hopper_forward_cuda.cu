// Launches of Hopper's attention, forward, and which operands it takes.
#include "kernels/attention_hopper_launch.cuh"
#include "kernels/cuda_utils.cuh"

namespace egmla::flash {
namespace {

template <class Plan>
void launch_plan(CudaContext& context, const ForwardArguments<bf16>& p, int batch) {
  const hopper::ForwardArguments arguments = hopper::forward_arguments<Plan>(p, batch, context.state().ticket);
  launch_kernel(context, AttentionForward::kName,
                hopper::forward_grid<Plan>(arguments, context.state().multiprocessors), dim3(Plan::kThreads),
                Plan::kShared, hopper::attention_hopper_forward_kernel<Plan>, arguments);
}

}  // namespace

bool on_hopper(CudaContext& context) {
  return hopper::kBuilt && context.state().capability == 90 && hopper::map_encoder();
}

bool suits_hopper(CudaContext& context, const AttentionForward& k) {
  return on_hopper(context) &&
         hopper::suits_shape(k.q.size(1), k.q.size(3), k.k_rope.defined() ? k.k.size(3) : 0, k.v.size(3));
}

void forward_on_hopper(CudaContext& context, const ForwardArguments<bf16>& p, int batch) {
  hopper::for_widths(p.q.width, p.v.width, [&](auto widths) {
    constexpr int QK = decltype(widths)::kQk, V = decltype(widths)::kV;
    launch_plan<hopper::ForwardPlan<QK, V>>(context, p, batch);
  });
}

}  // namespace egmla::flash

// launch(context, Kernel{...}): the one way a kernel runs. Every kernel struct names itself (kName), is plain named
// fields, lists its operands (views_of), and has an overload of run() for each back end; a missing twin fails at link
// time. A launch costs nothing more unless the context is watched: profile, EGMLA_CHECK=nan, EGMLA_NVTX=1.
#pragma once

#include <concepts>
#include <functional>

#include "core/context.h"
#include "core/view.h"

namespace egmla {

// A plan runs no kernel.
template <class Kernel>
void run(PlanContext&, const Kernel&) {}

// What a kernel is called in profiles; kernels whose time depends on a shape overload it.
template <class Kernel>
std::string label_of(const Kernel&) {
  return Kernel::kName;
}

// KernelViews views_of(const Kernel&) stands beside each struct.
template <class Kernel>
concept ListsItsViews = requires(const Kernel& kernel) {
  { views_of(kernel) } -> std::same_as<KernelViews>;
};

// The bytes a kernel must move at least; kernels that touch a part of an operand overload it.
template <class Kernel>
int64_t bytes_of(const Kernel& kernel) {
  return views_of(kernel).bytes();
}

// Runs a kernel and does what the context's watchers ask for: time it, mark it as a range, scan its results.
void launch_watched(Context& context, const LaunchRecord& record, const std::function<void()>& run_kernel);

// Row-major index of the first NaN or infinity of a floating view, or -1. Blocks.
int64_t first_non_finite(CpuContext& context, const View& x);
int64_t first_non_finite(PlanContext& context, const View& x);
#ifdef EGMLA_WITH_CUDA
int64_t first_non_finite(CudaContext& context, const View& x);
// Times a launch by events, and shows it as a range to Nsight.
void time_launch(CudaContext& context, Profile& profile, const LaunchRecord& record,
                 const std::function<void()>& run_kernel);
void enter_range(CudaContext& context, const std::string& label);
void leave_range(CudaContext& context);
#endif

template <class Kernel>
void launch(Context& context, const Kernel& kernel) {
  const auto run_kernel = [&] { context.visit([&](auto& backend) { run(backend, kernel); }); };
  if (!context.watched()) return run_kernel();
  launch_watched(context, {label_of(kernel), views_of(kernel), bytes_of(kernel), kernel}, run_kernel);
}

// Declares run() for each back end; used once per kernel struct, in its header, behind its views_of().
#define EGMLA_DECLARE_CPU_KERNEL(Struct)                                                       \
  static_assert(ListsItsViews<Struct>, #Struct " needs views_of(): see docs/adding_an_op.md"); \
  void run(CpuContext& context, const Struct&)
#ifdef EGMLA_WITH_CUDA
#define EGMLA_DECLARE_KERNEL(Struct) \
  EGMLA_DECLARE_CPU_KERNEL(Struct);  \
  void run(CudaContext& context, const Struct&)
#else
#define EGMLA_DECLARE_KERNEL(Struct) EGMLA_DECLARE_CPU_KERNEL(Struct)
#endif

}  // namespace egmla

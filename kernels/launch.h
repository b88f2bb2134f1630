// launch(context, Kernel{...}): the one way a kernel runs. Every kernel struct names itself (kName), is plain named
// fields, and has an overload of run() for each back end of the build; a missing twin fails at link time.
#pragma once

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

template <class Kernel>
void launch(Context& context, const Kernel& kernel) {
  if (!context.profile()) return context.visit([&](auto& backend) { run(backend, kernel); });
  context.synchronize();
  const auto start = Profile::Clock::now();
  context.visit([&](auto& backend) { run(backend, kernel); });
  context.synchronize();
  context.profile()->add(label_of(kernel), Profile::Clock::now() - start);
}

// Declares run() for each back end; used once per kernel struct, in its header.
#ifdef EGMLA_WITH_CUDA
#define EGMLA_DECLARE_KERNEL(Struct)            \
  void run(CpuContext& context, const Struct&); \
  void run(CudaContext& context, const Struct&)
#else
#define EGMLA_DECLARE_KERNEL(Struct) void run(CpuContext& context, const Struct&)
#endif

}  // namespace egmla

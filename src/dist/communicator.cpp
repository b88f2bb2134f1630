#include "dist/communicator.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>

#include "core/check.h"
#include "dist/communicator_mpi.h"
#include "dist/communicator_nccl.h"

namespace egmla {

std::string CollectiveLog::text() const {
  const char* operation = operation_;
  if (!operation) return "none";
  return fmt::format("{} of {} elements, number {}", operation, elements_.load(), number_.load());
}

void LocalCommunicator::gather_bytes(const void* own, size_t bytes, void* all) {
  std::memcpy(all, own, bytes);
}

int launched_processes() {
  // SLURM_NTASKS would be set in batch scripts too, outside srun; the step's count is srun's alone.
  constexpr std::array<const char*, 3> kCounts = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"};
  for (const char* name : kCounts) {
    if (const char* text = std::getenv(name)) return std::max(1, std::atoi(text));
  }
  return 1;
}

std::unique_ptr<Communicator> connect_processes() {
  const int count = launched_processes();
  if (count == 1) return std::make_unique<LocalCommunicator>();
  return connect_mpi(count);
}

std::unique_ptr<Communicator> connect_devices([[maybe_unused]] Context& context, [[maybe_unused]] Communicator& host) {
#ifdef EGMLA_WITH_CUDA
  if (host.size() == 1) return nullptr;
  return context.visit([&](auto& backend) -> std::unique_ptr<Communicator> {
    if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) return connect_nccl(backend, host);
    return nullptr;
  });
#else
  return nullptr;
#endif
}

}  // namespace egmla

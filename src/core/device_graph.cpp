#include "core/device_graph.h"

#include <type_traits>

namespace egmla {

void DeviceGraph::run(Context& context, const std::function<void()>& body) {
  context.visit([&]([[maybe_unused]] auto& backend) {
#ifdef EGMLA_WITH_CUDA
    if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) {
      if (ran_ && !context.watched() && backend.records()) {
        if (!recording_) recording_ = backend.record(body);
        return backend.replay(recording_);
      }
    }
#endif
    body();
    ran_ = true;
  });
}

DeviceGraph::~DeviceGraph() {
#ifdef EGMLA_WITH_CUDA
  if (recording_) CudaContext::forget(recording_);
#endif
}

}  // namespace egmla

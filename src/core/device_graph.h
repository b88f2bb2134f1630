// A fixed sequence of kernels as one launch. On CUDA the first run is plain (plans are measured, code is loaded), the
// second is recorded, and from then on the recording is replayed; elsewhere, and under a watched context, every run is
// plain. What runs must not depend on values on the host and must use the same memory each time.
#pragma once

#include <functional>

#include "core/context.h"

namespace egmla {

class DeviceGraph {
 public:
  DeviceGraph() = default;
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  ~DeviceGraph();

  void run(Context& context, const std::function<void()>& body);

 private:
  void* recording_ = nullptr;
  bool ran_ = false;
};

}  // namespace egmla

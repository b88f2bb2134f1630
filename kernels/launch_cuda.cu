// A watched launch on CUDA: timed by two events that are read later, marked for Nsight, its results scanned.
#include <nvtx3/nvToolsExt.h>

#include <memory>

#include "kernels/launch.h"
#include "kernels/walk.cuh"

namespace egmla {
namespace {

constexpr const char* kScan = "first_non_finite";
constexpr unsigned long long kNone = ~0ull;

// first = the least row-major index of a NaN or an infinity: the same whatever the order of the threads.
template <class T>
__global__ void __launch_bounds__(gpu::kWalkThreads)
    first_non_finite_kernel(gpu::Walk<1> walk, const T* x, unsigned long long* first) {
  constexpr uint32_t kExponent = 0x7f800000u;  // all ones in NaNs and infinities, which fast math may not know
  const uint32_t item = blockIdx.x * gpu::kWalkThreads + threadIdx.x;
  if (item >= walk.items) return;
  int64_t offsets[1];
  const int count = walk.at(item, offsets);
  const auto packet = gpu::load(x + offsets[0], walk.wide, count);
  const int64_t start = item / walk.packets * walk.columns + int64_t{item % walk.packets} * gpu::kPacket;
  for (int i = count - 1; i >= 0; --i) {
    const uint32_t bits = __float_as_uint(gpu::to_float(packet.get(i)));
    if ((bits & kExponent) == kExponent) atomicMin(first, static_cast<unsigned long long>(start + i));
  }
}

class EventPair {
 public:
  explicit EventPair(cudaStream_t stream) : stream_(stream) {
    check_cuda(cudaEventCreate(&begin_), "profile: cudaEventCreate");
    check_cuda(cudaEventCreate(&end_), "profile: cudaEventCreate");
    check_cuda(cudaEventRecord(begin_, stream_), "profile: cudaEventRecord");
  }
  EventPair(const EventPair&) = delete;
  EventPair& operator=(const EventPair&) = delete;
  ~EventPair() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  void stop() { check_cuda(cudaEventRecord(end_, stream_), "profile: cudaEventRecord"); }
  double seconds() const {
    float milliseconds = 0;
    check_cuda(cudaEventSynchronize(end_), "profile: cudaEventSynchronize");
    check_cuda(cudaEventElapsedTime(&milliseconds, begin_, end_), "profile: cudaEventElapsedTime");
    return 1e-3 * static_cast<double>(milliseconds);
  }

 private:
  cudaStream_t stream_;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

}  // namespace

int64_t first_non_finite(CudaContext& context, const View& x) {
  const gpu::Walk<1> walk = gpu::make_walk<1>(kScan, {x});
  auto* const first = static_cast<unsigned long long*>(context.allocate(sizeof(kNone)));
  check(first, "{}: out of memory on {}", kScan, context.name());
  unsigned long long found = kNone;
  context.copy_from_host(first, &found, sizeof(found));
  gpu::for_float(x.dtype, kScan, [&](auto t) {
    using T = decltype(t);
    launch_kernel(context, kScan, walk.blocks(), gpu::kWalkThreads, 0, first_non_finite_kernel<T>, walk,
                  static_cast<const T*>(x.as<T>()), first);
  });
  context.copy_to_host(&found, first, sizeof(found));
  context.release(first, sizeof(kNone));
  return found == kNone ? -1 : static_cast<int64_t>(found);
}

void time_launch(CudaContext& context, Profile& profile, const LaunchRecord& record,
                 const std::function<void()>& run_kernel) {
  const auto events = std::make_shared<EventPair>(context.state().stream);
  run_kernel();
  events->stop();
  profile.add(record, [events] { return events->seconds(); });
}

void enter_range(CudaContext&, const std::string& label) {
  nvtxRangePushA(label.c_str());
}

void leave_range(CudaContext&) {
  nvtxRangePop();
}

}  // namespace egmla

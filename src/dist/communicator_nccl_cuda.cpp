// A collective waits, by an event, for the kernels launched before it, and kernels launched after wait() for it; all
// else overlaps. NCCL reduces every element in an order that its topology fixes and gives all ranks the same bits.
// Calls do not block: they are asked again until NCCL is done with them, so that abort() can end them from elsewhere.
#include "core/check.h"
#include "dist/communicator_nccl.h"

#ifdef EGMLA_WITH_NCCL

#include <nccl.h>

#include <chrono>
#include <exception>
#include <thread>

#include "core/cuda_state.h"

namespace egmla {
namespace {

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(CudaContext& context, Communicator& host)
      : Communicator(host.rank(), host.log()),
        ordinal_(context.state().ordinal),
        compute_(context.state().stream),
        host_(host),
        exceptions_(std::uncaught_exceptions()) {
    ncclUniqueId id{};
    if (is_root()) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    id = host.from_root(id);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    log()->note("joining the GPUs", size());
    settle(ncclCommInitRankConfig(&nccl_, size(), id, rank().number, &config), "ncclCommInitRankConfig");
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreateWithPriority");
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
  }
  // After an error a collective may wait for a rank that never comes; only an abort ends it.
  ~NcclCommunicator() override {
    if (std::uncaught_exceptions() == exceptions_) {
      cudaStreamSynchronize(stream_);
      ncclResult_t status = ncclCommFinalize(nccl_);
      while (status == ncclInProgress && ncclCommGetAsyncError(nccl_, &status) == ncclSuccess) pause();
      ncclCommDestroy(nccl_);
    } else {
      ncclCommAbort(nccl_);
    }
    for (cudaEvent_t mark : marks_) cudaEventDestroy(mark);
    cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
  }

  void all_reduce_sum(const View& flat) override {
    begin("all_reduce_sum", flat);
    settle(ncclAllReduce(flat.data, flat.data, static_cast<size_t>(flat.elements()), summed_type(flat), ncclSum, nccl_,
                         stream_),
           "ncclAllReduce");
  }
  void reduce_scatter_sum(const View& flat) override {
    begin("reduce_scatter_sum", flat);
    const Parts parts(*this, flat);
    const ncclDataType_t type = summed_type(flat);
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    if (parts.each > 0) {
      begun(ncclReduceScatter(flat.data, parts.own, parts.each, type, ncclSum, nccl_, stream_), "ncclReduceScatter");
    }
    if (parts.left > 0) {
      begun(ncclReduce(parts.rest, parts.rest, parts.left, type, ncclSum, size() - 1, nccl_, stream_), "ncclReduce");
    }
    settle(ncclGroupEnd(), "ncclGroupEnd");
  }
  void all_gather(const View& flat) override {
    begin("all_gather", flat);
    const Parts parts(*this, flat);
    const size_t width = size_of(flat.dtype);
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    if (parts.each > 0) {
      begun(ncclAllGather(parts.own, flat.data, parts.each * width, ncclUint8, nccl_, stream_), "ncclAllGather");
    }
    if (parts.left > 0) {
      begun(ncclBroadcast(parts.rest, parts.rest, parts.left * width, ncclUint8, size() - 1, nccl_, stream_),
            "ncclBroadcast");
    }
    settle(ncclGroupEnd(), "ncclGroupEnd");
  }
  void broadcast(const View& flat) override {
    begin("broadcast", flat);
    settle(ncclBroadcast(flat.data, flat.data, flat.bytes(), ncclUint8, 0, nccl_, stream_), "ncclBroadcast");
  }
  void wait() override { follow(stream_, compute_, event_); }
  void mark(size_t slot) override {
    while (marks_.size() <= slot)
      check_cuda(cudaEventCreateWithFlags(&marks_.emplace_back(), cudaEventDisableTiming), "cudaEventCreate");
    check_cuda(cudaEventRecord(marks_[slot], stream_), "cudaEventRecord");
  }
  void wait_for(size_t slot) override {
    check_cuda(cudaStreamWaitEvent(compute_, marks_.at(slot), 0), "cudaStreamWaitEvent");
  }
  void abort() override {
    cudaSetDevice(ordinal_);
    ncclCommAbort(nccl_);
  }
  void gather_bytes(const void* own, size_t bytes, void* all) override { host_.gather_bytes(own, bytes, all); }

 private:
  // The equal parts of a flat tensor (part_begin), and what is left behind them for the last rank.
  struct Parts {
    Parts(const Communicator& communicator, const View& flat)
        : each(static_cast<size_t>(communicator.part_begin(flat.elements(), 1))) {
      const auto ranks = static_cast<size_t>(communicator.size()), n = static_cast<size_t>(flat.elements());
      const size_t width = size_of(flat.dtype);
      left = n - each * ranks;
      own = static_cast<char*>(flat.data) + each * width * static_cast<size_t>(communicator.rank().number);
      rest = static_cast<char*>(flat.data) + each * width * ranks;
    }
    size_t each, left = 0;
    char *own = nullptr, *rest = nullptr;
  };

  static void pause() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }
  static ncclDataType_t summed_type(const View& flat) {
    check(flat.dtype == DType::f32 || flat.dtype == DType::f64, "nccl: sums are of f32 or f64, found {}",
          name_of(flat.dtype));
    return flat.dtype == DType::f32 ? ncclFloat32 : ncclFloat64;
  }
  void check_nccl(ncclResult_t status, const char* call) const {
    if (status == ncclSuccess) [[likely]]
      return;
    fail("{}: {} ({}); NCCL_DEBUG=INFO tells more", call, ncclGetErrorString(status), ncclGetLastError(nccl_));
  }
  // A call inside a group, which ends with the group.
  void begun(ncclResult_t status, const char* call) const {
    if (status != ncclInProgress) check_nccl(status, call);
  }
  // Until NCCL has taken a call. Its first use of an operation takes long, all others are over at once.
  void settle(ncclResult_t status, const char* call) const {
    for (int tries = 0; status == ncclInProgress; ++tries) {
      if (tries > 100) pause();
      check_nccl(ncclCommGetAsyncError(nccl_, &status), "ncclCommGetAsyncError");
    }
    check_nccl(status, call);
  }
  // What is launched on `second` from now on stands behind what `first` holds by now.
  static void follow(cudaStream_t first, cudaStream_t second, cudaEvent_t event) {
    check_cuda(cudaEventRecord(event, first), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(second, event, 0), "cudaStreamWaitEvent");
  }
  void begin(const char* operation, const View& flat) {
    log()->note(operation, flat.elements());
    follow(compute_, stream_, event_);
  }

  int ordinal_;
  cudaStream_t compute_, stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
  std::vector<cudaEvent_t> marks_;
  ncclComm_t nccl_ = nullptr;
  Communicator& host_;
  int exceptions_;  // in flight when this object was made
};

}  // namespace

std::unique_ptr<Communicator> connect_nccl(CudaContext& context, Communicator& host) {
  return std::make_unique<NcclCommunicator>(context, host);
}

}  // namespace egmla

#else

namespace egmla {

std::unique_ptr<Communicator> connect_nccl(CudaContext&, Communicator&) {
  fail_usage(
      "run.device: several processes on GPUs need NCCL, and this build has none; install NCCL and build again, or use "
      "run.device=cpu");
}

}  // namespace egmla

#endif

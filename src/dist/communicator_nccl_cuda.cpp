// A collective waits, by an event, for the kernels launched before it, and kernels launched after wait() for it; all
// else overlaps. NCCL reduces every element in an order that its topology fixes and gives all ranks the same bits.
// Calls may block while a peer is missing: the watchdog ends the process then.
#include "core/check.h"
#include "dist/communicator_nccl.h"

#ifdef EGMLA_WITH_NCCL

#include <nccl.h>

#include <exception>

#include "core/cuda_state.h"

namespace egmla {
namespace {

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(CudaContext& context, Communicator& host)
      : Communicator(host.rank()),
        compute_(context.state().stream),
        host_(host),
        exceptions_(std::uncaught_exceptions()) {
    ncclUniqueId id{};
    if (is_root()) check_nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
    id = host.from_root(id);
    check_nccl(ncclCommInitRank(&nccl_, size(), id, rank().number), "ncclCommInitRank");
    int least = 0, greatest = 0;
    check_cuda(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange");
    check_cuda(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest), "cudaStreamCreateWithPriority");
    check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
  }
  // After an error a collective may wait for a rank that never comes; only an abort ends it.
  ~NcclCommunicator() override {
    if (std::uncaught_exceptions() == exceptions_) {
      cudaStreamSynchronize(stream_);
      ncclCommDestroy(nccl_);
    } else {
      ncclCommAbort(nccl_);
    }
    cudaEventDestroy(event_);
    cudaStreamDestroy(stream_);
  }

  void all_reduce_sum(const View& flat) override {
    follow(compute_, stream_);
    check_nccl(ncclAllReduce(flat.data, flat.data, static_cast<size_t>(flat.elements()), type_of(flat), ncclSum, nccl_,
                             stream_),
               "ncclAllReduce");
  }
  void reduce_scatter_sum(const View& flat) override {
    for_parts(flat, [&](void* part, size_t count, int owner) {
      check_nccl(ncclReduce(part, part, count, type_of(flat), ncclSum, owner, nccl_, stream_), "ncclReduce");
    });
  }
  void all_gather(const View& flat) override {
    for_parts(flat, [&](void* part, size_t count, int owner) {
      check_nccl(ncclBroadcast(part, part, count, type_of(flat), owner, nccl_, stream_), "ncclBroadcast");
    });
  }
  void broadcast(const View& flat) override {
    follow(compute_, stream_);
    check_nccl(ncclBroadcast(flat.data, flat.data, flat.bytes(), ncclUint8, 0, nccl_, stream_), "ncclBroadcast");
  }
  void wait() override { follow(stream_, compute_); }
  void gather_bytes(const void* own, size_t bytes, void* all) override { host_.gather_bytes(own, bytes, all); }

 private:
  void check_nccl(ncclResult_t status, const char* call) const {
    if (status == ncclSuccess) [[likely]]
      return;
    fail("{}: {} ({}); NCCL_DEBUG=INFO tells more", call, ncclGetErrorString(status), ncclGetLastError(nccl_));
  }
  static ncclDataType_t type_of(const View& flat) {
    check(flat.dtype == DType::f32 || flat.dtype == DType::f64, "nccl: sums are of f32 or f64, found {}",
          name_of(flat.dtype));
    return flat.dtype == DType::f32 ? ncclFloat32 : ncclFloat64;
  }
  // What is launched on `second` from now on stands behind what `first` holds by now.
  void follow(cudaStream_t first, cudaStream_t second) {
    check_cuda(cudaEventRecord(event_, first), "cudaEventRecord");
    check_cuda(cudaStreamWaitEvent(second, event_, 0), "cudaStreamWaitEvent");
  }
  // call(part, count, owner) for every rank's part, as one operation.
  template <class F>
  void for_parts(const View& flat, F&& call) {
    follow(compute_, stream_);
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    const int64_t n = flat.elements();
    for (int owner = 0; owner < size(); ++owner) {
      const int64_t begin = part_begin(n, owner), count = part_begin(n, owner + 1) - begin;
      if (count > 0) {
        call(static_cast<char*>(flat.data) + static_cast<size_t>(begin) * size_of(flat.dtype),
             static_cast<size_t>(count), owner);
      }
    }
    check_nccl(ncclGroupEnd(), "ncclGroupEnd");
  }

  cudaStream_t compute_, stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
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

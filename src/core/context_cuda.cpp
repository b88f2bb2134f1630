// Memory comes from cudaMalloc once and is then handed round: all work runs on one stream, so a block that is released
// while kernels still read it may be given out at once, since its next user stands behind them in the stream.
#include "core/context_cuda.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/cuda_state.h"

namespace egmla {
namespace {

// As on the CPU: to 64 bytes below 4 KiB, to 4 KiB above. cudaMalloc aligns every block to 256 bytes in any case.
size_t rounded(size_t bytes) {
  const size_t step = bytes < 4096 ? 64 : 4096;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

// Blocks cached under other sizes go back to the driver: the last resort before giving up.
void return_free_blocks(CudaContext::State& state) {
  check_cuda(cudaStreamSynchronize(state.stream), "cudaStreamSynchronize");
  for (auto& [size, blocks] : state.free) {
    for (void* block : blocks) check_cuda(cudaFree(block), "cudaFree");
    state.memory.reserved -= static_cast<int64_t>(size * blocks.size());
    blocks.clear();
  }
}

// Null when there is no more.
void* ask_driver(CudaContext::State& state, size_t size) {
  if (state.memory.limit > 0 && state.memory.reserved + static_cast<int64_t>(size) > state.memory.limit) return nullptr;
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, size);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: forget it
    return nullptr;
  }
  check_cuda(status, "cudaMalloc");
  state.memory.reserved += static_cast<int64_t>(size);
  return data;
}

// Larger copies from the host are rare and may wait.
constexpr size_t kLargestOutgoing = size_t{4} << 20;
constexpr size_t kIncomingBytes = 256;

// A block that holds `bytes` and whose last copy is through.
PinnedBlock& outgoing_block(CudaContext::State& state, size_t bytes) {
  std::unique_ptr<PinnedBlock>& block = state.outgoing[state.next_outgoing];
  state.next_outgoing = (state.next_outgoing + 1) % state.outgoing.size();
  if (block) block->wait();
  if (!block || block->capacity() < bytes) block = std::make_unique<PinnedBlock>(std::bit_ceil(bytes));
  return *block;
}

class IncomingCopy final : public HostCopy {
 public:
  IncomingCopy(CudaContext::State& state, const void* source, size_t bytes) : state_(&state) {
    if (bytes <= kIncomingBytes && !state.incoming.empty()) {
      block_ = std::move(state.incoming.back());
      state.incoming.pop_back();
    } else {
      block_ = std::make_unique<PinnedBlock>(std::max(bytes, kIncomingBytes));
    }
    check_cuda(cudaMemcpyAsync(block_->data(), source, bytes, cudaMemcpyDeviceToHost, state.stream),
               "cuda: copy to the host");
    block_->record(state.stream);
  }
  ~IncomingCopy() override {
    if (block_->capacity() == kIncomingBytes) state_->incoming.push_back(std::move(block_));
  }
  const void* wait() override {
    block_->wait();
    return block_->data();
  }

 private:
  CudaContext::State* state_;
  std::unique_ptr<PinnedBlock> block_;
};

}  // namespace

PinnedBlock::PinnedBlock(size_t capacity) : capacity_(capacity) {
  check_cuda(cudaHostAlloc(&data_, capacity, cudaHostAllocDefault), "cuda: page-locked memory");
  check_cuda(cudaEventCreateWithFlags(&done_, cudaEventDisableTiming), "cudaEventCreate");
}

PinnedBlock::~PinnedBlock() {
  cudaEventSynchronize(done_);
  cudaEventDestroy(done_);
  cudaFreeHost(data_);
}

void PinnedBlock::record(cudaStream_t stream) {
  check_cuda(cudaEventRecord(done_, stream), "cudaEventRecord");
}

void PinnedBlock::wait() const {
  check_cuda(cudaEventSynchronize(done_), "cudaEventSynchronize");
}

void check_cuda(cudaError_t status, const char* what) {
  if (status == cudaSuccess) [[likely]]
    return;
  fail("{}: {} ({}); EGMLA_CHECK=sync names the kernel at fault", what, cudaGetErrorString(status),
       cudaGetErrorName(status));
}

void check_cublas(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  fail("{}: cuBLASLt: {}", what, cublasLtGetStatusString(status));
}

void CudaContext::State::check_launch(const char* kernel) const {
  check_cuda(cudaGetLastError(), kernel);
  if (!check_every_launch) [[likely]]
    return;
  const cudaError_t status = cudaStreamSynchronize(stream);
  check(status == cudaSuccess, "{}: the kernel failed: {}", kernel, cudaGetErrorString(status));
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

int multiprocessors_of(CudaContext& context) {
  return context.state().multiprocessors;
}

CudaContext::CudaContext(CudaDevice device) : state_(std::make_unique<State>()) {
  const int count = cuda_device_count();
  check(device.ordinal >= 0 && device.ordinal < count,
        "cuda: device {} asked, {} found; set run.device to cpu or see nvidia-smi", device.ordinal, count);
  State& state = *state_;
  state.ordinal = device.ordinal;
  check_cuda(cudaSetDevice(device.ordinal), "cudaSetDevice");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device.ordinal), "cudaGetDeviceProperties");
  state.name = properties.name;
  state.multiprocessors = properties.multiProcessorCount;
  state.capability = properties.major * 10 + properties.minor;
  check(state.capability >= 80,
        "cuda: {} has compute capability {}.{}; 8.0 or later is needed, or set run.device to cpu", state.name,
        properties.major, properties.minor);
  state.check_every_launch = launch_check_of_environment() == LaunchCheck::sync;
  check_cuda(cudaStreamCreateWithFlags(&state.stream, cudaStreamNonBlocking), "cudaStreamCreate");
  check_cublas(cublasLtCreate(&state.cublaslt), "cublasLtCreate");
  check_cuda(cudaMalloc(&state.matmul_workspace, kMatmulWorkspace), "cuda: cuBLASLt's workspace");
  check_cuda(cudaMalloc(reinterpret_cast<void**>(&state.ticket), sizeof(int)), "cuda: cudaMalloc");
  check_cuda(cudaMemsetAsync(state.ticket, 0, sizeof(int), state.stream), "cuda: cudaMemset");
}

// Errors are not raised here: after a fault every call would fail again, and its report is already on the way.
CudaContext::~CudaContext() {
  State& state = *state_;
  cudaStreamSynchronize(state.stream);
  for (auto& block : state.outgoing) block.reset();
  state.incoming.clear();
  for (auto& [size, blocks] : state.free) {
    for (void* block : blocks) cudaFree(block);
  }
  cudaFree(state.matmul_workspace);
  cudaFree(state.ticket);
  cublasLtDestroy(state.cublaslt);
  cudaStreamDestroy(state.stream);
}

void* CudaContext::allocate(size_t bytes) {
  State& state = *state_;
  const size_t size = rounded(bytes);
  auto& blocks = state.free[size];
  void* data = nullptr;
  if (!blocks.empty()) {
    data = blocks.back();
    blocks.pop_back();
  } else {
    data = ask_driver(state, size);
    if (!data) {
      return_free_blocks(state);
      data = ask_driver(state, size);
    }
    if (!data) return nullptr;
  }
  state.memory.in_use += static_cast<int64_t>(size);
  state.memory.peak = std::max(state.memory.peak, state.memory.in_use);
  return data;
}

void CudaContext::release(void* data, size_t bytes) {
  const size_t size = rounded(bytes);
  state_->memory.in_use -= static_cast<int64_t>(size);
  state_->free[size].push_back(data);
}

void CudaContext::copy(void* target, const void* source, size_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToDevice, state_->stream), "cuda: device copy");
}

void CudaContext::copy_from_host(void* target, const void* source, size_t bytes) {
  if (bytes == 0) return;
  if (bytes <= kLargestOutgoing) {
    PinnedBlock& block = outgoing_block(*state_, bytes);
    std::memcpy(block.data(), source, bytes);
    check_cuda(cudaMemcpyAsync(target, block.data(), bytes, cudaMemcpyHostToDevice, state_->stream),
               "cuda: copy from the host");
    return block.record(state_->stream);
  }
  check_cuda(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, state_->stream),
             "cuda: copy from the host");
  synchronize();
}

void CudaContext::copy_to_host(void* target, const void* source, size_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemcpyAsync(target, source, bytes, cudaMemcpyDeviceToHost, state_->stream), "cuda: copy to the host");
  synchronize();
}

std::unique_ptr<HostCopy> CudaContext::copy_to_host_later(const void* source, size_t bytes) {
  return std::make_unique<IncomingCopy>(*state_, source, bytes);
}

void CudaContext::fill(void* target, int byte, size_t bytes) {
  if (bytes == 0) return;
  check_cuda(cudaMemsetAsync(target, byte, bytes, state_->stream), "cuda: cudaMemset");
}

int64_t CudaContext::capacity() {
  if (state_->memory.limit > 0) return state_->memory.limit;
  size_t free = 0, total = 0;
  check_cuda(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return state_->memory.reserved + static_cast<int64_t>(free);
}

void CudaContext::synchronize() {
  check_cuda(cudaStreamSynchronize(state_->stream), "cuda: synchronize");
}

bool CudaContext::records() const {
  return !state_->check_every_launch;
}

void* CudaContext::record(const std::function<void()>& body) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t recording = nullptr;
  check_cuda(cudaStreamBeginCapture(state_->stream, cudaStreamCaptureModeThreadLocal), "cuda: begin of a recording");
  body();
  check_cuda(cudaStreamEndCapture(state_->stream, &graph), "cuda: end of a recording");
  const cudaError_t status = cudaGraphInstantiate(&recording, graph, 0);
  cudaGraphDestroy(graph);
  check_cuda(status, "cuda: a recording");
  return recording;
}

void CudaContext::replay(void* recording) {
  check_cuda(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), state_->stream), "cuda: replay of a recording");
}

void CudaContext::forget(void* recording) {
  cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording));
}

const char* CudaContext::name() const {
  return state_->name.c_str();
}

MemoryUse& CudaContext::memory() {
  return state_->memory;
}

}  // namespace egmla

// What files of the CUDA back end share: the stream, cuBLASLt's handle and plans, and checked calls.
// Included by .cpp and .cu files of the back end alone.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <compare>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"

namespace egmla {

// Raises a runtime Error with CUDA's own text unless the status is success. `what` names the kernel or the call.
void check_cuda(cudaError_t status, const char* what);
void check_cublas(cublasStatus_t status, const char* what);

constexpr size_t kMatmulWorkspace = size_t{64} << 20;

// All that cuBLASLt's choice of an algorithm depends on, in its own column-major terms (kernels/matmul_cuda.cpp).
struct MatmulKey {
  int64_t m = 0, n = 0, k = 0;
  int64_t lda = 0, ldb = 0, ldc = 0;
  int32_t transpose_a = 0, transpose_b = 0;
  int32_t type_in = 0, type_out = 0, accumulate = 0;  // cudaDataType_t
  int32_t scale_a = 0, scale_b = 0;                   // cublasLtMatmulMatrixScale_t
  int32_t align_a = 0, align_b = 0, align_c = 0;      // bytes, a power of two up to 256
  auto operator<=>(const MatmulKey&) const = default;
};

struct MatmulPlan {
  cublasLtMatmulAlgo_t algorithm{};
  bool accepted = false;  // by this process's library; false for a plan just read from a file
};

struct AttentionChoices;  // kernels/attention_choice_cuda.cpp

// Page-locked host memory that a copy in stream order reads or writes; `done` is recorded behind that copy.
class PinnedBlock {
 public:
  explicit PinnedBlock(size_t capacity);
  PinnedBlock(const PinnedBlock&) = delete;
  PinnedBlock& operator=(const PinnedBlock&) = delete;
  ~PinnedBlock();

  void* data() const { return data_; }
  size_t capacity() const { return capacity_; }
  void record(cudaStream_t stream);
  void wait() const;

 private:
  void* data_ = nullptr;
  size_t capacity_;
  cudaEvent_t done_ = nullptr;
};

struct CudaContext::State {
  int ordinal = 0;
  std::string name;
  int multiprocessors = 0;
  int capability = 0;  // 80, 90, ...
  cudaStream_t stream = nullptr;
  cublasLtHandle_t cublaslt = nullptr;
  void* matmul_workspace = nullptr;  // kMatmulWorkspace bytes, used by one product at a time in stream order
  int* ticket = nullptr;             // at zero between kernels; one that draws its work from it leaves it so
  std::map<MatmulKey, MatmulPlan> matmul_plans;
  std::shared_ptr<AttentionChoices> attention;  // null until attention first runs
  bool check_every_launch = false;  // EGMLA_CHECK=sync: wait after every kernel, so that a fault names its kernel
  std::map<size_t, std::vector<void*>> free;  // rounded size -> blocks
  MemoryUse memory;
  // What the host sends: used in turn, so that it may be a few batches ahead of the device.
  std::array<std::unique_ptr<PinnedBlock>, 16> outgoing;
  size_t next_outgoing = 0;
  std::vector<std::unique_ptr<PinnedBlock>> incoming;  // free blocks for small results

  // Called after each launch.
  void check_launch(const char* kernel) const;
};

}  // namespace egmla

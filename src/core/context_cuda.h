// The CUDA back end's context. CUDA's own types stay out of this header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

namespace egmla {

class HostCopy;
struct MemoryUse;

struct CudaDevice {
  int ordinal = 0;
};

class CudaContext {
 public:
  explicit CudaContext(CudaDevice device);
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;
  ~CudaContext();

  void* allocate(size_t bytes);  // null when the card's memory, or the limit, is exhausted
  void release(void* data, size_t bytes);
  void copy(void* target, const void* source, size_t bytes);
  void copy_from_host(void* target, const void* source, size_t bytes);
  void copy_to_host(void* target, const void* source, size_t bytes);
  std::unique_ptr<HostCopy> copy_to_host_later(const void* source, size_t bytes);
  void fill(void* target, int byte, size_t bytes);
  void synchronize();
  int64_t capacity();
  const char* name() const;  // the card's name
  MemoryUse& memory();

  // Kernels that `body` launches, recorded instead of run; replay() runs them all. Nothing may be allocated anew.
  // records(): false while every launch is waited for.
  bool records() const;
  void* record(const std::function<void()>& body);
  void replay(void* recording);
  static void forget(void* recording);

  // What the back end's own files need (streams, cuBLASLt handle); defined in core/cuda_state.h.
  struct State;
  State& state() { return *state_; }

 private:
  std::unique_ptr<State> state_;
};

// Number of usable CUDA devices; 0 without a driver.
int cuda_device_count();

// How many multiprocessors run blocks side by side.
int multiprocessors_of(CudaContext& context);

}  // namespace egmla

// Context: where memory lives and kernels run. One per process; a variant over the back ends of this build.
// Memory comes from a caching pool that returns nothing while the process runs; bytes are counted.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "core/backends.h"
#include "core/check.h"
#include "core/profile.h"
#include "core/view.h"
#ifdef EGMLA_WITH_CUDA
#include "core/context_cuda.h"
#endif

namespace egmla {

// What memory is for. Tensors belong to the category at hand when they are made (MemoryScope).
enum class MemoryCategory : uint8_t { activations, weights, gradients, optimizer, cache };
constexpr size_t kMemoryCategories = 5;
const char* name_of(MemoryCategory category);

// Bytes handed out by a pool.
struct MemoryUse {
  int64_t in_use = 0;                                    // held by live tensors
  int64_t peak = 0;                                      // largest in_use so far
  int64_t reserved = 0;                                  // taken from the system
  int64_t limit = 0;                                     // most that may be taken from the system; 0: all there is
  std::array<int64_t, kMemoryCategories> by_category{};  // of in_use, before rounding
};

// A copy to the host that is under way.
class HostCopy {
 public:
  HostCopy() = default;
  HostCopy(const HostCopy&) = delete;
  HostCopy& operator=(const HostCopy&) = delete;
  virtual ~HostCopy() = default;
  // Waits until the bytes have come, and for nothing that was launched after the copy.
  virtual const void* wait() = 0;
};

// Host memory, 64-byte aligned, cached by size so that a training step allocates nothing anew.
class CpuContext {
 public:
  CpuContext() = default;
  CpuContext(const CpuContext&) = delete;
  CpuContext& operator=(const CpuContext&) = delete;
  ~CpuContext();

  // Null when memory is exhausted.
  void* allocate(size_t bytes);
  void release(void* data, size_t bytes);
  void copy(void* target, const void* source, size_t bytes);
  void copy_from_host(void* target, const void* source, size_t bytes) { copy(target, source, bytes); }
  void copy_to_host(void* target, const void* source, size_t bytes) { copy(target, source, bytes); }
  std::unique_ptr<HostCopy> copy_to_host_later(const void* source, size_t bytes);
  void fill(void* target, int byte, size_t bytes);
  void synchronize() {}
  int64_t capacity();
  const char* name() const { return "cpu"; }
  MemoryUse& memory() { return memory_; }

 private:
  std::map<size_t, std::vector<void*>> free_;  // rounded size -> blocks
  MemoryUse memory_;
};

// Runs nothing and holds nothing: it hands out addresses that must not be followed and counts bytes as the device it
// stands for would. A forward and backward pass on it tells the exact memory of that pass (`egmla inspect`).
class PlanContext {
 public:
  explicit PlanContext(bool for_cpu) : for_cpu_(for_cpu) {}

  void* allocate(size_t bytes);
  void release(void* data, size_t bytes);
  void copy(void*, const void*, size_t) {}
  void copy_from_host(void*, const void*, size_t) {}
  void copy_to_host(void*, const void*, size_t) { fail("plan: there are no values to read"); }
  std::unique_ptr<HostCopy> copy_to_host_later(const void*, size_t) { fail("plan: there are no values to read"); }
  void fill(void*, int, size_t) {}
  void synchronize() {}
  int64_t capacity() { return 0; }
  const char* name() const { return for_cpu_ ? "cpu (plan)" : "cuda (plan)"; }
  MemoryUse& memory() { return memory_; }
  bool for_cpu() const { return for_cpu_; }

 private:
  bool for_cpu_;
  MemoryUse memory_;
};

// EGMLA_CHECK. sync: CUDA waits after every kernel, so that a fault names its kernel. nan: every kernel's results are
// scanned, and the first NaN or infinity stops the program with the kernel's name. poison: memory that is handed out
// holds NaN in every float type and -1 in every integer type, so that whoever reads what nobody wrote has it in their
// results.
enum class LaunchCheck : uint8_t { none, sync, nan, poison };
LaunchCheck launch_check_of_environment();
// EGMLA_NVTX=1: kernels are marked as ranges for Nsight.
bool ranges_of_environment();

class Context {
 public:
#ifdef EGMLA_WITH_CUDA
  using Backend = std::variant<CpuContext, PlanContext, CudaContext>;
#else
  using Backend = std::variant<CpuContext, PlanContext>;
#endif

  // The host. Cheap to make; tensors hold a pointer to their context, so it must outlive them.
  Context() = default;
  // A plan of what a device would hold.
  explicit Context(const PlanContext& plan) : backend_(plan) {}
#ifdef EGMLA_WITH_CUDA
  // The CUDA device with this ordinal. Raises when there is none.
  explicit Context(CudaDevice device) : backend_(std::in_place_type<CudaContext>, device) {}
#endif
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // Calls function with the back end.
  template <class F>
  decltype(auto) visit(F&& function) {
    return std::visit(std::forward<F>(function), backend_);
  }

  // True for the CPU and for a plan of it.
  bool is_cpu() const {
    const auto* plan = std::get_if<PlanContext>(&backend_);
    return plan ? plan->for_cpu() : std::holds_alternative<CpuContext>(backend_);
  }
  const char* name() {
    return visit([](auto& backend) { return backend.name(); });
  }
  // Raises an error that names the op, the largest categories and what would fit when memory is exhausted.
  void* allocate(size_t bytes) {
    void* const data = visit([&](auto& backend) { return backend.allocate(bytes); });
    if (!data) [[unlikely]]
      fail_out_of_memory(bytes);
    if (launch_check_ == LaunchCheck::poison) [[unlikely]]
      visit([&](auto& backend) { backend.fill(data, 0xFF, bytes); });
    return data;
  }
  void release(void* data, size_t bytes) {
    if (!names_.empty()) [[unlikely]]
      forget_names(data, bytes);
    visit([&](auto& backend) { backend.release(data, bytes); });
  }
  // Device to device, in stream order.
  void copy(void* target, const void* source, size_t bytes) {
    visit([&](auto& backend) { backend.copy(target, source, bytes); });
  }
  // Returns when `source` may change; the copy itself is in stream order.
  void copy_from_host(void* target, const void* source, size_t bytes) {
    visit([&](auto& backend) { backend.copy_from_host(target, source, bytes); });
  }
  // Blocks until the copy is done.
  void copy_to_host(void* target, const void* source, size_t bytes) {
    visit([&](auto& backend) { backend.copy_to_host(target, source, bytes); });
  }
  // The bytes as they are now in stream order, to be read later.
  std::unique_ptr<HostCopy> copy_to_host_later(const void* source, size_t bytes) {
    return visit([&](auto& backend) { return backend.copy_to_host_later(source, bytes); });
  }
  // Sets bytes to zero, in stream order.
  void clear(void* target, size_t bytes) {
    visit([&](auto& backend) { backend.fill(target, 0, bytes); });
  }
  void synchronize() {
    visit([](auto& backend) { backend.synchronize(); });
  }
  // Bytes that tensors may hold in all; 0: not known.
  int64_t capacity() {
    return visit([](auto& backend) { return backend.capacity(); });
  }
  MemoryUse& memory() {
    return visit([](auto& backend) -> MemoryUse& { return backend.memory(); });
  }

  // For the message when memory is exhausted: whose memory is asked for (OpScope), and what to do, from the capacity.
  void set_op(const char* op) {
    op_ = op;
  }
  const char* op() const {
    return op_;
  }
  void set_memory_advice(std::function<std::string(int64_t capacity)> advice) {
    memory_advice_ = std::move(advice);
  }
  MemoryCategory memory_category() const {
    return category_;
  }
  void set_memory_category(MemoryCategory category) {
    category_ = category;
  }

  // Bytes that tensors may still take.
  int64_t free_memory() {
    return capacity() - memory().in_use;
  }

  // Kernels are timed while a profile is set (kernels/launch.h); null: not.
  Profile* profile() const {
    return profile_;
  }
  void set_profile(Profile* profile) {
    profile_ = profile;
  }
  LaunchCheck launch_check() const {
    return launch_check_;
  }
  bool marks_ranges() const {
    return marks_ranges_;
  }
  // Whether a launch is more than running a kernel.
  bool watched() const {
    return profile_ || launch_check_ == LaunchCheck::nan || marks_ranges_;
  }

  // What lies in memory, for the messages of EGMLA_CHECK=nan; remembered under that mode alone, until it is released.
  void name_memory(const View& view, const std::string& name);
  // The name of the memory an address lies in; empty where none was given.
  std::string name_of_memory(const void* address) const;

 private:
  void forget_names(const void* data, size_t bytes);
  [[noreturn]] void fail_out_of_memory(size_t bytes);

  Backend backend_;
  const char* op_ = "";
  MemoryCategory category_ = MemoryCategory::activations;
  std::function<std::string(int64_t)> memory_advice_;
  Profile* profile_ = nullptr;
  LaunchCheck launch_check_ = launch_check_of_environment();
  bool marks_ranges_ = ranges_of_environment();
  struct NamedMemory {
    size_t bytes;
    std::string name;
  };
  std::map<uintptr_t, NamedMemory> names_;  // by first address
};

// Names the op that works on a context for the life of this object.
class OpScope {
 public:
  OpScope(Context& context, const char* op) : context_(&context), outer_(context.op()) { context.set_op(op); }
  OpScope(const OpScope&) = delete;
  OpScope& operator=(const OpScope&) = delete;
  ~OpScope() { context_->set_op(outer_); }

 private:
  Context* context_;
  const char* outer_;
};

// Tensors made during the life of this object belong to a category.
class MemoryScope {
 public:
  MemoryScope(Context& context, MemoryCategory category) : context_(&context), outer_(context.memory_category()) {
    context.set_memory_category(category);
  }
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;
  ~MemoryScope() { context_->set_memory_category(outer_); }

 private:
  Context* context_;
  MemoryCategory outer_;
};

// Sets a context's profile for the life of this object.
class ProfileScope {
 public:
  ProfileScope(Context& context, Profile& profile) : context_(&context) { context.set_profile(&profile); }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;
  ~ProfileScope() { context_->set_profile(nullptr); }

 private:
  Context* context_;
};

}  // namespace egmla

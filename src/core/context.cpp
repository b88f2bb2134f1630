#include "core/context.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string_view>

namespace egmla {
namespace {

constexpr size_t kAlignment = 64;

// Sizes are rounded so that nearly equal tensors share blocks: to 64 bytes below 4 KiB, to 4 KiB above.
size_t rounded(size_t bytes) {
  const size_t step = bytes < 4096 ? kAlignment : 4096;
  return (std::max<size_t>(bytes, 1) + step - 1) / step * step;
}

// The CPU copies at once.
class FinishedCopy final : public HostCopy {
 public:
  FinishedCopy(const void* source, size_t bytes)
      : bytes_(static_cast<const char*>(source), static_cast<const char*>(source) + bytes) {}
  const void* wait() override { return bytes_.data(); }

 private:
  std::vector<char> bytes_;
};

std::string gib(int64_t bytes) {
  return fmt::format("{:.3f} GiB", static_cast<double>(bytes) / (1 << 30));
}

}  // namespace

const char* name_of(MemoryCategory category) {
  constexpr std::array<const char*, kMemoryCategories> kNames = {"activations", "weights", "gradients", "optimizer",
                                                                 "cache"};
  return kNames[static_cast<size_t>(category)];
}

CpuContext::~CpuContext() {
  for (auto& [size, blocks] : free_) {
    for (void* block : blocks) std::free(block);
  }
}

void* CpuContext::allocate(size_t bytes) {
  const size_t size = rounded(bytes);
  void* data = nullptr;
  auto& blocks = free_[size];
  if (!blocks.empty()) {
    data = blocks.back();
    blocks.pop_back();
  } else {
    if (memory_.limit > 0 && memory_.reserved + static_cast<int64_t>(size) > memory_.limit) return nullptr;
    data = std::aligned_alloc(size < 4096 ? kAlignment : 4096, size);
    if (!data) return nullptr;
    memory_.reserved += static_cast<int64_t>(size);
  }
  memory_.in_use += static_cast<int64_t>(size);
  memory_.peak = std::max(memory_.peak, memory_.in_use);
  return data;
}

void CpuContext::release(void* data, size_t bytes) {
  const size_t size = rounded(bytes);
  memory_.in_use -= static_cast<int64_t>(size);
  free_[size].push_back(data);
}

void CpuContext::copy(void* target, const void* source, size_t bytes) {
  std::memcpy(target, source, bytes);
}

std::unique_ptr<HostCopy> CpuContext::copy_to_host_later(const void* source, size_t bytes) {
  return std::make_unique<FinishedCopy>(source, bytes);
}

void CpuContext::fill(void* target, int byte, size_t bytes) {
  std::memset(target, byte, bytes);
}

int64_t CpuContext::capacity() {
  return memory_.limit > 0 ? memory_.limit : int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

void* PlanContext::allocate(size_t bytes) {
  memory_.in_use += static_cast<int64_t>(rounded(bytes));
  memory_.peak = std::max(memory_.peak, memory_.in_use);
  return reinterpret_cast<void*>(kAlignment);
}

void PlanContext::release(void*, size_t bytes) {
  memory_.in_use -= static_cast<int64_t>(rounded(bytes));
}

LaunchCheck launch_check_of_environment() {
  const char* text = std::getenv("EGMLA_CHECK");
  const std::string_view mode = text ? text : "";
  if (mode.empty()) return LaunchCheck::none;
  if (mode == "sync") return LaunchCheck::sync;
  if (mode == "nan") return LaunchCheck::nan;
  if (mode == "poison") return LaunchCheck::poison;
  fail_usage("EGMLA_CHECK: found '{}'; expected sync, nan or poison", mode);
}

bool ranges_of_environment() {
  const char* text = std::getenv("EGMLA_NVTX");
  return text && std::string_view(text) == "1";
}

void Context::fail_out_of_memory(size_t bytes) {
  const int64_t most = capacity();
  std::vector<std::pair<int64_t, MemoryCategory>> held;
  for (size_t i = 0; i < kMemoryCategories; ++i)
    held.emplace_back(memory().by_category[i], static_cast<MemoryCategory>(i));
  std::sort(held.rbegin(), held.rend());
  std::string largest;
  for (const auto& [size, category] : held) {
    if (size > 0) largest += fmt::format("{}{} {}", largest.empty() ? "" : ", ", name_of(category), gib(size));
  }
  const std::string advice = memory_advice_ ? memory_advice_(most) : "";
  fail("{}{}out of memory: {} bytes asked on {} with {}; held: {}; {}", op_, *op_ ? ": " : "", bytes, name(), gib(most),
       largest.empty() ? "nothing" : largest,
       advice.empty() ? "lower train.micro_batch_size or set train.recompute to light or full" : advice);
}

void Context::name_memory(const View& view, const std::string& name) {
  if (launch_check_ == LaunchCheck::nan) names_[reinterpret_cast<uintptr_t>(view.data)] = {view.bytes(), name};
}

std::string Context::name_of_memory(const void* address) const {
  const auto at = reinterpret_cast<uintptr_t>(address);
  auto next = names_.upper_bound(at);
  if (next == names_.begin()) return "";
  const auto& [begin, memory] = *--next;
  return at < begin + memory.bytes ? memory.name : "";
}

void Context::forget_names(const void* data, size_t bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  names_.erase(names_.lower_bound(begin), names_.lower_bound(begin + bytes));
}

}  // namespace egmla

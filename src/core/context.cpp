#include "core/context.h"

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

}  // namespace

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
    data = std::aligned_alloc(size < 4096 ? kAlignment : 4096, size);
    check(data != nullptr, "out of memory: {} bytes asked, {} in use; lower train.micro_batch_size", size,
          memory_.in_use);
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
  check_usage(mode.empty() || mode == "sync" || mode == "nan", "EGMLA_CHECK: found '{}'; expected sync or nan", mode);
  return mode.empty() ? LaunchCheck::none : mode == "sync" ? LaunchCheck::sync : LaunchCheck::nan;
}

bool ranges_of_environment() {
  const char* text = std::getenv("EGMLA_NVTX");
  return text && std::string_view(text) == "1";
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

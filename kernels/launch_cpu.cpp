// What a watched launch does beside running its kernel. Nothing here runs unless it was asked for.
#include <bit>
#include <cmath>
#include <cstring>

#include "core/bf16.h"
#include "kernels/launch.h"
#include "kernels/launch_log.h"

namespace egmla {
namespace {

LaunchLog* living_log = nullptr;

template <class T>
bool is_finite(T value) {
  if constexpr (std::is_same_v<T, uint16_t>) return std::isfinite(float_from_bf16(value));
  return std::isfinite(value);
}

template <class T>
int64_t first_non_finite_of(const View& x) {
  const int64_t width = x.rank() ? x.shape.back() : 1, rows = width ? x.elements() / width : 0;
  for (int64_t row = 0; row < rows; ++row) {
    int64_t offset = 0, rest = row;
    for (int axis = x.rank() - 2; axis >= 0; --axis) {
      offset += rest % x.size(axis) * x.stride(axis);
      rest /= x.size(axis);
    }
    const T* values = x.as<T>() + offset;
    for (int64_t i = 0; i < width; ++i) {
      if (!is_finite(values[i])) return row * width + i;
    }
  }
  return -1;
}

bool is_floating(const View& view) {
  return view.dtype == DType::f32 || view.dtype == DType::f64 || view.dtype == DType::bf16;
}

// A bad element: where it stands, and what it holds.
struct Finding {
  const NamedView* operand = nullptr;
  std::string index;  // "[3,5]"
  const void* address = nullptr;
  const char* value = "";
};

double number_at(Context& context, const void* address, DType dtype) {
  char bytes[sizeof(double)] = {};
  context.copy_to_host(bytes, address, size_of(dtype));
  if (dtype == DType::f64) {
    double value;
    std::memcpy(&value, bytes, sizeof(value));
    return value;
  }
  uint32_t bits = 0;
  std::memcpy(&bits, bytes, size_of(dtype));
  if (dtype == DType::bf16) return static_cast<double>(float_from_bf16(static_cast<uint16_t>(bits)));
  return static_cast<double>(std::bit_cast<float>(bits));
}

// The first bad element of an operand, if it has one.
template <class Backend>
bool find(Context& context, Backend& backend, const NamedView& operand, Finding& finding) {
  const View& view = operand.view;
  if (!view.defined() || view.elements() == 0 || !is_floating(view)) return false;
  int64_t rest = first_non_finite(backend, view);
  if (rest < 0) return false;
  Shape index = view.shape;
  int64_t offset = 0;
  for (int axis = view.rank() - 1; axis >= 0; --axis) {
    index[axis] = rest % view.size(axis);
    offset += index[axis] * view.stride(axis);
    rest /= view.size(axis);
  }
  const void* address = static_cast<const char*>(view.data) + static_cast<size_t>(offset) * size_of(view.dtype);
  const double number = number_at(context, address, view.dtype);
  finding = {&operand, index.text(), address, std::isnan(number) ? "nan" : number > 0 ? "inf" : "-inf"};
  return true;
}

// "out f32 [4,8] (lm_head.weight) holds nan at [0,3]"
std::string text_of(const Context& context, const Finding& finding) {
  const View& view = finding.operand->view;
  const std::string name = context.name_of_memory(finding.address);
  return fmt::format("{} {} {}{} holds {} at {}", finding.operand->name, name_of(view.dtype), view.shape.text(),
                     name.empty() ? "" : " (" + name + ")", finding.value, finding.index);
}

// The parameters among what a kernel reads: ", reading a.weight, b.weight".
std::string names_read(const Context& context, const KernelViews& views) {
  std::string out;
  for (const NamedView& operand : views.read) {
    const std::string name = operand.view.defined() ? context.name_of_memory(operand.view.data) : "";
    if (!name.empty()) out += (out.empty() ? ", reading " : ", ") + name;
  }
  return out;
}

template <class Backend>
void check_values(Context& context, Backend& backend, const LaunchRecord& record) {
  for (const NamedView& written : record.views.written) {
    Finding bad;
    if (!find(context, backend, written, bad)) continue;
    std::string cause = "what it only reads is finite";
    for (const NamedView& read : record.views.read) {
      bool overwritten = false;
      for (const NamedView& other : record.views.written)
        overwritten = overwritten || other.view.data == read.view.data;
      Finding source;
      if (overwritten || !find(context, backend, read, source)) continue;
      cause = "its operand " + text_of(context, source);
      break;
    }
    fail("{}{}: {}; {} (EGMLA_CHECK=nan)", record.label, names_read(context, record.views), text_of(context, bad),
         cause);
  }
}

// On the host a kernel is done when it returns.
template <class Backend>
void time_launch(Backend&, Profile& profile, const LaunchRecord& record, const std::function<void()>& run_kernel) {
  const auto start = Profile::Clock::now();
  run_kernel();
  const double seconds = std::chrono::duration<double>(Profile::Clock::now() - start).count();
  profile.add(record, [seconds] { return seconds; });
}

// Ranges are for GPU tools.
template <class Backend>
void enter_range(Backend&, const std::string&) {}
template <class Backend>
void leave_range(Backend&) {}

}  // namespace

int64_t first_non_finite(CpuContext&, const View& x) {
  if (x.dtype == DType::f64) return first_non_finite_of<double>(x);
  if (x.dtype == DType::bf16) return first_non_finite_of<uint16_t>(x);
  return first_non_finite_of<float>(x);
}

int64_t first_non_finite(PlanContext&, const View&) {
  return -1;
}

LaunchLog::LaunchLog(Context& context) : context_(&context), watched_(context, profile_) {
  check(!living_log, "launch log: there is one already");
  living_log = this;
}

LaunchLog::~LaunchLog() {
  living_log = nullptr;
}

LaunchLog* LaunchLog::of(const Context& context) {
  return living_log && living_log->context_ == &context ? living_log : nullptr;
}

void launch_watched(Context& context, const LaunchRecord& record, const std::function<void()>& run_kernel) {
  if (LaunchLog* log = LaunchLog::of(context)) {
    log->add(record);
    return run_kernel();
  }
  context.visit([&](auto& backend) {
    if (context.marks_ranges()) enter_range(backend, record.label);
    if (context.profile()) {
      time_launch(backend, *context.profile(), record, run_kernel);
    } else {
      run_kernel();
    }
    if (context.marks_ranges()) leave_range(backend);
    if (context.launch_check() == LaunchCheck::nan) check_values(context, backend, record);
  });
}

}  // namespace egmla

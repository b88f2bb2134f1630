#include "infer/device.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#ifdef EGMLA_WITH_CUDA
#include "kernels/attention_choice.h"
#include "kernels/matmul.h"
#include "kernels/matmul_plans.h"
#endif

namespace egmla {
#ifdef EGMLA_WITH_CUDA
namespace {

CudaContext* cuda_of(Context& context) {
  return context.visit([](auto& backend) -> CudaContext* {
    if constexpr (std::is_same_v<std::decay_t<decltype(backend)>, CudaContext>) return &backend;
    return nullptr;
  });
}

}  // namespace
#endif

std::unique_ptr<Context> open_device(DeviceChoice device, [[maybe_unused]] const Rank& rank) {
#ifdef EGMLA_WITH_CUDA
  const int count = cuda_device_count();
  const bool found = count > 0;
  check_usage(device != DeviceChoice::cuda || found,
              "run.device: cuda asked for, but no CUDA device is visible; use run.device=cpu");
  if (device != DeviceChoice::cpu && found) {
    check_usage(
        rank.local_count <= count,
        "run.device: {} processes on this host, but {} visible GPUs; start one process a GPU and let each see all "
        "of them, or use run.device=cpu",
        rank.local_count, count);
    return std::make_unique<Context>(CudaDevice{rank.local});
  }
#else
  check_usage(device != DeviceChoice::cuda,
              "run.device: this build has no CUDA back end; build with a CUDA toolkit or use run.device=cpu");
#endif
  return std::make_unique<Context>();
}

std::unique_ptr<Context> open_device(const RunConfig& run, const Rank& rank) {
  auto context = open_device(run.device, rank);
  context->memory().limit = static_cast<int64_t>(run.memory_limit_gib * (1 << 30));
  return context;
}

DType compute_dtype(Precision precision, const Context& context) {
  if (precision == Precision::automatic) return context.is_cpu() ? DType::f32 : DType::bf16;
  check_usage(precision == Precision::fp32 || !context.is_cpu(),
              "run.precision: the CPU computes in fp32, found {}; use auto or fp32",
              precision == Precision::fp8 ? "fp8" : "bf16");
  return precision == Precision::fp32 ? DType::f32 : DType::bf16;
}

bool trains_in_fp8(Precision precision, [[maybe_unused]] Context& context) {
  if (precision != Precision::fp8) return false;
#ifdef EGMLA_WITH_CUDA
  CudaContext* cuda = cuda_of(context);
  check_usage(cuda && multiplies_e4m3(*cuda),
              "run.precision: fp8 trains on Hopper (compute capability 9.0) with cuBLASLt 12.9 or later; found {}; use "
              "bf16 or auto",
              context.name());
  return true;
#else
  fail_usage("run.precision: this build has no CUDA back end, which fp8 needs; use fp32 or auto");
#endif
}

#ifdef EGMLA_WITH_CUDA
namespace {

// Empty where there is no home.
std::string cache_file() {
  namespace fs = std::filesystem;
  const char* named = std::getenv("EGMLA_CACHE");
  const char* home = std::getenv("HOME");
  if (!named && !home) return "";
  const fs::path folder = named ? fs::path(named) : fs::path(home) / ".cache" / "egmla";
  std::error_code error;
  fs::create_directories(folder, error);
  return error ? "" : (folder / "matmul_plans.txt").string();
}

}  // namespace

void set_attention_backend(Context& context, AttentionBackend backend) {
  CudaContext* cuda = cuda_of(context);
  if (!cuda) return;
  set_attention_policy(*cuda, backend == AttentionBackend::native  ? AttentionPolicy::native
                              : backend == AttentionBackend::cudnn ? AttentionPolicy::cudnn
                                                                   : AttentionPolicy::fastest);
}

void load_measured_choices(Context& context, const std::string& file) {
  CudaContext* cuda = cuda_of(context);
  if (!cuda) return;
  if (load_matmul_plans(*cuda, file) > 0) return;
  const std::string cache = cache_file();
  if (!cache.empty()) load_matmul_plans(*cuda, cache);
}

void save_measured_choices(Context& context, const std::string& file) {
  CudaContext* cuda = cuda_of(context);
  if (!cuda) return;
  save_matmul_plans(*cuda, file);
  const std::string cache = cache_file();
  if (cache.empty()) return;
  load_matmul_plans(*cuda, cache);  // keeps what other models have chosen
  // Other processes may write it at the same time: each under a name of its own, of which the last takes the place.
  const std::string own = fmt::format("{}.{}", cache, ::getpid());
  save_matmul_plans(*cuda, own);
  std::filesystem::rename(own, cache);
}
#else
void set_attention_backend(Context&, AttentionBackend) {}
void load_measured_choices(Context&, const std::string&) {}
void save_measured_choices(Context&, const std::string&) {}
#endif

}  // namespace egmla

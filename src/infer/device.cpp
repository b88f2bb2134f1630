#include "infer/device.h"

namespace egmla {

std::unique_ptr<Context> open_device(DeviceChoice device) {
#ifdef EGMLA_WITH_CUDA
  const bool found = cuda_device_count() > 0;
  check_usage(device != DeviceChoice::cuda || found,
              "run.device: cuda asked for, but no CUDA device is visible; use run.device=cpu");
  if (device != DeviceChoice::cpu && found) return std::make_unique<Context>(CudaDevice{0});
#else
  check_usage(device != DeviceChoice::cuda,
              "run.device: this build has no CUDA back end; build with a CUDA toolkit or use run.device=cpu");
#endif
  return std::make_unique<Context>();
}

DType compute_dtype(Precision precision, const Context& context) {
  if (precision == Precision::automatic) return context.is_cpu() ? DType::f32 : DType::bf16;
  check_usage(precision == Precision::fp32 || !context.is_cpu(),
              "run.precision: the CPU computes in fp32, found bf16; use auto or fp32");
  return precision == Precision::bf16 ? DType::bf16 : DType::f32;
}

}  // namespace egmla

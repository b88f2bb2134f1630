// Which device a run uses and what it computes in.
#pragma once

#include <memory>
#include <string>

#include "core/context.h"
#include "core/dtype.h"
#include "dist/communicator.h"
#include "io/config.h"

namespace egmla {

// `auto`: a CUDA device when this build and this machine have one, else the CPU. Asking for what is not there is a
// usage error. Each process of a host takes the GPU of its local number.
std::unique_ptr<Context> open_device(DeviceChoice device, const Rank& rank = {});
// run.device and run.memory_limit_gib.
std::unique_ptr<Context> open_device(const RunConfig& run, const Rank& rank = {});

// `auto`: bf16 on CUDA, fp32 on the CPU. fp8 computes in bf16 what is no large product of training.
DType compute_dtype(Precision precision, const Context& context);
// Whether training multiplies in e4m3; raises a usage error where the device cannot.
bool trains_in_fp8(Precision precision, Context& context);

// Whose attention kernels a CUDA device runs (kernels/attention_choice.h). The CPU has but one.
void set_attention_backend(Context& context, AttentionBackend backend);

// What a device chooses by measuring (cuBLASLt's algorithms, attention's kernels) and must choose the same way again.
// load takes the choices of `file`, or those of the user's cache ($EGMLA_CACHE, else ~/.cache/egmla) where the file is
// missing; save writes both. Nothing happens on the CPU.
void load_measured_choices(Context& context, const std::string& file);
void save_measured_choices(Context& context, const std::string& file);

}  // namespace egmla

// On whose kernels CUDA's attention runs: our own, or cuDNN's where they are there, take the shape and are faster.
// The faster is found by timing both when a shape is first met, on its own operands. cuDNN is believed only after its
// results agreed with ours and came out the same bit for bit twice. The plan file carries the choice to later runs.
#pragma once

#include <string>

#include "kernels/attention.h"

namespace egmla {

// cudnn: wherever it takes the shape, without measuring. portable: our kernels, those alone that every card runs.
enum class AttentionPolicy : uint8_t { fastest, native, cudnn, portable };
void set_attention_policy(CudaContext& context, AttentionPolicy policy);

// Our own kernels: the card's best, or those that every card runs.
void run_native(CudaContext& context, const AttentionForward& kernel);
void run_native(CudaContext& context, const AttentionBackward& kernel);
void run_portable(CudaContext& context, const AttentionForward& kernel);
void run_portable(CudaContext& context, const AttentionBackward& kernel);

// Whether run_native is Hopper's kernels for these operands.
bool hopper_accepts(CudaContext& context, const AttentionForward& kernel);

// Whether cuDNN is there and takes these operands.
bool cudnn_accepts(CudaContext& context, const AttentionForward& kernel);
bool cudnn_accepts(CudaContext& context, const AttentionBackward& kernel);

// Lines of the plan file, one a choice, that begin with kAttentionLine.
constexpr const char* kAttentionLine = "attention ";
std::string attention_choices_text(CudaContext& context);
bool take_attention_choice(CudaContext& context, const std::string& line);  // false for a line it cannot read

}  // namespace egmla

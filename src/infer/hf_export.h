// A checkpoint as a Hugging Face directory: config.json, safetensors, tokenizer files, model card, and the modeling
// file where no class of transformers expresses the model. It is written beside its name, verified, and only then
// renamed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "infer/hf_config.h"

namespace egmla {

struct HfExportOptions {
  std::string out;                         // directory; an earlier export there is replaced
  DType dtype = DType::bf16;               // or f32
  uint64_t largest_shard = 5'000'000'000;  // bytes of weights in one file
};

struct HfExportSummary {
  HfArchitecture architecture = HfArchitecture::egmla;
  std::string checkpoint;
  uint64_t weight_bytes = 0;
  std::vector<std::string> weight_files;
  bool tokenizer = false;
};

// `path` is a checkpoint or a run directory (its newest checkpoint that verifies). Needs host memory for one tensor.
HfExportSummary export_hf(const std::string& path, const HfExportOptions& options);

}  // namespace egmla

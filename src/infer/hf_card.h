// The model card of an export: what the model is, how it was trained, how to load it.
#pragma once

#include <cstdint>
#include <string>

#include "infer/hf_config.h"
#include "io/checkpoint.h"
#include "io/config.h"

namespace egmla {

struct HfCard {
  const Config& config;
  const CheckpointState& state;
  HfArchitecture architecture = HfArchitecture::egmla;
  int64_t parameters = 0;
  int64_t cache_elements = 0;  // per token, all layers
  std::string metrics;         // metrics.jsonl of the run; may be missing
  bool tokenizer = false;
};

// README.md: a YAML head for the hub, then Markdown.
std::string hf_card(const HfCard& card);

}  // namespace egmla

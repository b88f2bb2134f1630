// A model as Hugging Face's config.json tells it. A class of transformers is named only where it computes exactly what
// this model computes; everything else goes with the modeling file that an export writes.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "core/dtype.h"
#include "nn/model_config.h"

namespace egmla {

enum class HfArchitecture : uint8_t { llama, deepseek_v3, egmla };

// The class that expresses the model: Llama, DeepSeek-V3, or our own modeling file.
HfArchitecture hf_architecture(const ModelConfig& model);
// "LlamaForCausalLM"
const char* hf_class(HfArchitecture architecture);

// config.json; end_of_text is null in it when there is none.
std::string hf_config_json(const ModelConfig& model, DType dtype, std::optional<int32_t> end_of_text);

// The model of a config.json; `name` stands in messages. What egmla cannot compute is refused with the key.
ModelConfig model_of_hf_config(const std::string& json, const std::string& name);

}  // namespace egmla

// The names in a Hugging Face directory, and the text of the modeling file, compiled into the binary.
#pragma once

namespace egmla::hf {

constexpr const char* kConfig = "config.json";
constexpr const char* kGenerationConfig = "generation_config.json";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kTokenizerConfig = "tokenizer_config.json";
constexpr const char* kModeling = "modeling_egmla.py";
constexpr const char* kCard = "README.md";
constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

// src/infer/modeling_egmla.py; cmake/embed.cmake makes the definition.
extern const char* const kModelingText;

}  // namespace egmla::hf

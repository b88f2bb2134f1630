// A Hugging Face directory on its way in: Llama, dense DeepSeek-V3 and our own exports, as one or many safetensors
// files. Names and shapes must be exactly those of the model that config.json describes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/checkpoint.h"
#include "io/config.h"
#include "io/safetensors.h"
#include "nn/parameter_store.h"

namespace egmla {

// A directory that holds a config.json, which no run directory does.
bool is_hf_directory(const std::string& path);

class HfDirectory {
 public:
  // Opens and checks every file; a usage error names the first that is unusable.
  explicit HfDirectory(std::string path);

  const ModelConfig& model() const { return model_; }
  // A source for each of `declared`, which must be all that the files hold. Valid as long as this object.
  std::vector<TensorSource> sources(const std::vector<NamedTensor>& declared) const;

 private:
  void open_weights();

  std::string path_;
  ModelConfig model_;
  std::vector<SafetensorsReader> files_;
  std::map<std::string, const SafetensorsReader*> places_;
};

// Copies the directory's weights into allocated parameters. What differs between its model and `model` beside names and
// shapes (rope_theta, say) is told in a warning.
void load_hf_weights(ParameterStore& store, const ModelConfig& model, const std::string& path);

// Writes the directory's weights as a checkpoint of step 0, whose configuration, returned, also trains on from it.
Config import_hf(const std::string& path, const std::string& checkpoint);

}  // namespace egmla

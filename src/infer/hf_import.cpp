#include "infer/hf_import.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "core/files.h"
#include "infer/hf_config.h"
#include "infer/hf_files.h"
#include "nn/transformer.h"
#include "text/tokenizer.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kSequenceLength = 2048;  // of the configuration an import writes, where the model has as many
constexpr int64_t kSequences = 32;

// The files that the index names: plain names in the same directory.
std::set<std::string> files_of_index(const std::string& path) {
  const auto index = nlohmann::json::parse(read_file(path), nullptr, false);
  const bool complete = index.is_object() && index.contains("weight_map") && index["weight_map"].is_object();
  check_usage(complete, "{}: has no weight_map; expected the index of a sharded model", path);
  std::set<std::string> out;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    const bool plain = file.is_string() && file.get<std::string>().find('/') == std::string::npos;
    check_usage(plain, "{}: {} lies in {}; expected a file name", path, tensor, file.dump().substr(0, 80));
    out.insert(file.get<std::string>());
  }
  return out;
}

// What older exporters wrote beside the weights, or a tied head's copy.
bool is_redundant(const std::string& name) {
  return name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq");
}

// Many published tokenizers are not byte-level BPE; their weights import all the same, as a model of token ids.
std::optional<Tokenizer> tokenizer_in(const std::string& file, const ModelConfig& model) {
  if (!fs::exists(file)) {
    spdlog::warn("{}: is not there; imported without a tokenizer: token ids in, no text out", file);
    return std::nullopt;
  }
  std::optional<Tokenizer> tokenizer;
  try {
    tokenizer = Tokenizer::load(file);
  } catch (const Error& error) {
    spdlog::warn("{}; imported without a tokenizer: token ids in, no text out", error.what());
    return std::nullopt;
  }
  check_usage(tokenizer->vocab_size() <= model.vocab_size, "{}: has {} ids, but config.json's vocab_size is {}", file,
              tokenizer->vocab_size(), model.vocab_size);
  return tokenizer;
}

Config training_config(const ModelConfig& model, const std::string& path, const std::string& checkpoint) {
  Config config;
  config.model = model;
  config.run.name = fs::absolute(path).lexically_normal().filename().string();
  if (config.run.name.empty()) config.run.name = "imported";
  config.run.dir = "runs/" + config.run.name;
  config.run.init_from = checkpoint;
  config.data.train = {{.path = "data/train_*.bin"}};
  config.data.sequence_length = std::min(kSequenceLength, config.model.max_position_embeddings);
  config.train.batch_tokens = kSequences * config.data.sequence_length;
  config.train.max_steps = 1000;
  return config;
}

}  // namespace

bool is_hf_directory(const std::string& path) {
  return fs::is_regular_file(fs::path(path) / hf::kConfig);
}

HfDirectory::HfDirectory(std::string path) : path_(std::move(path)) {
  check_usage(is_hf_directory(path_), "{}: holds no {}; expected a Hugging Face directory", path_, hf::kConfig);
  const std::string config = (fs::path(path_) / hf::kConfig).string();
  model_ = model_of_hf_config(read_file(config), config);
  open_weights();
  check_usage(model_.num_hidden_layers <= std::ssize(places_), "{}: num_hidden_layers is {}, but there are {} tensors",
              config, model_.num_hidden_layers, places_.size());
}

void HfDirectory::open_weights() {
  const fs::path index = fs::path(path_) / hf::kIndex;
  std::set<std::string> names = {hf::kWeights};
  if (fs::exists(index)) names = files_of_index(index.string());
  files_.reserve(names.size());
  for (const std::string& name : names) {
    const SafetensorsReader& file = files_.emplace_back((fs::path(path_) / name).string());
    for (const std::string& tensor : file.names()) {
      check_usage(places_.emplace(tensor, &file).second, "{}: two files hold {}", path_, tensor);
    }
  }
}

std::vector<TensorSource> HfDirectory::sources(const std::vector<NamedTensor>& declared) const {
  std::vector<TensorSource> out;
  std::set<std::string> known;
  for (const NamedTensor& tensor : declared) {
    const auto place = places_.find(tensor.path);
    check_usage(place != places_.end(), "{}: lacks {}; the configurations differ", path_, tensor.path);
    const Shape found = place->second->shape(tensor.path);
    check_usage(found == tensor.shape(), "{}: {} is {}, this model has {}", path_, tensor.path, found.text(),
                tensor.shape().text());
    known.insert(tensor.path);
    out.push_back(
        {tensor.path, found, [file = place->second, path = tensor.path](float* target) { file->read(path, target); }});
  }
  for (const auto& [name, unused] : places_) {
    check_usage(known.contains(name) || is_redundant(name), "{}: holds {}, which this model has not", path_, name);
  }
  return out;
}

void load_hf_weights(ParameterStore& store, const ModelConfig& model, const std::string& path) {
  const HfDirectory directory(path);
  Config theirs, ours;
  theirs.model = directory.model();
  ours.model = model;
  const auto differences =
      config_differences(theirs, ours,
                         {"model.max_position_embeddings", "model.initializer_range", "model.attention.gate.init_std",
                          "model.attention.gate.lr_scale", "model.attention.gate.weight_decay"});
  std::vector<float> values;
  const std::vector<TensorSource> sources = directory.sources(store.tensors());
  for (const auto& each : differences) spdlog::warn("weights from {}: this run has {}", path, each);
  spdlog::info("weights from {}", path);
  for (size_t i = 0; i < sources.size(); ++i) {
    values.resize(static_cast<size_t>(sources[i].shape.elements()));
    sources[i].fill(values.data());
    store.write(store.tensors()[i], values.data());
  }
  store.refresh_working();
}

Config import_hf(const std::string& path, const std::string& checkpoint) {
  const HfDirectory directory(path);
  const std::string file = (fs::path(path) / hf::kTokenizer).string();
  const std::optional<Tokenizer> tokenizer = tokenizer_in(file, directory.model());
  Config draft = training_config(directory.model(), path, checkpoint);
  if (tokenizer) draft.data.tokenizer = file;
  const Config config = parse_config(resolved_yaml(draft, false), path, {});
  const Transformer model(config.model);  // declared only: no memory
  CheckpointContents contents;
  contents.model = directory.sources(model.parameters().tensors());
  contents.state.seed = static_cast<uint64_t>(config.run.seed);
  contents.config_yaml = resolved_yaml(config, false);
  if (tokenizer) contents.tokenizer_json = tokenizer->to_json();
  write_checkpoint(checkpoint, contents);
  return config;
}

}  // namespace egmla

#include "infer/trained_model.h"

#include <filesystem>

#include "infer/device.h"

namespace egmla {

const Tokenizer& TrainedModel::need_tokenizer() const {
  check_usage(tokenizer.has_value(), "{}: holds no tokenizer; it was trained on token ids without data.tokenizer",
              checkpoint);
  return *tokenizer;
}

std::string find_checkpoint(const std::string& path) {
  namespace fs = std::filesystem;
  check_usage(fs::exists(path), "{}: no such run directory or checkpoint", path);
  if (!fs::is_directory(path)) return path;
  const auto newest = newest_valid_checkpoint((fs::path(path) / "checkpoints").string());
  check_usage(newest.has_value(), "{}: no checkpoint in {}/checkpoints; train first or name a checkpoint file", path,
              path);
  return newest->path;
}

void load_weights(ParameterStore& store, const CheckpointReader& reader, const std::string& checkpoint) {
  for (const std::string& path : reader.paths(Group::model)) {
    bool known = false;
    for (const NamedTensor& tensor : store.tensors()) known = known || tensor.path == path;
    check_usage(known, "{}: holds {}, which this model has not; the configurations differ", checkpoint, path);
  }
  std::vector<float> values;
  for (const NamedTensor& tensor : store.tensors()) {
    check_usage(reader.has(Group::model, tensor.path), "{}: lacks {}; the configurations differ", checkpoint,
                tensor.path);
    const Shape found = reader.shape(Group::model, tensor.path);
    check_usage(found == tensor.shape(), "{}: {} is {}, this model has {}", checkpoint, tensor.path, found.text(),
                tensor.shape().text());
    values.resize(static_cast<size_t>(tensor.elements()));
    reader.read(Group::model, tensor.path, values.data());
    store.write(tensor, values.data());
  }
  store.refresh_working();
}

TrainedModel load_trained_model(const std::string& path, const std::vector<std::string>& overrides) {
  TrainedModel out;
  out.checkpoint = find_checkpoint(path);
  const CheckpointReader reader(out.checkpoint);
  for (const std::string& entry : overrides)
    check_usage(entry.rfind("model.", 0) != 0, "override '{}': the model of a checkpoint is fixed", entry);
  out.config = parse_config(reader.config_yaml(), out.checkpoint, overrides);
  out.state = reader.state();
  if (!reader.tokenizer_json().empty()) out.tokenizer = Tokenizer::from_json(reader.tokenizer_json(), out.checkpoint);
  out.context = open_device(out.config.run.device);
  set_attention_backend(*out.context, out.config.run.attention_backend);
  out.model = std::make_unique<Transformer>(out.config.model);
  out.model->allocate(*out.context, compute_dtype(out.config.run.precision, *out.context));
  load_weights(out.model->parameters(), reader, out.checkpoint);
  out.model->set_gate_folding(out.config.run.fold_gate);
  return out;
}

}  // namespace egmla

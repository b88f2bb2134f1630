#include "infer/hf_export.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/files.h"
#include "infer/hf_card.h"
#include "infer/hf_files.h"
#include "infer/trained_model.h"
#include "io/safetensors.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;
using Ordered = nlohmann::ordered_json;

// A process that was killed may have left one of them half written.
bool is_export_file(std::string_view name) {
  static const std::array<const char*, 8> kNames = {hf::kConfig,   hf::kGenerationConfig, hf::kTokenizer, hf::kWeights,
                                                    hf::kModeling, hf::kTokenizerConfig,  hf::kCard,      hf::kIndex};
  if (name.ends_with(PendingFile::kSuffix)) name.remove_suffix(std::string_view(PendingFile::kSuffix).size());
  const bool shard = name.starts_with("model-") && name.ends_with(".safetensors");
  return shard || std::any_of(kNames.begin(), kNames.end(), [&](const char* each) { return name == each; });
}

// What stands under the name may only be an earlier export: nothing else is ever deleted.
void check_replaceable(const fs::path& directory) {
  if (!fs::exists(directory)) return;
  check_usage(fs::is_directory(directory), "{}: is a file; choose another directory for --out", directory.string());
  for (const auto& item : fs::directory_iterator(directory)) {
    const std::string name = item.path().filename().string();
    check_usage(is_export_file(name), "{}: holds {}, which no export wrote; choose another directory for --out",
                directory.string(), name);
  }
}

// A directory that takes its final name only when committed, and vanishes otherwise.
class PendingDirectory {
 public:
  explicit PendingDirectory(const std::string& target) : target_(target), path_(target_.string() + ".tmp") {
    for (const fs::path& each : {target_, path_}) check_replaceable(each);
    fs::remove_all(path_);
    std::error_code error;
    fs::create_directories(path_, error);
    check(!error, "{}: cannot be made: {}", path_.string(), error.message());
  }
  PendingDirectory(const PendingDirectory&) = delete;
  PendingDirectory& operator=(const PendingDirectory&) = delete;
  ~PendingDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }

  std::string file(const std::string& name) const { return (path_ / name).string(); }

  // Exchanged with an earlier export in one step, so that the name always stands for one of the two, whole.
  void commit() {
    sync_to_disk(path_.string());
    if (!fs::exists(target_)) {
      put_in_place(path_, target_);
    } else if (::renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.c_str(), RENAME_EXCHANGE) != 0) {
      const bool unknown = errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP;
      check(unknown, "{}: cannot be put in place: {}", target_.string(), system_error_text());
      step_aside();
    }
    sync_to_disk(target_.parent_path().empty() ? "." : target_.parent_path().string());
  }

 private:
  static void put_in_place(const fs::path& from, const fs::path& to) {
    const bool renamed = ::rename(from.c_str(), to.c_str()) == 0;
    check(renamed, "{}: cannot be put in place: {}", to.string(), system_error_text());
  }

  // Where a file system cannot exchange: the earlier export waits under another name, and comes back on a failure.
  void step_aside() const {
    const fs::path old = target_.string() + ".old";
    check_replaceable(old);
    fs::remove_all(old);
    put_in_place(target_, old);
    try {
      put_in_place(path_, target_);
    } catch (const Error&) {
      put_in_place(old, target_);
      throw;
    }
    fs::remove_all(old);
  }

  fs::path target_, path_;
};

// The tensors the model declares, filled from the checkpoint; names and shapes must agree.
std::vector<TensorSource> sources(const Transformer& model, const CheckpointReader& reader,
                                  const std::string& checkpoint) {
  std::vector<TensorSource> out;
  for (const NamedTensor& tensor : model.parameters().tensors()) {
    const bool same =
        reader.has(Group::model, tensor.path) && reader.shape(Group::model, tensor.path) == tensor.shape();
    check_usage(same, "{}: lacks {} {}, which its configuration asks for", checkpoint, tensor.path,
                tensor.shape().text());
    out.push_back({tensor.path, tensor.shape(),
                   [&reader, path = tensor.path](float* target) { reader.read(Group::model, path, target); }});
  }
  return out;
}

// Consecutive tensors until a file would grow beyond `largest` bytes.
std::vector<std::vector<TensorSource>> split(std::vector<TensorSource> tensors, uint64_t width, uint64_t largest) {
  std::vector<std::vector<TensorSource>> shards(1);
  uint64_t bytes = 0;
  for (TensorSource& tensor : tensors) {
    const uint64_t size = static_cast<uint64_t>(tensor.shape.elements()) * width;
    if (bytes > 0 && bytes + size > largest) {
      shards.emplace_back();
      bytes = 0;
    }
    bytes += size;
    shards.back().push_back(std::move(tensor));
  }
  return shards;
}

void write_weights(const PendingDirectory& directory, std::vector<TensorSource> tensors, const HfExportOptions& options,
                   HfExportSummary& summary) {
  const auto shards = split(std::move(tensors), size_of(options.dtype), options.largest_shard);
  Ordered places;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name =
        shards.size() == 1 ? hf::kWeights : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    write_safetensors(directory.file(name), shards[i], options.dtype);
    summary.weight_files.push_back(name);
    for (const TensorSource& tensor : shards[i]) {
      places[tensor.path] = name;
      summary.weight_bytes += static_cast<uint64_t>(tensor.shape.elements()) * size_of(options.dtype);
    }
  }
  if (shards.size() == 1) return;
  const Ordered index = {{"metadata", {{"total_size", summary.weight_bytes}}}, {"weight_map", places}};
  write_file(directory.file(hf::kIndex), index.dump(2) + "\n");
}

std::optional<int32_t> end_of_text_of(const std::optional<Tokenizer>& tokenizer) {
  if (!tokenizer) return std::nullopt;
  const std::vector<int32_t> ids = tokenizer->encode(Tokenizer::kEndOfText);
  const bool known = ids.size() == 1 && tokenizer->bytes_of(ids.front()) == Tokenizer::kEndOfText;
  return known ? std::optional(ids.front()) : std::nullopt;
}

void write_tokenizer(const PendingDirectory& directory, const Tokenizer& tokenizer, bool ends, int64_t positions) {
  write_file(directory.file(hf::kTokenizer), tokenizer.to_json());
  Ordered config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"model_max_length", positions},
                    {"clean_up_tokenization_spaces", false}};
  for (const char* const key : {"bos_token", "eos_token", "pad_token"}) {
    if (ends) config[key] = Tokenizer::kEndOfText;
  }
  write_file(directory.file(hf::kTokenizerConfig), config.dump(2) + "\n");
}

}  // namespace

HfExportSummary export_hf(const std::string& path, const HfExportOptions& options) {
  HfExportSummary summary;
  summary.checkpoint = find_checkpoint(path);
  const CheckpointReader reader(summary.checkpoint);
  const Config config = parse_config(reader.config_yaml(), summary.checkpoint, {});
  const Transformer model(config.model);  // declared only: no memory
  std::optional<Tokenizer> tokenizer;
  if (!reader.tokenizer_json().empty()) tokenizer = Tokenizer::from_json(reader.tokenizer_json(), summary.checkpoint);
  const std::optional<int32_t> end = end_of_text_of(tokenizer);
  summary.architecture = hf_architecture(config.model);
  summary.tokenizer = tokenizer.has_value();

  fs::path out = fs::path(options.out).lexically_normal();
  if (!out.has_filename()) out = out.parent_path();  // "DIR/"
  PendingDirectory directory(out.string());
  write_weights(directory, sources(model, reader, summary.checkpoint), options, summary);
  write_file(directory.file(hf::kConfig), hf_config_json(config.model, options.dtype, end));
  Ordered generation = {{"do_sample", false}};
  for (const char* const key : {"bos_token_id", "eos_token_id", "pad_token_id"}) {
    if (end) generation[key] = *end;
  }
  write_file(directory.file(hf::kGenerationConfig), generation.dump(2) + "\n");
  if (tokenizer) write_tokenizer(directory, *tokenizer, end.has_value(), config.model.max_position_embeddings);
  if (summary.architecture == HfArchitecture::egmla) write_file(directory.file(hf::kModeling), hf::kModelingText);
  const fs::path metrics = fs::path(summary.checkpoint).parent_path().parent_path() / "metrics.jsonl";
  write_file(directory.file(hf::kCard), hf_card({.config = config,
                                                 .state = reader.state(),
                                                 .architecture = summary.architecture,
                                                 .parameters = model.parameters().elements(),
                                                 .cache_elements = model.cache_elements(),
                                                 .metrics = metrics.string(),
                                                 .tokenizer = summary.tokenizer}));
  directory.commit();
  return summary;
}

}  // namespace egmla

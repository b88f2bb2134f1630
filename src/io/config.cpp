#include "io/config.h"

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "core/files.h"
#include "io/config_keys.h"
#include "io/config_rules.h"
#include "io/config_yaml.h"

namespace egmla {
namespace {

constexpr const char* kCommandLine = "command line";
constexpr int64_t kMicroBatchTokens = 8192;  // an automatic micro-batch holds at most these

// One value as it was given.
struct Setting {
  YAML::Node node;
  std::string place;   // head of messages: "FILE:LINE" or "override 'k=v'"
  std::string origin;  // "FILE:LINE" or "command line"
};

using Settings = std::map<std::string, Setting>;

// Gathers the leaves of one YAML document into settings by dotted name. A null takes back what was given before.
class Collector {
 public:
  // `override_text` is empty for a file.
  Collector(std::string name, std::string override_text)
      : name_(std::move(name)), override_text_(std::move(override_text)) {}

  void collect(const std::string& key, int line, const YAML::Node& node, Settings& settings) {
    if (is_config_section(key)) {
      check_usage(node.IsMap() || node.IsNull(), "{}: {}: found {}; expected a section of keys", place(line), key,
                  found_text(node));
      if (node.IsNull()) std::erase_if(settings, [&](const auto& item) { return item.first.starts_with(key + "."); });
      if (node.IsMap()) collect_section(key + ".", node, settings);
      return;
    }
    if (!find_config_key(key)) {
      fail_usage("{}: unknown key '{}'; the nearest valid key is '{}'{}", place(line), key, nearest_config_key(key),
                 list_hint(key));
    }
    const auto [first, fresh] = lines_.try_emplace(key, line);
    check_usage(fresh, "{}: duplicate key '{}', first given in line {}; keep one", place(line), key, first->second);
    settings.erase(key);
    const std::string origin = override_text_.empty() ? place(line) : kCommandLine;
    if (!node.IsNull()) settings.emplace(key, Setting{node, place(line), origin});
  }

  void collect_section(const std::string& prefix, const YAML::Node& section, Settings& settings) {
    for (const auto& item : section) {
      const int line = item.first.Mark().line + 1;
      check_usage(item.first.IsScalar(), "{}: found {} as a key; expected a name", place(line), found_text(item.first));
      collect(prefix + item.first.Scalar(), line, item.second, settings);
    }
  }

  std::string place(int line) const {
    return override_text_.empty() ? fmt::format("{}:{}", name_, line) : fmt::format("override '{}'", override_text_);
  }

 private:
  // data.train.0 and data.train[0] reach for an element.
  static std::string list_hint(const std::string& key) {
    const size_t end = key.find_last_of(".[");
    const bool index = end != std::string::npos && end + 1 < key.size() && key[end + 1] >= '0' && key[end + 1] <= '9';
    if (!index || !find_config_key(key.substr(0, end))) return "";
    return "; elements of a list cannot be overridden, give the whole list";
  }

  std::string name_, override_text_;
  std::map<std::string, int> lines_;  // where this document gave each key
};

void collect_file(const std::string& text, const std::string& name, Settings& settings) {
  Collector collector(name, "");
  const YAML::Node root = parse_yaml(text, [&](int line) { return collector.place(line); });
  if (root.IsNull()) return;
  check_usage(root.IsMap(), "{}: found {}; expected sections such as 'model:' with keys", name, found_text(root));
  collector.collect_section("", root, settings);
}

void collect_override(const std::string& text, Settings& settings) {
  const size_t equals = text.find('=');
  check_usage(equals != std::string::npos && equals > 0, "override '{}': expected KEY=VALUE, as train.max_steps=100",
              text);
  Collector collector("", text);
  const YAML::Node value = parse_yaml(text.substr(equals + 1), [&](int line) { return collector.place(line); });
  collector.collect(text.substr(0, equals), 1, value, settings);
}

// Of the run's two lengths the one on the command line replaces the one in the file.
void settle_length(Settings& settings) {
  const auto steps = settings.find("train.max_steps"), tokens = settings.find("train.max_tokens");
  if (steps == settings.end() || tokens == settings.end()) return;
  const bool new_steps = steps->second.origin == kCommandLine, new_tokens = tokens->second.origin == kCommandLine;
  if (new_steps != new_tokens) settings.erase(new_steps ? tokens : steps);
}

Config config_from(const Settings& settings) {
  Config config;
  for (const ConfigKey& key : config_keys()) {
    const auto given = settings.find(key.name);
    config.origin[key.name] = given == settings.end() ? "default" : given->second.origin;
    if (given == settings.end()) continue;
    const Mismatch expected = key.read(given->second.node, config);
    check_usage(!expected, "{}: {}: found {}; expected {}", given->second.place, key.name,
                found_text(given->second.node), expected.value_or(""));
  }
  return config;
}

// A type of attention on the command line sets the file's keys of other types aside, so that one file serves them all.
Config with_chosen_attention(Config config, Settings& settings) {
  const AttentionType type = config.model.attention.type;
  if (config.origin["model.attention.type"] != kCommandLine) return config;
  std::erase_if(settings, [&](const auto& item) {
    return !in_scope(find_config_key(item.first)->scope, type) && item.second.origin != kCommandLine;
  });
  return config_from(settings);
}

// Defaults that follow from other keys and that the rules look at.
void fill_names(Config& config, const std::string& name) {
  if (config.run.name.empty()) config.run.name = std::filesystem::path(name).stem().string();
  if (config.run.dir.empty()) config.run.dir = "runs/" + config.run.name;
  int64_t& positions = config.model.max_position_embeddings;
  if (positions == 0) positions = config.data.sequence_length;
}

// Defaults that need a configuration which obeys the rules.
void fill_computed(Config& config) {
  ModelConfig& model = config.model;
  model.rope_interleave = model.interleaved_rope();
  if (model.attention.type == AttentionType::mha) {
    model.attention.num_key_value_heads = model.key_value_heads();
    model.attention.head_dim = model.mha_head_dim();
  }
  TrainConfig& train = config.train;
  const int64_t length = config.data.sequence_length;
  if (train.micro_batch_size == 0) train.micro_batch_size = automatic_micro_batch(train.batch_tokens / length, length);
  if (train.max_steps < 0) train.max_steps = steps_for_tokens(train);
}

// The value of a key as YAML, null where the chosen attention does not use it.
std::string value_of(const ConfigKey& key, const Config& config) {
  return in_scope(key.scope, config.model.attention.type) ? key.write(config) : "null";
}

bool is_ignored(const std::string& key, const std::vector<std::string>& ignored) {
  return std::any_of(ignored.begin(), ignored.end(),
                     [&](const std::string& name) { return key == name || key.starts_with(name + "."); });
}

std::string origin_comment(const ConfigKey& key, const Config& config) {
  if (!in_scope(key.scope, config.model.attention.type)) {
    return fmt::format("not used by {}", attention_type_name(config.model.attention.type));
  }
  const auto found = config.origin.find(key.name);
  return found == config.origin.end() ? "default" : found->second;
}

}  // namespace

int64_t automatic_micro_batch(int64_t sequences, int64_t length) {
  for (int64_t size = std::min(sequences, kMicroBatchTokens / length); size > 1; --size) {
    if (sequences % size == 0) return size;
  }
  return 1;
}

Config load_config(const std::string& file, const std::vector<std::string>& overrides) {
  return parse_config(read_file(file), file, overrides);
}

Config parse_config(const std::string& yaml, const std::string& name, const std::vector<std::string>& overrides) {
  Settings settings;
  collect_file(yaml, name, settings);
  for (const std::string& text : overrides) collect_override(text, settings);
  settle_length(settings);
  Config config = with_chosen_attention(config_from(settings), settings);
  fill_names(config, name);
  check_config_rules(config, name, [&](const std::string& key) {
    const auto given = settings.find(key);
    return given == settings.end() ? std::string() : given->second.place;
  });
  fill_computed(config);
  return config;
}

std::string resolved_yaml(const Config& config, bool with_origin) {
  std::string out, open;  // open: the section whose keys are being written, with its dot
  for (const ConfigKey& key : config_keys()) {
    const size_t leaf = key.name.rfind('.') + 1;
    size_t indent = 0;
    for (size_t start = 0; start < leaf; start = key.name.find('.', start) + 1, indent += 2) {
      const size_t end = key.name.find('.', start) + 1;
      if (!open.starts_with(key.name.substr(0, end))) {
        out += fmt::format("{:{}}{}:\n", "", indent, key.name.substr(start, end - 1 - start));
      }
    }
    open = key.name.substr(0, leaf);
    const std::string line = fmt::format("{:{}}{}: {}", "", indent, key.name.substr(leaf), value_of(key, config));
    out += with_origin ? fmt::format("{:<48}  # {}\n", line, origin_comment(key, config)) : line + "\n";
  }
  return out;
}

std::vector<std::string> config_differences(const Config& a, const Config& b, const std::vector<std::string>& ignored) {
  std::vector<std::string> out;
  for (const ConfigKey& key : config_keys()) {
    const std::string before = value_of(key, a), after = value_of(key, b);
    if (before != after && !is_ignored(key.name, ignored)) {
      out.push_back(fmt::format("{}: {} -> {}", key.name, before, after));
    }
  }
  return out;
}

const std::vector<std::string>& resumable_keys() {
  static const std::vector<std::string> keys = {
      "run.name",
      "run.dir",
      "run.device",
      "run.precision",
      "run.attention_backend",
      "run.fold_gate",
      "run.peak_tflops",
      "run.memory_limit_gib",
      "train.max_steps",
      "train.max_tokens",
      "train.stop_at_step",
      "train.micro_batch_size",
      "train.recompute",
      "train.spike",
      "train.profile",
      "train.checkpoint",
      "train.eval",
      "train.sample",
      "train.log",
      "parallel",
  };
  return keys;
}

}  // namespace egmla

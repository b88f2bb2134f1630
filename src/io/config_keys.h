// The key table: one row for every key of the configuration. It drives reading, writing, comparing and the reference.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "io/config.h"
#include "io/config_values.h"

namespace egmla {

// The attention types under which a key has a meaning.
enum class Scope : uint8_t { any, mha, latent, gate };

struct ConfigKey {
  std::string name;         // dotted, as the path of the field in Config
  std::string type;         // in words, as in "expected an integer >= 1"
  std::string fallback;     // the default in words
  std::string description;  // one line, with the unit
  bool required = false;
  Scope scope = Scope::any;
  std::function<Mismatch(const YAML::Node&, Config&)> read;
  std::function<std::string(const Config&)> write;  // one line of YAML
};

// In the order of the file; the keys of a section stand together.
const std::vector<ConfigKey>& config_keys();

// Null when there is no such key.
const ConfigKey* find_config_key(std::string_view name);

// True for "train", "train.optimizer" and the like.
bool is_config_section(std::string_view name);

// The key or section whose spelling is nearest, for messages about an unknown one.
std::string nearest_config_key(std::string_view name);

// Whether `attention` uses keys of `scope`.
bool in_scope(Scope scope, AttentionType attention);

// The type's name in a configuration: mha, mla, egmla.
const char* attention_type_name(AttentionType type);

}  // namespace egmla

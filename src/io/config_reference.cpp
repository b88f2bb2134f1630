// docs/configuration.md from the key table.
#include "core/check.h"
#include "io/config.h"
#include "io/config_keys.h"

namespace egmla {
namespace {

constexpr const char* kIntroduction = R"(# Configuration

<!-- Written by `egmla config --reference`; change src/io/config_keys.cpp and run it again. -->

A configuration is a YAML file with the sections below, read by `egmla train CONFIG.yaml`. Any key can be overridden on
the command line; the value is YAML:

    egmla train configs/quickstart.yaml train.max_steps=100 data.train='[a.bin, {path: b_*.bin, weight: 0.5}]'

- `egmla config CONFIG.yaml [key=value ...]` prints every key with its value and where that came from.
- `null` resets a key, or a whole section (`model.attention.gate=null`), to its default. A list is given as a whole.
- A number may be written `6e-4`; an integer too (`1e6`), when it is integral.
- An unknown key, a duplicate, a wrong type or a rule broken between keys stops the command with exit code 2, and the
  message names the file and line, or the override.
- Keys that the chosen `model.attention.type` does not use are refused; the resolved configuration shows them as `null`.
  A type given on the command line sets the file's keys of other types aside instead.
- `train.max_steps` or `train.max_tokens` sets the length of a run; the one on the command line replaces the other.

A run directory resumes only under its own configuration. What may change between launches:
)";

// Table cells break at bars.
std::string cell(const std::string& text) {
  std::string out;
  for (const char c : text) out += c == '|' ? std::string("\\|") : std::string(1, c);
  return out;
}

std::string fallback_cell(const ConfigKey& key) {
  const bool words = key.fallback.find(' ') != std::string::npos && key.fallback.front() != '[';
  return words || key.required ? key.fallback : fmt::format("`{}`", key.fallback);
}

}  // namespace

std::string configuration_reference() {
  std::string out = kIntroduction, section;
  for (size_t i = 0; i < resumable_keys().size(); ++i) {
    out += fmt::format("{}`{}`", i == 0 ? "" : i % 6 == 0 ? ",\n" : ", ", resumable_keys()[i]);
  }
  out += ".\n";
  for (const ConfigKey& key : config_keys()) {
    const std::string top = key.name.substr(0, key.name.find('.'));
    if (top != section) out += fmt::format("\n## {}\n\n| key | value | default | meaning |\n|---|---|---|---|\n", top);
    section = top;
    const char* scope = key.scope == Scope::mha      ? " (mha only)"
                        : key.scope == Scope::latent ? " (mla, egmla)"
                        : key.scope == Scope::gate   ? " (egmla only)"
                                                     : "";
    out += fmt::format("| `{}` | {} | {} | {}{} |\n", key.name, cell(key.type), fallback_cell(key),
                       cell(key.description), scope);
  }
  return out;
}

}  // namespace egmla

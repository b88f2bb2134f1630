// Rules between keys, checked before any work starts. Each refusal names the keys, their values and the remedy.
#pragma once

#include <functional>
#include <string>

#include "io/config.h"

namespace egmla {

// Where a key's value comes from, for the head of a message: "FILE:LINE", "override 'k=v'", or nothing for a default.
using PlaceOf = std::function<std::string(const std::string& key)>;

// Steps that see max_tokens tokens, the last batch rounded up.
int64_t steps_for_tokens(const TrainConfig& train);

// `name` stands in messages that belong to no single line.
void check_config_rules(const Config& config, const std::string& name, const PlaceOf& place_of);

}  // namespace egmla

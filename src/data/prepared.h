// What `egmla data prepare` left beside its shards.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace egmla {

// The checksum of a tokenizer as meta.json holds it.
std::string tokenizer_checksum(const std::string& tokenizer_json);

// A usage error where a shard that `pattern` names lies beside a meta.json of another tokenizer; `name` is what the
// given one came from. Shards without a meta.json pass.
void check_prepared_with(const std::string& pattern, const std::string& tokenizer_json, const std::string& name);

}  // namespace egmla

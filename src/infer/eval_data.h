// What `egmla eval --data` names: token shards, or texts that are encoded here and now.
#pragma once

#include <string>
#include <vector>

#include "data/token_loader.h"
#include "infer/trained_model.h"

namespace egmla {

// One stream for each pattern: a glob of shards, or of text or JSONL files (.gz, .zst), whose documents are encoded and
// ended as `egmla data prepare` does. Files are taken for shards by their first bytes.
std::vector<TokenStream> open_eval_data(const std::vector<std::string>& patterns, const TrainedModel& trained);

}  // namespace egmla

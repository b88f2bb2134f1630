#include "infer/eval_data.h"

#include <thread>

#include "core/check.h"
#include "data/block_encoder.h"
#include "data/documents.h"
#include "data/prepared.h"

namespace egmla {
namespace {

std::vector<int32_t> encode_texts(const std::vector<std::string>& paths, const Tokenizer& tokenizer) {
  std::vector<int32_t> ids;
  BlockEncoder encoder(tokenizer, static_cast<int>(std::max(1U, std::thread::hardware_concurrency())),
                       [&](std::span<const int32_t> part) { ids.insert(ids.end(), part.begin(), part.end()); });
  read_documents(paths, {},
                 {.text = [&](std::string_view text) { encoder.add(text); },
                  .end_document = [&] { encoder.end_document(); },
                  .progress = [](int64_t) {}});
  encoder.flush();
  return ids;
}

}  // namespace

std::vector<TokenStream> open_eval_data(const std::vector<std::string>& patterns, const TrainedModel& trained) {
  const int64_t vocab_size = trained.config.model.vocab_size;
  std::vector<TokenStream> streams;
  for (const std::string& pattern : patterns) {
    const std::vector<std::string> paths = expand_glob(pattern);
    if (is_shard(paths.front())) {
      if (trained.tokenizer) check_prepared_with(pattern, trained.tokenizer->to_json(), trained.checkpoint);
      streams.emplace_back(pattern, vocab_size);
    } else {
      streams.emplace_back(pattern, encode_texts(paths, trained.need_tokenizer()), vocab_size);
    }
  }
  return streams;
}

}  // namespace egmla

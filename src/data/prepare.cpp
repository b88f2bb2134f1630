#include "data/prepare.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "core/check.h"
#include "core/files.h"
#include "core/owner_lock.h"
#include "data/block_encoder.h"
#include "data/byte_source.h"
#include "data/distinct_documents.h"
#include "data/prepared.h"
#include "data/progress_bar.h"
#include "text/tokenizer.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

// Where training data ends: after so many documents or so many lines, whichever is first.
struct SplitPoint {
  int64_t documents = kAll;
  int64_t lines = kAll;
};

// Counts lines part by part; an unfinished last line counts as well.
class LineCounter {
 public:
  void add(std::string_view text) {
    lines_ += std::count(text.begin(), text.end(), '\n');
    unfinished_ = !text.ends_with('\n');
  }
  void end_document() {
    lines_ += unfinished_;
    unfinished_ = false;
  }
  int64_t lines() const { return lines_; }

 private:
  int64_t lines_ = 0;
  bool unfinished_ = false;
};

// A first pass over the inputs.
SplitPoint find_split_point(const PrepareOptions& options, const std::vector<std::string>& inputs) {
  int64_t documents = 0;
  LineCounter counter;
  const auto end_document = [&] {
    counter.end_document();
    ++documents;
  };
  DistinctDocuments distinct(true, [&](std::string_view text, const DocumentHash&) {
    counter.add(text);
    end_document();
  });
  ProgressBar bar("counting", total_bytes(inputs));
  DocumentHandlers handlers = {.text = [&](std::string_view text) { counter.add(text); },
                               .end_document = end_document,
                               .progress = [&](int64_t bytes) { bar.update(bytes); }};
  if (options.deduplicate) {
    handlers.text = [&](std::string_view text) { distinct.add(text); };
    handlers.end_document = [&] { distinct.end_document(); };
  }
  read_documents(inputs, options.format, handlers);
  const auto first_part = [&](int64_t count) {
    const auto last = static_cast<int64_t>(std::llround(options.val_fraction * static_cast<double>(count)));
    return count - std::clamp<int64_t>(last, 1, count - 1);
  };
  if (options.val_fraction * static_cast<double>(documents) >= 1.0) return {.documents = first_part(documents)};
  check_usage(counter.lines() >= 2, "data prepare: {} lines of text cannot be split in training and validation data",
              counter.lines());
  return {.lines = first_part(counter.lines())};
}

// Sends documents to the training and the validation shards: up to a point and from there on, or as it is told.
class SplitWriter {
 public:
  SplitWriter(const PrepareOptions& options, const Tokenizer& tokenizer, const SplitPoint& point)
      : point_(point), train_(options, "train", tokenizer), val_(options, "val", tokenizer) {}

  void add(std::string_view text) {
    const size_t cut = in_val_ || point_.lines == kAll ? text.size() : end_of_training(text);
    add_to_split(text.substr(0, cut));
    if (!in_val_ && lines_.lines() >= point_.lines) {
      end_document();
      in_val_ = true;
    }
    add_to_split(text.substr(cut));
  }

  void end_document() {
    if (!open_) return;  // it ended at the split point
    open_ = false;
    lines_.end_document();
    Side& side = in_val_ ? val_ : train_;
    side.encoder.end_document();
    ++side.summary.documents;
    if (train_.summary.documents == point_.documents || lines_.lines() >= point_.lines) in_val_ = true;
  }

  // A document as a whole, to the side the caller chooses.
  void add_document(std::string_view text, bool in_val) {
    in_val_ = in_val;
    add_to_split(text);
    end_document();
  }

  PrepareSummary finish() { return {.train = train_.finish(), .val = val_.finish()}; }

 private:
  struct Side {
    Side(const PrepareOptions& options, const std::string& name, const Tokenizer& tokenizer)
        : shards(options.out, name, tokenizer.vocab_size(), options.shard_tokens),
          encoder(tokenizer,
                  options.threads > 0 ? options.threads : static_cast<int>(std::thread::hardware_concurrency()),
                  [this](std::span<const int32_t> ids) { shards.append(ids); }) {}

    SplitSummary finish() {
      encoder.flush();
      summary.shards = shards.finish();
      summary.tokens = shards.tokens();
      return summary;
    }

    ShardWriter shards;
    SplitSummary summary;
    BlockEncoder encoder;
  };

  // End of the last line of training data in this part, or the whole part.
  size_t end_of_training(std::string_view text) const {
    size_t end = 0;
    for (int64_t left = point_.lines - lines_.lines(); left > 0; --left) {
      const size_t feed = text.find('\n', end);
      if (feed == std::string_view::npos) return text.size();
      end = feed + 1;
    }
    return end;
  }

  void add_to_split(std::string_view text) {
    if (text.empty()) return;
    open_ = true;
    if (!in_val_ && point_.lines != kAll) lines_.add(text);
    Side& side = in_val_ ? val_ : train_;
    side.summary.bytes += static_cast<int64_t>(text.size());
    side.encoder.add(text);
  }

  const SplitPoint point_;
  Side train_, val_;
  LineCounter lines_;  // of training data, where they decide
  bool in_val_ = false;
  bool open_ = false;  // a document has begun
};

// Makes the directory; refuses what an earlier preparation left there, unless it was never finished. When forced or
// unfinished, removes it, its meta.json first. The tokenizer in use may stand there already.
// Returns the mark under which shards are unfinished; a killed process leaves it behind.
std::unique_ptr<OwnerLock> make_room(const PrepareOptions& options) {
  const std::string& out = options.out;
  std::error_code error;
  fs::create_directories(out, error);
  check_usage(!error, "{}: cannot be made: {}; choose another --out", out, error.message());
  const auto in_use = [&](const fs::path& path) {
    return fs::equivalent(path, options.tokenizer) || fs::equivalent(out, options.tokenizer);
  };
  std::vector<fs::path> old;
  for (const auto& entry : fs::directory_iterator(out)) {
    const std::string name = entry.path().filename().string();
    const bool shard = name.ends_with(".bin") && (name.starts_with("train_") || name.starts_with("val_"));
    const bool tokenizer = name == "tokenizer.json" && !in_use(entry.path());
    if (shard || tokenizer || name == "meta.json") old.push_back(entry.path());
  }
  const std::string mark = (fs::path(out) / Shard::kUnfinishedMark).string();
  check_usage(old.empty() || options.force || fs::exists(mark),
              "{}: holds prepared data already; choose another --out, or replace it with --force", out);
  auto unfinished = std::make_unique<OwnerLock>(mark, out, "preparing data", "wait for it or choose another --out");
  sync_to_disk(out);
  std::sort(old.begin(), old.end());  // meta.json before the shards it vouches for
  for (const fs::path& path : old) {
    check(fs::remove(path, error), "{}: cannot be removed: {}", path.string(), error.message());
  }
  return unfinished;
}

// Standard input, to be read twice.
void spool_stdin(const std::string& path) {
  ByteSource source("-");
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  std::vector<char> chunk(1 << 18);
  while (const size_t count = source.read(chunk.data(), chunk.size())) {
    file.write(chunk.data(), static_cast<std::streamsize>(count));
  }
  file.close();
  check(!file.fail(), "{}: standard input cannot be kept here: {}; check free space", path, system_error_text());
}

void write_meta(const PrepareOptions& options, const Tokenizer& tokenizer, const PrepareSummary& summary) {
  const std::string json = tokenizer.to_json();
  write_file(options.out + "/tokenizer.json", json);
  nlohmann::ordered_json meta = {{"vocab_size", tokenizer.vocab_size()},
                                 {"end_of_text", tokenizer.end_of_text()},
                                 {"tokenizer_crc32", tokenizer_checksum(json)}};
  const auto add = [&](const char* name, const SplitSummary& split) {
    meta[name] = {
        {"tokens", split.tokens}, {"documents", split.documents}, {"bytes", split.bytes}, {"shards", split.shards}};
  };
  add("train", summary.train);
  add("val", summary.val);
  if (options.deduplicate) {
    meta["duplicates_left_out"] = {{"documents", summary.duplicates}, {"bytes", summary.duplicate_bytes}};
  }
  write_file(options.out + "/meta.json", meta.dump(2) + "\n");
}

}  // namespace

PrepareSummary prepare_data(const PrepareOptions& options) {
  check_usage(options.val_fraction >= 0.0 && options.val_fraction < 1.0,
              "data prepare: validation fraction {}; expected 0 or more, less than 1", options.val_fraction);
  check_usage(std::count(options.inputs.begin(), options.inputs.end(), "-") <= 1,
              "data prepare: standard input is named twice; expected once");
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const std::unique_ptr<OwnerLock> unfinished = make_room(options);
  std::vector<std::string> inputs = options.inputs;
  std::optional<PendingFile> spool;  // never committed: it goes when the work is done
  SplitPoint point;
  if (options.val_fraction > 0.0 && options.val_split == ValSplit::last) {
    const auto from_stdin = std::find(inputs.begin(), inputs.end(), "-");
    if (from_stdin != inputs.end()) {
      spool.emplace(options.out + "/stdin");
      spool_stdin(spool->path());
      *from_stdin = spool->path();
    }
    point = find_split_point(options, inputs);
  }
  SplitWriter writer(options, tokenizer, point);
  const bool by_hash = options.val_split == ValSplit::hash;
  DistinctDocuments distinct(options.deduplicate, [&](std::string_view text, const DocumentHash& hash) {
    if (by_hash) return writer.add_document(text, hash.fraction() < options.val_fraction);
    writer.add(text);
    writer.end_document();
  });
  {
    ProgressBar bar("tokenizing", total_bytes(inputs));
    DocumentHandlers handlers = {.text = [&](std::string_view text) { writer.add(text); },
                                 .end_document = [&] { writer.end_document(); },
                                 .progress = [&](int64_t bytes) { bar.update(bytes); }};
    if (by_hash || options.deduplicate) {
      handlers.text = [&](std::string_view text) { distinct.add(text); };
      handlers.end_document = [&] { distinct.end_document(); };
    }
    read_documents(inputs, options.format, handlers);
  }
  PrepareSummary summary = writer.finish();
  summary.duplicates = distinct.documents_left_out();
  summary.duplicate_bytes = distinct.bytes_left_out();
  check_usage(summary.train.tokens > 0, "data prepare: the inputs hold no text");
  write_meta(options, tokenizer, summary);
  unfinished->remove();
  sync_to_disk(options.out);
  return summary;
}

}  // namespace egmla

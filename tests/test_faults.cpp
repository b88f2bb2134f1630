// Disks that fail, fill up, or stop with the machine, under the real binary: every call that changes a file of a
// checkpoint, an export or prepared data is spoilt once (tests/faults/fault_shim.cpp). Afterwards what stands under its
// final name is the older or the newer state, whole, and the same command again reaches the newer one.
// EGMLA_FAULTS=all walks every call with every kind; without it each call meets one kind, in turn.
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <sstream>

#include "core/files.h"
#include "core/rng.h"
#include "data/shards.h"
#include "egmla_command.h"
#include "io/checkpoint.h"
#include "run_folder.h"
#include "text/bpe_trainer.h"
#include "train/metrics.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCanPreload = false;  // the sanitizer's run-time library must come first
#else
constexpr bool kCanPreload = true;
#endif

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

constexpr std::array<const char*, 4> kKinds = {"eio", "enospc", "kill", "power"};
constexpr int kKilled = 128 + 9;

// File names below a folder with their bytes.
std::map<std::string, std::string> contents(const std::string& folder) {
  std::map<std::string, std::string> files;
  if (!fs::exists(folder)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) files[fs::relative(entry.path(), folder)] = read_file(entry.path());
  }
  return files;
}

bool holds(const std::string& path, const std::string& bytes) {
  return fs::exists(path) && read_file(path) == bytes;
}

// One spoilt call: what it was, and how the command ended.
struct Spoilt {
  std::string kind, call, path;
  Outcome outcome;

  bool power_cut() const { return kind == "power"; }
  // The lock's file only names its owner; a file that cannot be removed or closed may be no harm.
  bool must_be_noticed() const {
    const std::string name = fs::path(path).filename();
    return kind == "eio" && name != ".lock" && name != Shard::kUnfinishedMark &&
           (call == "write" || call == "writev" || call == "pwrite" || call == "fsync" || call == "rename" ||
            call == "renameat2");
  }
};

class Faults : public RunFolder {
 protected:
  void SetUp() override {
    if (!kCanPreload) GTEST_SKIP() << "a sanitizer's library must be loaded first";
    RunFolder::SetUp();
    write_shard("train", 600, 1);
    write_config("config.yaml", R"(  max_steps: 2
  batch_tokens: 32
  optimizer: {lr: 3e-3}
  schedule: {warmup_steps: 1}
  checkpoint: {every: 1, keep_last: 1}
)");
    std::string text = read_file(file("config.yaml"));
    const std::string val = fmt::format("val: {}/val_*.bin, ", folder_);
    write_file(file("config.yaml"), text.erase(text.find(val), val.size()));
  }

  std::string train(const std::string& run, int64_t stop_at) const {
    return fmt::format("train '{}' run.dir='{}' train.stop_at_step={}", file("config.yaml"), file(run), stop_at);
  }

  static Outcome plain(const std::string& command) { return egmla_command(command, "OMP_NUM_THREADS=1"); }

  // Runs the command with its call number `at` spoilt.
  Spoilt spoilt(const std::string& command, const std::string& watched, const std::string& kind, int64_t at) const {
    const std::string record = file("record");
    const std::string prefix = fmt::format(
        "timeout -s ABRT 60 env OMP_NUM_THREADS=1 EGMLA_FAULT_DIR='{}' EGMLA_FAULT_KIND={} EGMLA_FAULT_AT={} "
        "EGMLA_FAULT_RECORD='{}' LD_PRELOAD='{}'",
        file(watched), kind, at, record, EGMLA_FAULT_SHIM);
    Spoilt result{.kind = kind, .call = "", .path = "", .outcome = egmla_command(command, prefix)};
    std::istringstream(read_file(record)) >> calls_ >> result.call >> result.path;
    return result;
  }

  // `restore` makes the older state; `inspect` judges the state after a spoilt command, which must then succeed.
  template <class Restore, class Inspect>
  void walk(const std::string& command, const std::string& watched, Restore&& restore, Inspect&& inspect) {
    restore();
    ASSERT_EQ(spoilt(command, watched, "none", 0).outcome.code, 0);
    const int64_t calls = calls_;
    ASSERT_GT(calls, 10);
    const bool all = std::getenv("EGMLA_FAULTS") != nullptr;
    int64_t refused = 0, killed = 0, harmless = 0;
    for (int64_t at = 1; at <= calls; ++at) {
      for (size_t i = 0; i < kKinds.size(); ++i) {
        if (!all && philox(3, static_cast<uint64_t>(at))[0] % kKinds.size() != i) continue;
        restore();
        const Spoilt found = spoilt(command, watched, kKinds[i], at);
        const int code = found.outcome.code;
        const bool dies = i >= 2;
        (code == 0 ? harmless : code == kKilled ? killed : refused) += 1;
        const std::string where = fmt::format("{} at call {}: {} {}; exit code {}; stderr: {}", found.kind, at,
                                              found.call, found.path, code, found.outcome.err);
        EXPECT_TRUE(dies ? code == kKilled : code == 0 || code == 1) << where;
        EXPECT_FALSE(code == 0 && found.must_be_noticed()) << where;
        if (code == 1) {
          EXPECT_EQ(found.outcome.last_line().rfind("error: ", 0), 0u) << where;
          EXPECT_EQ(found.outcome.err.find("error: "), found.outcome.err.rfind("error: ")) << where;
        }
        inspect(found, code == 0);
        ASSERT_FALSE(HasFailure()) << where;
      }
    }
    std::cout << fmt::format("{} calls, {} faults: {} refused with one line, {} processes ended, {} harmless\n", calls,
                             refused + killed + harmless, refused, killed, harmless);
  }

 private:
  mutable int64_t calls_ = 0;
};

TEST_F(Faults, ACheckpointIsTheOlderOrTheNewerOne) {
  ASSERT_EQ(plain(train("older", 1)).code, 0);
  const auto restore = [&] {
    fs::remove_all(file("run"));
    fs::copy(file("older"), file("run"), fs::copy_options::recursive);
  };
  restore();
  ASSERT_EQ(plain(train("run", 2)).code, 0);
  const std::string newer = read_file(checkpoint("run", 2));
  const auto rows = read_metrics(file("run/metrics.jsonl"));
  const auto inspect = [&](const Spoilt& spoilt, bool done) {
    const auto files = list_checkpoints(file("run/checkpoints"));
    ASSERT_FALSE(files.empty());
    for (const CheckpointFile& each : files) EXPECT_NO_THROW(CheckpointReader(each.path).verify());
    if (done) {
      EXPECT_TRUE(holds(checkpoint("run", 2), newer));
    }
    const Outcome again = plain(train("run", 2));
    EXPECT_EQ(again.code, 0) << again.err;
    EXPECT_EQ(again.err.find("passed over"), std::string::npos);
    EXPECT_TRUE(holds(checkpoint("run", 2), newer));
    EXPECT_FALSE(fs::exists(checkpoint("run", 2) + ".tmp"));
    const auto found = read_metrics(file("run/metrics.jsonl"));
    if (spoilt.power_cut()) return;  // rows that were never flushed may be lost
    ASSERT_EQ(found.size(), rows.size());
    for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(found[i].loss, rows[i].loss);
  };
  walk(train("run", 2), "run", restore, inspect);
}

TEST_F(Faults, AnExportIsTheOlderOrTheNewerOne) {
  ASSERT_EQ(plain(train("run", 1) + " train.checkpoint.keep_last=9").code, 0);
  ASSERT_EQ(plain(train("run", 2) + " train.checkpoint.keep_last=9").code, 0);
  const auto export_of = [&](int64_t step) {
    return fmt::format("export '{}' --out '{}'", checkpoint("run", step), file("exports/model"));
  };
  ASSERT_EQ(plain(export_of(1)).code, 0);
  fs::copy(file("exports"), file("older"), fs::copy_options::recursive);
  const auto older = contents(file("older/model"));
  ASSERT_EQ(plain(export_of(2)).code, 0);
  const auto newer = contents(file("exports/model"));
  ASSERT_FALSE(older == newer);
  const auto restore = [&] {
    fs::remove_all(file("exports"));
    fs::copy(file("older"), file("exports"), fs::copy_options::recursive);
  };
  walk(export_of(2), "exports", restore, [&](const Spoilt&, bool done) {
    const auto found = contents(file("exports/model"));
    EXPECT_TRUE(found == newer || (found == older && !done));
    const Outcome again = plain(export_of(2));
    EXPECT_EQ(again.code, 0) << again.err;
    EXPECT_EQ(contents(file("exports")).size(), newer.size());  // nothing beside it is left over
    EXPECT_TRUE(contents(file("exports/model")) == newer);
  });
}

TEST_F(Faults, PreparedDataIsWholeOrRefused) {
  BpeTrainer trainer;
  trainer.add("In the beginning God created the heaven and the earth.\n");
  trainer.end_document();
  write_file(file("tokenizer.json"), trainer.train(270).to_json());
  write_file(file("a.txt"), "And the earth was without form,\nand void; and darkness was upon the face.\n");
  write_file(file("b.txt"), "And God said, Let there be light:\nand there was light.\n");
  const auto prepare = [&](const std::string& name) {
    return fmt::format(
        "data prepare '{0}/{1}.txt' --tokenizer '{0}/tokenizer.json' --out '{0}/data' --val-fraction 0.5 "
        "--shard-tokens 20 --threads 1",
        folder_, name);
  };
  ASSERT_EQ(plain(prepare("a")).code, 0);
  fs::copy(file("data"), file("older"));
  const auto older = contents(file("older"));
  ASSERT_EQ(plain(prepare("b")).code, 2);  // not without --force
  ASSERT_TRUE(contents(file("data")) == older);
  ASSERT_EQ(plain(prepare("b") + " --force").code, 0);
  const auto newer = contents(file("data"));
  const auto restore = [&] {
    fs::remove_all(file("data"));
    fs::copy(file("older"), file("data"));
  };
  walk(prepare("b") + " --force", "data", restore, [&](const Spoilt&, bool done) {
    const auto found = contents(file("data"));
    const bool refused = found.contains(Shard::kUnfinishedMark);
    EXPECT_TRUE(found == newer || (found == older && !done) || (refused && !done));
    for (const auto& [name, bytes] : found) {
      if (!name.ends_with(".bin")) continue;
      if (refused) {
        EXPECT_THROW(Shard(file("data/" + name)), Error);
      } else {
        EXPECT_NO_THROW(Shard(file("data/" + name)));
      }
    }
    const Outcome again = plain(prepare("b") + (refused ? "" : " --force"));
    EXPECT_EQ(again.code, 0) << again.err;
    auto after = contents(file("data"));
    std::erase_if(after, [](const auto& each) { return each.first.ends_with(".tmp"); });
    EXPECT_TRUE(after == newer);
  });
}

// Bits of the newest checkpoint, in tensors, texts, state and structures alike.
TEST_F(Faults, ARunPassesOverAFlippedByteAndSaysSo) {
  ASSERT_EQ(plain(train("run", 1) + " train.checkpoint.keep_last=9").code, 0);
  ASSERT_EQ(plain(train("run", 2) + " train.checkpoint.keep_last=9").code, 0);
  const std::string path = checkpoint("run", 2), good = read_file(path);
  std::vector<size_t> places = {0, good.find("max_steps"), good.find("skipped_steps"), good.size() - 9};
  for (uint64_t i = 0; i < 8; ++i) places.push_back(philox(5, i)[0] % (good.size() - 8));
  for (const size_t at : places) {
    std::string bytes = good;
    bytes[at] = static_cast<char>(bytes[at] ^ (1 << at % 8));
    write_file(path, bytes);
    const Outcome outcome =
        egmla_command(train("run", 2) + " train.checkpoint.keep_last=9", "OMP_NUM_THREADS=1 timeout -s ABRT 60");
    EXPECT_EQ(outcome.code, 0) << "byte " << at << ": " << outcome.err;
    EXPECT_NE(outcome.err.find("passed over " + path + ": "), std::string::npos) << "byte " << at;
    EXPECT_NE(outcome.err.find("resuming from " + checkpoint("run", 1)), std::string::npos) << "byte " << at;
    EXPECT_TRUE(holds(path, good)) << "byte " << at;
  }
}

}  // namespace
}  // namespace egmla::test

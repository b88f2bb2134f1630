// The binary as a user meets it: exit codes, the last line on stderr, help, and the config and checkpoint commands.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "core/files.h"
#include "egmla_command.h"
#include "io/checkpoint.h"
#include "io/config.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;
using test::egmla_command;
using test::Outcome;

void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const std::string& part : parts) {
    EXPECT_NE(text.find(part), std::string::npos) << "missing '" << part << "' in: " << text;
  }
}

TEST(CommandLine, PrintsResultsAndExitCodes) {
  const std::string file = EGMLA_SOURCE_DIR "/configs/quickstart.yaml";
  const Outcome good = egmla_command("config '" + file + "' train.max_steps=5");
  EXPECT_EQ(good.code, 0);
  EXPECT_EQ(good.out, resolved_yaml(load_config(file, {"train.max_steps=5"}), true));
  EXPECT_EQ(good.err, "");
  EXPECT_EQ(egmla_command("config --reference").out, configuration_reference());
  const Outcome bad = egmla_command("config '" + file + "' train.max_step=5");
  EXPECT_EQ(bad.code, 2);
  EXPECT_EQ(bad.out, "");
  EXPECT_EQ(bad.err,
            "error: override 'train.max_step=5': unknown key 'train.max_step'; the nearest valid key is "
            "'train.max_steps'\n");
  EXPECT_EQ(egmla_command("config").code, 2);
  EXPECT_EQ(egmla_command("config /nonexistent.yaml").code, 2);
}

TEST(CommandLine, UsageErrorsAndVersion) {
  for (const char* arguments : {"", "nonsense", "config --nonsense", "checkpoint", "checkpoint list"}) {
    const Outcome outcome = egmla_command(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_EQ(outcome.out, "") << arguments;
    EXPECT_EQ(outcome.err.rfind("error: ", 0), 0U) << outcome.err;
    expect_parts(outcome.err, {"--help\n"});
  }
  expect_parts(egmla_command("--version").out, {"egmla 0.", "(commit ", "back ends: cpu"});
  for (const char* command :
       {"", "config", "checkpoint", "checkpoint verify", "checkpoint list", "checkpoint prune", "train", "eval",
        "generate", "export", "import", "inspect", "data", "tokenizer", "report", "bench"}) {
    const Outcome outcome = egmla_command(std::string(command) + " --help");
    EXPECT_EQ(outcome.code, 0) << command;
    expect_parts(outcome.out, {"Example", "egmla "});
  }
}

TEST(CommandLine, FullOutputIsAFailure) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
  const int status = std::system(fmt::format("'{}' config --reference >/dev/full 2>/dev/null", EGMLA_BINARY).c_str());
  EXPECT_EQ(WEXITSTATUS(status), 1);
}

// A run directory with checkpoints of one small tensor.
class CheckpointCommand : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    run_ = (fs::temp_directory_path() / fmt::format("egmla_run_{}_{}", info->name(), ::getpid())).string();
    for (const int64_t step : {10, 20, 30, 40}) {
      CheckpointContents contents;
      contents.state = {.step = step, .tokens = 64 * step, .samples = 4 * step, .seed = 1, .skipped_steps = 0};
      contents.config_yaml = "run: {name: x}\n";
      contents.model.push_back({"weight", {33}, [](float* target) { std::fill_n(target, 33, 1.5F); }});
      write_checkpoint(path(step), contents);
    }
  }
  void TearDown() override { fs::remove_all(run_); }

  std::string path(int64_t step) const { return checkpoint_path(run_ + "/checkpoints", step); }

  // Changes one byte of a weight: 1.5F is 00 00 c0 3f, 33 times.
  void damage(int64_t step) const {
    std::string bytes = read_file(path(step));
    const size_t weight = bytes.find(std::string("\x00\x00\xc0\x3f\x00\x00\xc0\x3f", 8));
    ASSERT_NE(weight, std::string::npos);
    bytes[weight] = 1;
    write_file(path(step), bytes);
  }

  std::string run_;
};

TEST_F(CheckpointCommand, VerifyNamesDamage) {
  const Outcome whole = egmla_command("checkpoint verify '" + run_ + "'");
  EXPECT_EQ(whole.code, 0);
  EXPECT_EQ(whole.out, path(10) + " ok\n" + path(20) + " ok\n" + path(30) + " ok\n" + path(40) + " ok\n");
  damage(20);
  const Outcome damaged = egmla_command("checkpoint verify '" + run_ + "'");
  EXPECT_EQ(damaged.code, 2);
  expect_parts(damaged.out, {path(10) + " ok\n", path(20) + " damaged\n", path(40) + " ok\n"});
  expect_parts(damaged.err, {"error: 1 of 4 checkpoints damaged; the first: " + path(20), "/model/weight"});
  EXPECT_EQ(egmla_command("checkpoint verify '" + path(10) + "'").code, 0);
  EXPECT_EQ(egmla_command("checkpoint verify '" + path(20) + "'").code, 2);
}

TEST_F(CheckpointCommand, ListShowsStepTokensAndSize) {
  const Outcome table = egmla_command("checkpoint list '" + run_ + "'");
  EXPECT_EQ(table.code, 0);
  expect_parts(table.out, {"step", "tokens", "bytes", "        20              1280  ", path(40)});
  const Outcome json = egmla_command("checkpoint list --json '" + run_ + "'");
  const nlohmann::json rows = nlohmann::json::parse(json.out);
  ASSERT_EQ(rows.size(), 4U);
  EXPECT_EQ(rows[2]["step"], 30);
  EXPECT_EQ(rows[2]["tokens"], 1920);
  EXPECT_EQ(rows[2]["bytes"], fs::file_size(path(30)));
  EXPECT_EQ(rows[2]["path"], path(30));
}

TEST_F(CheckpointCommand, PruneSaysWhatItRemoved) {
  const Outcome pruned = egmla_command("checkpoint prune '" + run_ + "' --keep-last 1 --keep-every 20");
  EXPECT_EQ(pruned.code, 0);
  EXPECT_EQ(pruned.out, "removed " + path(10) + "\nremoved " + path(30) + "\n2 removed, 2 kept\n");
  EXPECT_FALSE(fs::exists(path(10)));
  EXPECT_TRUE(fs::exists(path(20)));
}

// Keeping only a damaged file would lose the run.
TEST_F(CheckpointCommand, PruneRefusesWhenTheNewestIsDamaged) {
  damage(40);
  const Outcome refused = egmla_command("checkpoint prune '" + run_ + "' --keep-last 1");
  EXPECT_EQ(refused.code, 2);
  expect_parts(refused.err, {path(40), "newest checkpoint is damaged"});
  EXPECT_TRUE(fs::exists(path(30)));
}

TEST_F(CheckpointCommand, NamesWhatIsNotThere) {
  expect_parts(egmla_command("checkpoint list /nonexistent").err, {"error: /nonexistent: there is no such run"});
  const Outcome empty = egmla_command("checkpoint verify '" + run_ + "/checkpoints'");
  EXPECT_EQ(empty.code, 2);
  expect_parts(empty.err, {"holds no checkpoints"});
}

}  // namespace
}  // namespace egmla

// Checkpoints: round trip, atomic replacement, damage of every kind, and the choice among several files.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "core/files.h"
#include "core/rng.h"
#include "io/checkpoint.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = (fs::temp_directory_path() / fmt::format("egmla_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(directory_);
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string file(const std::string& name) const { return directory_ + "/" + name; }

  std::string directory_;
};

float value_of(const std::string& path, Group group, int64_t i) {
  return static_cast<float>(normal(stream_of(path), static_cast<uint64_t>(i), static_cast<uint64_t>(group)));
}

TensorSource tensor(const std::string& path, const Shape& shape, Group group) {
  return {path, shape, [=](float* target) {
            for (int64_t i = 0; i < shape.elements(); ++i) target[i] = value_of(path, group, i);
          }};
}

const std::vector<std::pair<std::string, Shape>> kTensors = {
    {"model.embed_tokens.weight", {33, 8}},
    {"model.layers.0.self_attn.q_proj.weight", {8, 8}},
    {"model.layers.0.self_attn.gate_norm.bias", {17}},
    {"model.norm.weight", {1}},
    {"scalar", {}},
};

CheckpointContents contents_at(int64_t step) {
  CheckpointContents contents;
  contents.state = {.step = step,
                    .tokens = step * 4096,
                    .samples = step * 4,
                    .seed = ~uint64_t{0},
                    .skipped_steps = 3,
                    .rollbacks = 2,
                    .skipped_batches = {5, 90}};
  contents.config_yaml = "run:\n  name: caf\u00e9\n";
  contents.tokenizer_json = "{\"model\": {\"vocab\": {\"\u0120the\": 0}}}";
  for (const auto& [path, shape] : kTensors) {
    contents.model.push_back(tensor(path, shape, Group::model));
    contents.exp_avg.push_back(tensor(path, shape, Group::exp_avg));
    contents.exp_avg_sq.push_back(tensor(path, shape, Group::exp_avg_sq));
  }
  return contents;
}

// Every value equals what contents_at(step) describes.
void expect_equal_data(const CheckpointReader& reader, int64_t step) {
  const CheckpointContents expected = contents_at(step);
  EXPECT_EQ(reader.state(), expected.state);
  EXPECT_EQ(reader.config_yaml(), expected.config_yaml);
  EXPECT_EQ(reader.tokenizer_json(), expected.tokenizer_json);
  for (Group group : {Group::model, Group::exp_avg, Group::exp_avg_sq}) {
    ASSERT_EQ(reader.paths(group).size(), kTensors.size());
    for (const auto& [path, shape] : kTensors) {
      ASSERT_TRUE(reader.has(group, path));
      ASSERT_EQ(reader.shape(group, path), shape);
      std::vector<float> values(static_cast<size_t>(shape.elements()));
      reader.read(group, path, values.data());
      for (int64_t i = 0; i < shape.elements(); ++i) {
        ASSERT_EQ(values[static_cast<size_t>(i)], value_of(path, group, i)) << path << " " << i;
      }
    }
  }
}

// The usage error that loading raises; empty when it loads, and then the data must be equal.
std::string damage_of(const std::string& path, int64_t step) {
  try {
    const CheckpointReader reader(path);
    reader.verify();
    expect_equal_data(reader, step);
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage) << error.what();
    EXPECT_EQ(std::string(error.what()).find(path + ": unreadable checkpoint: "), 0u) << error.what();
    return error.what();
  }
}

void overwrite(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

std::string flipped(std::string bytes, size_t at, unsigned bit) {
  bytes[at] = static_cast<char>(bytes[at] ^ (1 << bit));
  return bytes;
}

TEST_F(CheckpointTest, KeepsEveryValue) {
  const std::string path = checkpoint_path(directory_ + "/not/yet/there", 1000);
  EXPECT_EQ(fs::path(path).filename(), "step-00001000.h5");
  write_checkpoint(path, contents_at(1000));
  expect_equal_data(CheckpointReader(path), 1000);
  EXPECT_FALSE(fs::exists(path + ".tmp"));
}

TEST_F(CheckpointTest, KeepsTextsBeyondTheSizeOfAnObjectHeader) {
  CheckpointContents contents = contents_at(1);
  contents.tokenizer_json.assign(3 << 20, 'x');
  contents.config_yaml.assign(100 << 10, 'y');
  write_checkpoint(file("a.h5"), contents);
  const CheckpointReader reader(file("a.h5"));
  EXPECT_EQ(reader.tokenizer_json(), contents.tokenizer_json);
  EXPECT_EQ(reader.config_yaml(), contents.config_yaml);
}

TEST_F(CheckpointTest, HoldsWeightsAloneWithoutTokenizer) {
  CheckpointContents contents = contents_at(0);
  contents.exp_avg.clear();
  contents.exp_avg_sq.clear();
  contents.tokenizer_json.clear();
  write_checkpoint(file("a.h5"), contents);
  const CheckpointReader reader(file("a.h5"));
  EXPECT_EQ(reader.tokenizer_json(), "");
  EXPECT_EQ(reader.paths(Group::model).size(), kTensors.size());
  EXPECT_TRUE(reader.paths(Group::exp_avg).empty());
  EXPECT_FALSE(reader.has(Group::exp_avg, "scalar"));
  EXPECT_THROW(reader.shape(Group::exp_avg, "scalar"), Error);
}

TEST_F(CheckpointTest, WritesTheSameBytesTwice) {
  write_checkpoint(file("a.h5"), contents_at(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // the time of day must not matter
  write_checkpoint(file("b.h5"), contents_at(5));
  EXPECT_EQ(read_file(file("a.h5")), read_file(file("b.h5")));
}

TEST_F(CheckpointTest, SurvivesAFlipAnywhere) {
  const std::string path = file("a.h5");
  write_checkpoint(path, contents_at(9));
  const std::string good = read_file(path);
  for (size_t at = 0; at < good.size(); at += 1 + philox(2, at)[0] % 5) {
    overwrite(path, flipped(good, at, philox(1, at)[0] % 8));
    const bool in_magic = at >= good.size() - 8;  // without its last word a file counts as unsealed, and is whole
    EXPECT_EQ(damage_of(path, 9).empty(), in_magic);
    ASSERT_FALSE(HasFailure()) << "byte " << at;
  }
}

TEST_F(CheckpointTest, SurvivesManyFlipsAtOnce) {
  const std::string path = file("a.h5");
  write_checkpoint(path, contents_at(9));
  const std::string good = read_file(path);
  for (uint64_t trial = 0; trial < 300; ++trial) {
    std::string bytes = good;
    for (uint64_t i = 0; i <= trial % 40; ++i) {
      const auto draw = philox(trial, i);
      bytes = flipped(std::move(bytes), draw[0] % (good.size() - 8), draw[1] % 8);
    }
    overwrite(path, bytes);
    EXPECT_NE(damage_of(path, 9), "") << "trial " << trial;
  }
}

TEST_F(CheckpointTest, SurvivesTruncation) {
  const std::string path = file("a.h5");
  write_checkpoint(path, contents_at(9));
  const std::string good = read_file(path);
  for (size_t length = 0; length < good.size(); length += length + 700 < good.size() ? 37 : 1) {
    overwrite(path, good.substr(0, length));
    const std::string damage = damage_of(path, 9);
    EXPECT_TRUE(!damage.empty() || length > good.size() / 2) << "length " << length;
    ASSERT_FALSE(HasFailure()) << "length " << length;
  }
}

TEST_F(CheckpointTest, NamesTheDamagedTensor) {
  const std::string path = file("a.h5");
  write_checkpoint(path, contents_at(9));
  const std::string good = read_file(path);
  const float first = value_of("model.embed_tokens.weight", Group::model, 0);
  const size_t at = good.find(std::string(reinterpret_cast<const char*>(&first), sizeof first));
  ASSERT_NE(at, std::string::npos);
  overwrite(path, flipped(good, at, 0));
  const CheckpointReader reader(path);  // structure and texts are whole
  EXPECT_EQ(reader.state().step, 9);
  EXPECT_NE(damage_of(path, 9).find("tensor /model/model.embed_tokens.weight has checksum"), std::string::npos);
}

TEST_F(CheckpointTest, RefusesWhatIsNoCheckpoint) {
  overwrite(file("text.h5"), "hello");
  EXPECT_NE(damage_of(file("text.h5"), 0).find("expected an egmla HDF5 checkpoint"), std::string::npos);
  EXPECT_NE(damage_of(file("absent.h5"), 0).find("there is no such file"), std::string::npos);
  EXPECT_NE(damage_of(directory_, 0).find("there is no such file"), std::string::npos);
}

// A limit on file sizes stands for a full disk: both fail in the middle of a write.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &now);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

TEST_F(CheckpointTest, FailedWriteLeavesTheOldFileAndNothingElse) {
  const std::string path = file("step-00000007.h5");
  write_checkpoint(path, contents_at(7));
  const size_t whole = fs::file_size(path);
  for (size_t limit : {size_t{64}, whole / 4, whole / 2, whole - 200}) {
    const FileSizeLimit guard(limit);
    try {
      write_checkpoint(path, contents_at(8));
      ADD_FAILURE() << "written in spite of a limit of " << limit << " bytes";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::runtime);
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("File too large"), std::string::npos) << error.what();
    }
  }
  EXPECT_FALSE(fs::exists(path + ".tmp"));
  EXPECT_EQ(damage_of(path, 7), "");
  write_checkpoint(path, contents_at(8));
  EXPECT_EQ(damage_of(path, 8), "");
}

TEST_F(CheckpointTest, FailureWhileFillingLeavesNothing) {
  CheckpointContents contents = contents_at(7);
  contents.exp_avg.back().fill = [](float*) { fail("device lost"); };
  EXPECT_THROW(write_checkpoint(file("a.h5"), contents), Error);
  EXPECT_TRUE(fs::is_empty(directory_));
}

std::vector<int64_t> steps_in(const std::string& directory) {
  std::vector<int64_t> steps;
  for (const CheckpointFile& item : list_checkpoints(directory)) steps.push_back(item.step);
  return steps;
}

TEST_F(CheckpointTest, ListsByStepAndIgnoresOtherFiles) {
  for (const char* name : {"step-00000200.h5", "step-00000030.h5", "step-123456789.h5", "step-00000040.h5.tmp",
                           "step-40.h5", "step--0000040.h5", "step-0000004x.h5", "notes.txt"}) {
    overwrite(file(name), "");
  }
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{30, 200, 123456789}));
  EXPECT_TRUE(list_checkpoints(file("absent")).empty());
}

TEST_F(CheckpointTest, PrunesButKeepsTheLastAndTheMultiples) {
  for (int64_t step = 100; step <= 1000; step += 100) overwrite(checkpoint_path(directory_, step), "");
  prune_checkpoints(directory_, 2, 400);
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{400, 800, 900, 1000}));
  prune_checkpoints(directory_, 0, 0);  // the newest always stays
  EXPECT_EQ(steps_in(directory_), (std::vector<int64_t>{1000}));
}

TEST_F(CheckpointTest, FallsBackOnTheNewestWholeFile) {
  EXPECT_FALSE(newest_valid_checkpoint(directory_).has_value());
  for (int64_t step : {1, 2, 3}) write_checkpoint(checkpoint_path(directory_, step), contents_at(step));
  const std::string last = checkpoint_path(directory_, 3);
  overwrite(last, read_file(last).substr(0, 3000));
  overwrite(last + ".tmp", "left over by a killed process");
  const auto newest = newest_valid_checkpoint(directory_);
  ASSERT_TRUE(newest.has_value());
  EXPECT_EQ(newest->path, checkpoint_path(directory_, 2));
  ASSERT_EQ(newest->passed_over.size(), 1u);
  EXPECT_EQ(newest->passed_over[0].first, last);
  EXPECT_NE(newest->passed_over[0].second.find("unreadable checkpoint"), std::string::npos);
}

TEST_F(CheckpointTest, RefusesToPassOverAllFiles) {
  overwrite(checkpoint_path(directory_, 1), "x");
  overwrite(checkpoint_path(directory_, 2), "y");
  try {
    newest_valid_checkpoint(directory_);
    ADD_FAILURE() << "a run with damaged checkpoints only must not look like a new one";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("none of the 2 checkpoints"), std::string::npos) << error.what();
  }
}

TEST_F(CheckpointTest, RemovesLeftOversOfItsOwnOnly) {
  for (const char* name : {"step-00000001.h5.tmp", "mine.tmp", "x.h5.tmp"}) overwrite(file(name), "");
  write_checkpoint(checkpoint_path(directory_, 2), contents_at(2));
  EXPECT_FALSE(fs::exists(file("step-00000001.h5.tmp")));
  EXPECT_TRUE(fs::exists(file("mine.tmp")));
  EXPECT_TRUE(fs::exists(file("x.h5.tmp")));
}

TEST(Files, ReplaceAtomicallyAndReadBack) {
  const std::string path = (fs::temp_directory_path() / fmt::format("egmla_files_{}", ::getpid())).string();
  const std::string bytes("a\0b\nc", 5);
  write_file(path, "before");
  write_file(path, bytes);
  EXPECT_EQ(read_file(path), bytes);
  EXPECT_FALSE(fs::exists(path + ".tmp"));
  fs::remove(path);
  EXPECT_THROW(read_file(path), Error);
  EXPECT_THROW(write_file("/nonexistent/x", "y"), Error);
}

}  // namespace
}  // namespace egmla

// Metrics rows, TensorBoard's event files and the console's line.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "core/check.h"
#include "core/files.h"
#include "train/metrics.h"
#include "train/progress.h"
#include "train/tensorboard.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

class MetricsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    directory_ = (fs::temp_directory_path() / fmt::format("egmla_{}_{}", info->name(), ::getpid())).string();
    fs::create_directories(directory_);
    path_ = directory_ + "/metrics.jsonl";
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string directory_, path_;
};

MetricsRow row_at(int64_t step) {
  return {.step = step,
          .tokens = step * 4096,
          .loss = 10.0 / static_cast<double>(step),
          .lr = 6e-4,
          .grad_norm = 0.1 + 0.2,
          .tokens_per_s = 12345.678,
          .mfu = step % 2 ? std::optional(0.25) : std::nullopt,
          .time = 1.5 * static_cast<double>(step),
          .val_loss = step % 3 ? std::nullopt : std::optional(2.5)};
}

std::vector<int64_t> steps_of(const std::string& path) {
  std::vector<int64_t> steps;
  for (const MetricsRow& row : read_metrics(path)) steps.push_back(row.step);
  return steps;
}

TEST_F(MetricsTest, KeepsEveryValueExactly) {
  {
    MetricsLog log(path_, 0);
    for (int64_t step = 1; step <= 6; ++step) log.append(row_at(step));
  }
  const auto rows = read_metrics(path_);
  ASSERT_EQ(rows.size(), 6u);
  for (int64_t step = 1; step <= 6; ++step) {
    const MetricsRow& row = rows[static_cast<size_t>(step - 1)];
    const MetricsRow expected = row_at(step);
    EXPECT_EQ(row.step, expected.step);
    EXPECT_EQ(row.tokens, expected.tokens);
    EXPECT_EQ(row.loss, expected.loss);
    EXPECT_EQ(row.lr, expected.lr);
    EXPECT_EQ(row.grad_norm, expected.grad_norm);
    EXPECT_EQ(row.tokens_per_s, expected.tokens_per_s);
    EXPECT_EQ(row.mfu, expected.mfu);
    EXPECT_EQ(row.time, expected.time);
    EXPECT_EQ(row.val_loss, expected.val_loss);
  }
}

TEST_F(MetricsTest, WritesPlainJson) {
  EXPECT_EQ(
      metrics_json({.step = 2, .tokens = 8, .loss = 1.5, .lr = 0.5, .grad_norm = 2, .tokens_per_s = 4, .time = 3}),
      R"({"step":2,"tokens":8,"loss":1.5,"lr":0.5,"grad_norm":2.0,"tokens_per_s":4.0,"mfu":null,"time":3.0})");
}

TEST_F(MetricsTest, RowsAreReadableWhileTheLogIsOpen) {
  MetricsLog log(path_, 0);
  log.append(row_at(1));
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1}));
}

TEST_F(MetricsTest, NonFiniteLossIsNullAndReadsAsNan) {
  MetricsRow row = row_at(1);
  row.loss = std::numeric_limits<double>::quiet_NaN();
  row.grad_norm = std::numeric_limits<double>::infinity();
  MetricsLog(path_, 0).append(row);
  EXPECT_NE(read_file(path_).find("\"loss\":null"), std::string::npos);
  EXPECT_TRUE(std::isnan(read_metrics(path_)[0].loss));
}

TEST_F(MetricsTest, ResumingDropsRowsPastTheCheckpoint) {
  for (int64_t step = 1; step <= 9; ++step) MetricsLog(path_, step - 1).append(row_at(step));
  EXPECT_EQ(steps_of(path_).size(), 9u);
  MetricsLog resumed(path_, 6);
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
  resumed.append(row_at(7));
  EXPECT_EQ(steps_of(path_).back(), 7);
  MetricsLog anew(path_, 0);
  EXPECT_TRUE(steps_of(path_).empty());
}

TEST_F(MetricsTest, ToleratesATornLastLineAtEveryLength) {
  MetricsLog(path_, 0).append(row_at(1));
  const std::string first = read_file(path_);
  const std::string second = metrics_json(row_at(2));
  for (size_t length = 0; length < second.size(); ++length) {
    write_file(path_, first + second.substr(0, length));
    ASSERT_EQ(steps_of(path_), (std::vector<int64_t>{1})) << length;
  }
  write_file(path_, first + second);  // whole but for its line end
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1, 2}));
  write_file(path_, first + std::string(20, '\0') + "\n");  // what a power cut leaves behind
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1}));
  MetricsLog(path_, 1).append(row_at(2));
  EXPECT_EQ(steps_of(path_), (std::vector<int64_t>{1, 2}));
}

TEST_F(MetricsTest, NamesABadLineInTheMiddle) {
  write_file(path_, metrics_json(row_at(1)) + "\nnonsense\n" + metrics_json(row_at(2)) + "\n");
  try {
    read_metrics(path_);
    ADD_FAILURE() << "a bad line in the middle was accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ExitCode::usage);
    EXPECT_NE(std::string(error.what()).find("metrics.jsonl:2: no metrics row: 'nonsense'"), std::string::npos);
  }
}

// --- TensorBoard ---

TEST(Tensorboard, Crc32cHasItsPublishedCheckValue) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);  // RFC 3720, B.4
}

// The data of each record, after its frame's checksums have been verified.
std::vector<std::string> records_of(const std::string& path) {
  const auto masked = [](std::string_view data) {
    const uint32_t crc = crc32c(data);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
  };
  const std::string bytes = read_file(path);
  std::vector<std::string> records;
  for (size_t at = 0; at < bytes.size();) {
    uint64_t length = 0;
    uint32_t crc = 0;
    std::memcpy(&length, bytes.data() + at, 8);
    std::memcpy(&crc, bytes.data() + at + 8, 4);
    EXPECT_EQ(crc, masked(std::string_view(bytes).substr(at, 8)));
    records.push_back(bytes.substr(at + 12, length));
    std::memcpy(&crc, bytes.data() + at + 12 + length, 4);
    EXPECT_EQ(crc, masked(records.back()));
    at += length + 16;
  }
  return records;
}

TEST_F(MetricsTest, TensorboardFileHoldsVersionAndScalars) {
  TensorboardWriter writer(directory_ + "/tensorboard", 0);
  writer.scalars(300, {{"loss", 1.5}});
  const auto records = records_of(writer.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].substr(9), std::string("\x10\0\x1a\x0d", 4) + "brain.Event:2");
  // step 300 | summary { value { tag "loss", simple_value 1.5 } }
  const std::string expected("\x10\xac\x02\x2a\x0d\x0a\x0b\x0a\x04loss\x15\0\0\xc0\x3f", 18);
  EXPECT_EQ(records[1].substr(9), expected);
}

TEST_F(MetricsTest, TensorboardResumeStartsANewFileAndSession) {
  const std::string directory = directory_ + "/tensorboard";
  TensorboardWriter first(directory, 0);
  TensorboardWriter second(directory, 5);
  EXPECT_LT(first.path(), second.path());
  const auto records = records_of(second.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].substr(9), std::string("\x10\x06\x3a\x02\x08\x01", 6));  // step 6, session_log { START }
}

// --- the console's line ---

TEST(ProgressLine, ShowsWhatIsKnown) {
  Progress progress{.step = 120,
                    .total = 2000,
                    .loss = 3.21543,
                    .lr = 6e-4,
                    .grad_norm = 0.837,
                    .tokens_per_s = 12345,
                    .mfu = 0.4123,
                    .seconds_left = 125};
  EXPECT_EQ(progress_line(progress),
            "step  120/2000    6.0%  loss 3.2154  lr 6.00e-04  norm 0.84  12.3k tok/s  mfu 41.2%  2m05s left");
  progress.mfu.reset();
  progress.seconds_left.reset();
  progress.step = 2000;
  EXPECT_EQ(progress_line(progress), "step 2000/2000  100.0%  loss 3.2154  lr 6.00e-04  norm 0.84  12.3k tok/s");
}

TEST(ProgressLine, ShortensCounts) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(999.7), "1.00k");
  EXPECT_EQ(format_count(1200), "1.20k");
  EXPECT_EQ(format_count(99960), "100k");
  EXPECT_EQ(format_count(999600), "1.00M");
  EXPECT_EQ(format_count(3.4e6), "3.40M");
  EXPECT_EQ(format_count(50e9), "50.0B");
  EXPECT_EQ(format_count(std::nan("")), "-");
}

TEST(ProgressLine, ShortensDurations) {
  EXPECT_EQ(format_duration(-1), "0s");
  EXPECT_EQ(format_duration(59.4), "59s");
  EXPECT_EQ(format_duration(59.6), "1m00s");
  EXPECT_EQ(format_duration(125), "2m05s");
  EXPECT_EQ(format_duration(3600 * 3 + 60 * 7 + 5), "3h07m");
  EXPECT_EQ(format_duration(86400 * 4 + 3600 * 2), "4d02h");
}

}  // namespace
}  // namespace egmla

// Every file of the fuzzers' corpus through the reader it was found with; whatever ends the process fails the test.
#include <gtest/gtest.h>

#include <filesystem>

#include "core/files.h"
#include "fuzz/readers.h"

namespace egmla::test {
namespace {

namespace fs = std::filesystem;

TEST(FuzzCorpus, EveryFileIsReadOrRefused) {
  for (const FuzzedReader& reader : fuzzed_readers()) {
    const fs::path folder = fs::path(EGMLA_SOURCE_DIR) / "tests/fuzz/corpus" / reader.name;
    ASSERT_TRUE(fs::is_directory(folder)) << folder;
    int files = 0;
    for (const auto& entry : fs::directory_iterator(folder)) {
      SCOPED_TRACE(entry.path().string());
      read_fuzzed(reader.name, read_file(entry.path().string()));
      ++files;
    }
    EXPECT_GT(files, 0) << folder;
  }
}

}  // namespace
}  // namespace egmla::test

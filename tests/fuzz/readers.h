// Every reader of outside bytes as a function of those bytes. A reader accepts them or raises a usage error; what it
// accepts must hold up (round trips, ids in range). Anything else ends the process: fuzzers and the corpus's test look
// for that.
#pragma once

#include <string>
#include <vector>

namespace egmla::test {

struct FuzzedReader {
  const char* name;  // of its folder in tests/fuzz/corpus
  void (*read)(const std::string& bytes);
};

const std::vector<FuzzedReader>& fuzzed_readers();

// Hands the bytes to the reader of that name.
void read_fuzzed(const std::string& name, const std::string& bytes);

}  // namespace egmla::test

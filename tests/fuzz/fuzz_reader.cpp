// libFuzzer's entry; EGMLA_FUZZED names the reader. scripts/fuzz.sh runs them all.
#include <cstdint>

#include "fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  egmla::test::read_fuzzed(EGMLA_FUZZED, {reinterpret_cast<const char*>(data), size});
  return 0;
}

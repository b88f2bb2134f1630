// Runs the egmla binary as a user does.
#pragma once

#include <string>

namespace egmla::test {

struct Outcome {
  int code = 0;  // exit code; 128 + signal when a signal ended it
  std::string out, err;

  // The last line on stderr.
  std::string last_line() const;
};

// `arguments` is a shell's command line; `prefix` stands before the binary ("ulimit -f 8;").
Outcome egmla_command(const std::string& arguments, const std::string& prefix = "");

}  // namespace egmla::test

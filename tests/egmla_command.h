// Runs the egmla binary as a user does, alone or under mpirun.
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

// A prefix that starts so many processes under OpenMPI, with its further `options`.
std::string mpirun(int ranks, const std::string& options = "");
// This test program in so many processes, for one disabled test.
Outcome in_ranks(int ranks, const std::string& test);

}  // namespace egmla::test

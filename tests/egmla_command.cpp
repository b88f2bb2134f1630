#include "egmla_command.h"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

#include "core/files.h"

namespace egmla::test {

std::string Outcome::last_line() const {
  std::string text = err;
  while (!text.empty() && text.back() == '\n') text.pop_back();
  const size_t begin = text.rfind('\n');
  return begin == std::string::npos ? text : text.substr(begin + 1);
}

Outcome egmla_command(const std::string& arguments, const std::string& prefix) {
  namespace fs = std::filesystem;
  const fs::path base = fs::temp_directory_path() / fmt::format("egmla_cli_{}", ::getpid());
  const std::string out = base.string() + ".out", err = base.string() + ".err";
  const int status =
      std::system(fmt::format("{} '{}' {} >'{}' 2>'{}'", prefix, EGMLA_BINARY, arguments, out, err).c_str());
  Outcome outcome{.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
                  .out = read_file(out),
                  .err = read_file(err)};
  fs::remove(out);
  fs::remove(err);
  return outcome;
}

}  // namespace egmla::test

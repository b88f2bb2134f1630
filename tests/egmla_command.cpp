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

// In containers: as root, with more processes than cores, without reading another process's memory. OpenMPI keeps
// memory to its end, which a leak sanitizer would count against us. Tests that run as ranks know nothing of shards.
std::string mpirun(int ranks, const std::string& options) {
  return fmt::format(
      "env -u GTEST_TOTAL_SHARDS -u GTEST_SHARD_INDEX ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 "
      "OMPI_MCA_btl_vader_single_copy_mechanism=none "
      "OMPI_MCA_btl_base_warn_component_unused=0 "
      "mpirun {} --allow-run-as-root --oversubscribe --bind-to none -n {}",
      options, ranks);
}

Outcome in_ranks(int ranks, const std::string& test) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  return egmla_command("--version", fmt::format("{} {} --gtest_also_run_disabled_tests --gtest_filter={}",
                                                mpirun(ranks), program, test));
}

}  // namespace egmla::test

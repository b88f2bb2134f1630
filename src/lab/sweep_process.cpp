#include "lab/sweep_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "core/check.h"
#include "core/files.h"

namespace egmla {
namespace {

constexpr const char* kOwnBinary = "/proc/self/exe";

std::vector<char*> pointers_to(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (std::string& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

std::vector<std::string> merged_environment(const std::vector<std::string>& changes) {
  std::vector<std::string> out = changes;
  for (char** entry = environ; *entry; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('=') + 1);
    bool replaced = false;
    for (const std::string& change : changes) replaced = replaced || change.starts_with(name);
    if (!replaced) out.push_back(text);
  }
  return out;
}

// Between fork and exec only calls that are safe there: no memory is taken. A group of its own keeps a terminal's
// Ctrl-C away, which the parent passes on once.
[[noreturn]] void become(pid_t parent, int output, char* const* arguments, char* const* environment) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(1);
  ::signal(SIGINT, SIG_DFL);
  ::signal(SIGTERM, SIG_DFL);
  const int input = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (input < 0 || ::dup2(input, STDIN_FILENO) < 0) ::_exit(127);
  if (::dup2(output, STDOUT_FILENO) < 0 || ::dup2(output, STDERR_FILENO) < 0) ::_exit(127);
  ::execve(kOwnBinary, arguments, environment);
  ::_exit(127);
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& arguments, const std::vector<std::string>& environment,
                           const std::string& output) {
  std::vector<std::string> texts = {"egmla"}, variables = merged_environment(environment);
  texts.insert(texts.end(), arguments.begin(), arguments.end());
  const std::vector<char*> argv = pointers_to(texts), envp = pointers_to(variables);
  const int file = ::open(output.c_str(), O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
  check(file >= 0, "{}: cannot be written: {}", output, system_error_text());
  const pid_t parent = ::getpid();
  id_ = ::fork();
  if (id_ == 0) become(parent, file, argv.data(), envp.data());
  ::close(file);
  check(id_ > 0, "sweep: cannot start a process: {}", system_error_text());
}

ChildProcess::~ChildProcess() {
  if (code_) return;
  stop();
  reap(true);
}

void ChildProcess::stop() const {
  if (!code_) ::kill(id_, SIGTERM);
}

std::optional<int> ChildProcess::reap(bool wait) {
  if (code_) return code_;
  int status = 0;
  pid_t found = 0;
  do {
    found = ::waitpid(id_, &status, wait ? 0 : WNOHANG);
  } while (found < 0 && errno == EINTR);
  if (found == id_) code_ = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  if (found < 0) code_ = static_cast<int>(ExitCode::runtime);  // somebody else reaped it
  return code_;
}

}  // namespace egmla

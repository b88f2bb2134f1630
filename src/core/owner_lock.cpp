#include "core/owner_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <tuple>
#include <utility>

#include "core/check.h"
#include "core/files.h"

namespace egmla {

OwnerLock::OwnerLock(std::string path, const std::string& directory, const std::string& work, const std::string& remedy)
    : path_(std::move(path)) {
  for (;;) {
    fd_ = ::open(path_.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
    check_usage(fd_ >= 0, "{}: cannot be written to: {}; {}", directory, system_error_text(), remedy);
    if (::flock(fd_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      const std::string who = owner();
      ::close(fd_);
      fail_usage("{}: {} is {} here; {}", directory, who, work, remedy);
    }
    if (is_current()) break;
    ::close(fd_);
  }
  sign();
}

OwnerLock::~OwnerLock() {
  ::close(fd_);
}

void OwnerLock::remove() const {
  const bool removed = ::unlink(path_.c_str()) == 0;
  check(removed, "{}: cannot be removed: {}", path_, system_error_text());
}

// An owner that removed the file may have let go of it between our open and our lock.
bool OwnerLock::is_current() const {
  struct stat held {};
  struct stat named {};
  return ::fstat(fd_, &held) == 0 && ::stat(path_.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
         held.st_dev == named.st_dev;
}

std::string OwnerLock::owner() const {
  std::array<char, 200> text{};
  const ssize_t bytes = ::pread(fd_, text.data(), text.size(), 0);
  const std::string line(text.data(), bytes > 0 ? static_cast<size_t>(bytes) : 0);
  const std::string first = line.substr(0, line.find('\n'));
  return first.empty() ? "another process" : first;
}

// The name is for messages alone: a full disk must not keep the owner from its work.
void OwnerLock::sign() const {
  std::array<char, 128> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {'?'};
  const std::string line = fmt::format("process {} on {}\n", ::getpid(), host.data());
  if (::ftruncate(fd_, 0) == 0) std::ignore = ::pwrite(fd_, line.data(), line.size(), 0);
}

}  // namespace egmla

// Preloaded into the binary: counts the calls that change files below EGMLA_FAULT_DIR, and spoils the one whose number
// is EGMLA_FAULT_AT as EGMLA_FAULT_KIND says:
//   eio: it fails once.  enospc: from it on nothing takes disk space.  kill: it is half done when the process dies.
//   power: as kill, and what was not flushed to the disk is cut to half.
// EGMLA_FAULT_RECORD receives one line: calls counted, then the spoilt call and its path.
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <set>
#include <string>

namespace {

template <class F>
F real(const char* name) {
  return reinterpret_cast<F>(::dlsym(RTLD_NEXT, name));
}

std::string setting(const char* name) {
  const char* const value = std::getenv(name);
  return value ? value : "";
}

std::string link_target(const std::string& link) {
  std::array<char, 4096> path{};
  const ssize_t length = ::readlink(link.c_str(), path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : "";
}

std::string path_of(int fd) {
  return link_target("/proc/self/fd/" + std::to_string(fd));
}

bool is_writable(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY;
}

enum class Fate : unsigned char { normal, fails, dies };

class Faults {
 public:
  // One object, never destroyed: files are closed until the very end.
  static Faults& get() {
    static Faults* const faults = new Faults;
    return *faults;
  }

  // Counts the call. takes_space: it fails on a full disk.
  Fate next(const char* call, const std::string& path, bool takes_space) {
    if (directory_.empty() || path.rfind(directory_, 0) != 0) return Fate::normal;
    const std::lock_guard lock(mutex_);
    const bool hit = ++count_ == at_;
    if (hit || count_ == 1) record(hit ? std::string(call) + " " + path : "");
    if (hit) reached_ = true;
    if (kind_ == "enospc") return reached_ && takes_space ? failure(ENOSPC) : Fate::normal;
    if (!hit) return Fate::normal;
    return kind_ == "eio" ? failure(EIO) : Fate::dies;
  }

  void written(const std::string& path) {
    const std::lock_guard lock(mutex_);
    dirty_.insert(path);
  }
  void flushed(const std::string& path) {
    const std::lock_guard lock(mutex_);
    dirty_.erase(path);
  }
  void renamed(const std::string& from, const std::string& to) {
    const std::lock_guard lock(mutex_);
    dirty_.erase(to);
    if (dirty_.erase(from) > 0) dirty_.insert(to);
  }

  [[noreturn]] void die() {
    if (kind_ == "power") {
      for (const std::string& path : dirty_) {
        struct stat info {};
        if (path.rfind(directory_, 0) != 0 || ::stat(path.c_str(), &info) != 0) continue;
        real<int (*)(const char*, off_t)>("truncate")(path.c_str(), info.st_size / 2);
      }
    }
    ::kill(::getpid(), SIGKILL);
    for (;;) ::pause();
  }

  void finish() {
    if (!reached_) record("");
  }

 private:
  static Fate failure(int error) {
    errno = error;
    return Fate::fails;
  }

  void record(const std::string& what) const {
    if (record_.empty()) return;
    const int fd = ::open(record_.c_str(), O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0644);
    const std::string line = std::to_string(count_) + " " + what + "\n";
    real<ssize_t (*)(int, const void*, size_t)>("write")(fd, line.data(), line.size());
    real<int (*)(int)>("close")(fd);
  }

  std::mutex mutex_;
  std::string directory_ = setting("EGMLA_FAULT_DIR"), kind_ = setting("EGMLA_FAULT_KIND"),
              record_ = setting("EGMLA_FAULT_RECORD");
  long at_ = std::atol(setting("EGMLA_FAULT_AT").c_str());
  long count_ = 0;
  bool reached_ = false;
  std::set<std::string> dirty_;  // written since the last flush
};

struct AtEnd {
  ~AtEnd() { Faults::get().finish(); }
} at_end;

// A call on a path or descriptor: done as usual, or failed, or the process dies; `half` does a part of it first.
template <class Call, class Half>
auto spoil(const char* name, const std::string& path, bool takes_space, Call&& call, Half&& half) -> decltype(call()) {
  switch (Faults::get().next(name, path, takes_space)) {
    case Fate::fails:
      return -1;
    case Fate::dies:
      half();
      Faults::get().die();
    default:
      return call();
  }
}

constexpr auto kNothing = [] {};

template <class Call, class Half>
ssize_t spoil_write(const char* name, int fd, Call&& call, Half&& half) {
  const std::string path = path_of(fd);
  Faults::get().written(path);
  return spoil(name, path, true, call, half);
}

int spoil_truncation(const char* name, const std::string& path, int (*call)(int, off_t), int fd, off_t size) {
  Faults::get().written(path);
  return spoil(
      name, path, false, [&] { return call(fd, size); }, kNothing);
}

int spoil_flush(const char* name, int fd, int (*call)(int)) {
  const std::string path = path_of(fd);
  const auto flush = [&] {
    Faults::get().flushed(path);
    return call(fd);
  };
  return spoil(name, path, false, flush, kNothing);
}

using Write = ssize_t (*)(int, const void*, size_t);
using PositionedWrite = ssize_t (*)(int, const void*, size_t, off_t);

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  static const auto call = real<Write>("write");
  return spoil_write(
      "write", fd, [&] { return call(fd, data, bytes); }, [&] { call(fd, data, bytes / 2); });
}

ssize_t pwrite(int fd, const void* data, size_t bytes, off_t at) {
  static const auto call = real<PositionedWrite>("pwrite");
  return spoil_write(
      "pwrite", fd, [&] { return call(fd, data, bytes, at); }, [&] { call(fd, data, bytes / 2, at); });
}

ssize_t pwrite64(int fd, const void* data, size_t bytes, off64_t at) {
  return pwrite(fd, data, bytes, at);
}

ssize_t writev(int fd, const iovec* parts, int count) {
  static const auto call = real<ssize_t (*)(int, const iovec*, int)>("writev");
  return spoil_write(
      "writev", fd, [&] { return call(fd, parts, count); }, [&] { call(fd, parts, count / 2); });
}

int fsync(int fd) {
  static const auto call = real<int (*)(int)>("fsync");
  return spoil_flush("fsync", fd, call);
}

int fdatasync(int fd) {
  static const auto call = real<int (*)(int)>("fdatasync");
  return spoil_flush("fdatasync", fd, call);
}

int ftruncate(int fd, off_t size) {
  static const auto call = real<int (*)(int, off_t)>("ftruncate");
  return spoil_truncation("ftruncate", path_of(fd), call, fd, size);
}

int ftruncate64(int fd, off64_t size) {
  return ftruncate(fd, size);
}

int truncate(const char* path, off_t size) {
  static const auto call = real<int (*)(const char*, off_t)>("truncate");
  return spoil(
      "truncate", path, false, [&] { return call(path, size); }, kNothing);
}

int truncate64(const char* path, off64_t size) {
  return truncate(path, size);
}

int fallocate(int fd, int mode, off_t begin, off_t size) {
  static const auto call = real<int (*)(int, int, off_t, off_t)>("fallocate");
  return spoil(
      "fallocate", path_of(fd), true, [&] { return call(fd, mode, begin, size); }, kNothing);
}

int fallocate64(int fd, int mode, off64_t begin, off64_t size) {
  return fallocate(fd, mode, begin, size);
}

int mkdir(const char* path, mode_t mode) {
  static const auto call = real<int (*)(const char*, mode_t)>("mkdir");
  return spoil(
      "mkdir", path, true, [&] { return call(path, mode); }, kNothing);
}

int rename(const char* from, const char* to) {
  static const auto call = real<int (*)(const char*, const char*)>("rename");
  const auto change = [&] {
    Faults::get().renamed(from, to);
    return call(from, to);
  };
  return spoil("rename", to, false, change, kNothing);
}

int renameat2(int from_fd, const char* from, int to_fd, const char* to, unsigned flags) {
  static const auto call = real<int (*)(int, const char*, int, const char*, unsigned)>("renameat2");
  return spoil(
      "renameat2", to, false, [&] { return call(from_fd, from, to_fd, to, flags); }, kNothing);
}

int unlink(const char* path) {
  static const auto call = real<int (*)(const char*)>("unlink");
  return spoil(
      "unlink", path, false, [&] { return call(path); }, kNothing);
}

int remove(const char* path) {
  static const auto call = real<int (*)(const char*)>("remove");
  return spoil(
      "remove", path, false, [&] { return call(path); }, kNothing);
}

int unlinkat(int folder, const char* path, int flags) {
  static const auto call = real<int (*)(int, const char*, int)>("unlinkat");
  const std::string whole = path[0] == '/' || folder == AT_FDCWD ? path : path_of(folder) + "/" + path;
  return spoil(
      "unlinkat", whole, false, [&] { return call(folder, path, flags); }, kNothing);
}

int close(int fd) {
  static const auto call = real<int (*)(int)>("close");
  const Fate fate = is_writable(fd) ? Faults::get().next("close", path_of(fd), false) : Fate::normal;
  if (fate == Fate::dies) Faults::get().die();
  const int result = call(fd);
  if (fate == Fate::normal) return result;
  errno = EIO;
  return -1;
}

int fclose(FILE* file) {
  static const auto call = real<int (*)(FILE*)>("fclose");
  const int fd = ::fileno(file);
  const std::string path = fd >= 0 && is_writable(fd) ? path_of(fd) : "";
  const Fate fate = path.empty() ? Fate::normal : Faults::get().next("fclose", path, false);
  if (fate == Fate::dies) Faults::get().die();
  const int result = call(file);
  if (fate == Fate::normal) return result;
  errno = EIO;
  return EOF;
}

}  // extern "C"

#include "core/files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/check.h"

namespace egmla {

std::string system_error_text() {
  return std::strerror(errno);
}

std::string read_file(const std::string& path) {
  check_usage(!std::filesystem::is_directory(path), "{}: is a directory; expected a file", path);
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  check_usage(file.good(), "{}: cannot be read: {}; check the path", path, system_error_text());
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  check_usage(!file.bad(), "{}: reading failed: {}; check the disk", path, system_error_text());
  return text;
}

void sync_to_disk(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check(fd >= 0, "{}: cannot be opened to flush it: {}", path, system_error_text());
  const bool synced = ::fsync(fd) == 0 || errno == EINVAL;  // EINVAL: a file system that has no fsync for directories
  const std::string reason = system_error_text();
  ::close(fd);
  check(synced, "{}: flushing to disk failed: {}", path, reason);
}

PendingFile::~PendingFile() {
  if (!committed_) ::unlink(path_.c_str());
}

void PendingFile::commit() {
  sync_to_disk(path_);
  const bool renamed = ::rename(path_.c_str(), target_.c_str()) == 0;
  check(renamed, "{}: cannot be put in place: {}", target_, system_error_text());
  committed_ = true;
  const std::string directory = std::filesystem::path(target_).parent_path().string();
  sync_to_disk(directory.empty() ? "." : directory);
}

void write_file(const std::string& path, std::string_view text) {
  PendingFile pending(path);
  errno = 0;
  std::ofstream file(pending.path(), std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  check(!file.fail(), "{}: cannot be written: {}; check the directory and free space", path, system_error_text());
  pending.commit();
}

}  // namespace egmla

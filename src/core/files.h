// Whole-file reading and durable replacement: a file appears under its name complete or not at all.
// Order of a replacement: write a temporary file beside the target, fsync it, rename it, fsync the directory.
#pragma once

#include <string>
#include <string_view>

namespace egmla {

// The last system error in words: "No space left on device".
std::string system_error_text();

// All bytes of `path`; a usage error when it cannot be read.
std::string read_file(const std::string& path);

// Replaces `path` by `text`, atomically and durably.
void write_file(const std::string& path, std::string_view text);

// Blocks until the bytes of a file, or the entries of a directory, are on the disk.
void sync_to_disk(const std::string& path);

// A file being written under `target` + ".tmp"; removed at the end of its life unless committed.
class PendingFile {
 public:
  static constexpr const char* kSuffix = ".tmp";

  explicit PendingFile(std::string target) : target_(std::move(target)), path_(target_ + kSuffix) {}
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  ~PendingFile();

  const std::string& path() const { return path_; }
  // Takes the target's name and makes that durable.
  void commit();

 private:
  std::string target_;
  std::string path_;
  bool committed_ = false;
};

}  // namespace egmla

// A lock that dies with its owner: flock on a file, which names the owner's process and host for whoever is refused.
// On a file system without locks it does nothing.
#pragma once

#include <string>

namespace egmla {

class OwnerLock {
 public:
  // Makes `path`, a file in `directory`. While another process holds it, a usage error:
  // "DIRECTORY: process 12 on HOST is WORK here; REMEDY".
  OwnerLock(std::string path, const std::string& directory, const std::string& work, const std::string& remedy);
  OwnerLock(const OwnerLock&) = delete;
  OwnerLock& operator=(const OwnerLock&) = delete;
  ~OwnerLock();

  // Removes the file; the lock itself ends with this object.
  void remove() const;

 private:
  bool is_current() const;
  std::string owner() const;
  void sign() const;

  std::string path_;
  int fd_ = -1;
};

}  // namespace egmla

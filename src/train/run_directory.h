// The folder a run owns: configuration, metrics, checkpoints, log, samples. It resumes only under its own configuration
// and belongs to one process (or job) at a time.
#pragma once

#include <optional>
#include <string>

#include "core/owner_lock.h"
#include "io/config.h"

namespace egmla {

class RunDirectory {
 public:
  // Makes the folder, or checks that the one there was made by a configuration that differs only in what may change
  // between launches. Raises usage errors naming the differing keys, and when another process holds the folder.
  explicit RunDirectory(const Config& config);

  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string checkpoints() const { return file("checkpoints"); }
  // Writes the resolved configuration; the last launch's stands.
  void write_config(const Config& config) const;
  void append_sample(int64_t step, const std::string& text) const;

 private:
  std::string path_;
  std::optional<OwnerLock> lock_;
};

}  // namespace egmla

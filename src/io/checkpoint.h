// Checkpoints: one HDF5 file per step, written beside its final name, read back, verified and only then renamed.
// Every value is covered by a CRC-32: each tensor, the state, the texts, and the list of all tensors with their shapes.
// HDF5 here is not thread-safe: one checkpoint call at a time in a process. docs/checkpoints.md describes the file.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/shape.h"

namespace egmla {

// Batches that a run can leave out after spikes of its loss.
constexpr int64_t kMostRollbacks = 16;

// Attributes of /state. Randomness is counter-based, so (seed, step, samples) is its whole state.
struct CheckpointState {
  int64_t step = 0;
  int64_t tokens = 0;
  int64_t samples = 0;  // loader position in global samples
  uint64_t seed = 0;
  int64_t skipped_steps = 0;
  int64_t rollbacks = 0;                                  // returns to a checkpoint after a spike
  std::array<int64_t, kMostRollbacks> skipped_batches{};  // the first `rollbacks` of them, rising

  bool operator==(const CheckpointState&) const = default;
};

// One tensor to write; fill copies its shape.elements() floats, row-major, to target.
struct TensorSource {
  std::string path;
  Shape shape;
  std::function<void(float* target)> fill;
};

struct CheckpointContents {
  std::vector<TensorSource> model, exp_avg, exp_avg_sq;
  CheckpointState state;
  std::string config_yaml;
  std::string tokenizer_json;  // may be empty
};

// Replaces `path`, creating its directory. On failure nothing is left behind and a runtime error names the reason.
void write_checkpoint(const std::string& path, const CheckpointContents& contents);

enum class Group : uint8_t { model, exp_avg, exp_avg_sq };

// A checkpoint opened for reading; whatever a damaged file holds, the outcome is equal data or a usage error.
class CheckpointReader {
 public:
  explicit CheckpointReader(const std::string& path);
  ~CheckpointReader();
  CheckpointReader(CheckpointReader&&) noexcept;
  CheckpointReader& operator=(CheckpointReader&&) noexcept;

  const CheckpointState& state() const { return state_; }
  const std::string& config_yaml() const { return config_yaml_; }
  const std::string& tokenizer_json() const { return tokenizer_json_; }

  std::vector<std::string> paths(Group group) const;  // sorted
  bool has(Group group, const std::string& path) const;
  Shape shape(Group group, const std::string& path) const;
  // Copies the tensor's floats to target and checks them against their checksum.
  void read(Group group, const std::string& path, float* target) const;
  // Reads every tensor; raises naming the first whose checksum differs.
  void verify() const;

 private:
  struct Entry {
    Shape shape;
    uint32_t checksum = 0;
  };
  struct File;  // HDF5's handles

  const Entry& entry(Group group, const std::string& path) const;
  void read_state();
  void read_texts();
  void read_index();

  std::unique_ptr<File> file_;
  CheckpointState state_;
  std::string config_yaml_, tokenizer_json_;
  std::map<std::pair<Group, std::string>, Entry> index_;
};

// The files of a checkpoint directory, named step-00001000.h5.
struct CheckpointFile {
  int64_t step = 0;
  std::string path;
};

std::string checkpoint_path(const std::string& directory, int64_t step);

// By rising step; empty when the directory does not exist.
std::vector<CheckpointFile> list_checkpoints(const std::string& directory);

// Removes all but the newest `keep_last` (at least one) and, when keep_every > 0, the multiples of keep_every.
void prune_checkpoints(const std::string& directory, int64_t keep_last, int64_t keep_every);

// Removes temporary files of an interrupted write; write_checkpoint does so first. Only for the process that writes
// there.
void remove_leftovers(const std::string& directory);

struct Newest {
  std::string path;
  std::vector<std::pair<std::string, std::string>> passed_over;  // newer files that failed: path, reason
};

// The newest checkpoint that verifies; nothing when there is none at all. When there are some and every one is
// damaged, a usage error lists them: starting anew in their place must be the user's decision.
std::optional<Newest> newest_valid_checkpoint(const std::string& directory);

}  // namespace egmla

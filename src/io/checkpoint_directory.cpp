// The checkpoints of a run directory: names, listing, pruning, and the newest one that is whole.
#include <algorithm>
#include <charconv>
#include <filesystem>
#include <string_view>

#include "core/files.h"
#include "io/checkpoint.h"

namespace egmla {
namespace {

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kSuffix = ".h5";

std::optional<int64_t> step_of(std::string_view name) {
  if (!name.starts_with(kPrefix) || !name.ends_with(kSuffix)) return std::nullopt;
  const std::string_view digits = name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
  int64_t step = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), step);
  if (digits.size() < 8 || digits.front() == '-' || error != std::errc() || end != digits.data() + digits.size())
    return std::nullopt;
  return step;
}

}  // namespace

std::string checkpoint_path(const std::string& directory, int64_t step) {
  return (std::filesystem::path(directory) / fmt::format("{}{:08d}{}", kPrefix, step, kSuffix)).string();
}

std::vector<CheckpointFile> list_checkpoints(const std::string& directory) {
  std::vector<CheckpointFile> files;
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(directory, error)) {
    if (const auto step = step_of(item.path().filename().string())) files.push_back({*step, item.path().string()});
  }
  std::sort(files.begin(), files.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return files;
}

void prune_checkpoints(const std::string& directory, int64_t keep_last, int64_t keep_every) {
  std::vector<CheckpointFile> files = list_checkpoints(directory);
  const size_t kept = std::min(files.size(), static_cast<size_t>(std::max<int64_t>(keep_last, 1)));
  files.resize(files.size() - kept);
  for (const CheckpointFile& file : files) {
    if (keep_every > 0 && file.step % keep_every == 0) continue;
    std::error_code error;
    std::filesystem::remove(file.path, error);
    check(!error, "{}: old checkpoint cannot be removed: {}; check the directory's permissions", file.path,
          error.message());
  }
}

void remove_leftovers(const std::string& directory) {
  const std::string_view suffix = PendingFile::kSuffix;
  std::error_code error;
  for (const auto& item : std::filesystem::directory_iterator(directory.empty() ? "." : directory, error)) {
    std::string name = item.path().filename().string();
    if (!name.ends_with(suffix)) continue;
    name.resize(name.size() - suffix.size());
    if (step_of(name)) std::filesystem::remove(item.path(), error);
  }
}

std::optional<Newest> newest_valid_checkpoint(const std::string& directory) {
  std::vector<CheckpointFile> files = list_checkpoints(directory);
  std::reverse(files.begin(), files.end());
  Newest newest;
  for (const CheckpointFile& file : files) {
    try {
      CheckpointReader(file.path).verify();
      newest.path = file.path;
      return newest;
    } catch (const Error& damage) {
      newest.passed_over.emplace_back(file.path, damage.what());
    }
  }
  check_usage(newest.passed_over.empty(),
              "{}: none of the {} checkpoints is readable; the newest: {}; restore one, or move the directory away to "
              "start anew",
              directory, newest.passed_over.size(), files.empty() ? "" : newest.passed_over.front().second);
  return std::nullopt;
}

}  // namespace egmla

// egmla checkpoint: verify, list and prune the checkpoints of a run directory.
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "core/check.h"
#include "core/files.h"
#include "io/checkpoint.h"

namespace egmla {
namespace {

namespace fs = std::filesystem;

struct CheckpointOptions {
  std::string run;
  bool json = false;
  int64_t keep_last = 3;
  int64_t keep_every = 0;
};

std::string directory_of(const std::string& run) {
  return (fs::path(run) / "checkpoints").string();
}

std::vector<CheckpointFile> checkpoints_of(const std::string& run) {
  check_usage(fs::exists(run), "{}: there is no such run directory or file", run);
  const std::vector<CheckpointFile> files = list_checkpoints(directory_of(run));
  check_usage(!files.empty(), "{}: holds no checkpoints (step-*.h5); expected a run directory of egmla train",
              directory_of(run));
  return files;
}

void verify(const CheckpointOptions& options) {
  std::vector<std::string> paths;
  if (fs::is_regular_file(options.run)) {
    paths.push_back(options.run);
  } else {
    for (const CheckpointFile& file : checkpoints_of(options.run)) paths.push_back(file.path);
  }
  std::string first_damage;
  size_t damaged = 0;
  for (const std::string& path : paths) {
    try {
      CheckpointReader(path).verify();
      fmt::print("{} ok\n", path);
    } catch (const Error& error) {
      fmt::print("{} damaged\n", path);
      if (damaged++ == 0) first_damage = error.what();
    }
  }
  check_usage(damaged == 0, "{} of {} checkpoints damaged; the first: {}", damaged, paths.size(), first_damage);
}

struct Listed {
  CheckpointFile file;
  int64_t tokens = -1;  // -1: not readable
  int64_t bytes = 0;
  std::string date;
};

Listed listed(const CheckpointFile& file) {
  Listed out{.file = file, .date = ""};
  struct stat status {};
  const bool found = ::stat(file.path.c_str(), &status) == 0;
  check_usage(found, "{}: cannot be looked at: {}", file.path, system_error_text());
  out.bytes = status.st_size;
  out.date = fmt::format("{:%Y-%m-%d %H:%M:%S}", fmt::localtime(status.st_mtime));
  try {
    out.tokens = CheckpointReader(file.path).state().tokens;
  } catch (const Error&) {  // listed as unreadable; verify says why
  }
  return out;
}

void list(const CheckpointOptions& options) {
  nlohmann::json rows = nlohmann::json::array();
  if (!options.json) fmt::print("{:>10}  {:>16}  {:>14}  {:<19}  file\n", "step", "tokens", "bytes", "written");
  for (const CheckpointFile& file : checkpoints_of(options.run)) {
    const Listed row = listed(file);
    const bool readable = row.tokens >= 0;
    if (options.json) {
      rows.push_back({{"step", file.step}, {"bytes", row.bytes}, {"written", row.date}, {"path", file.path}});
      rows.back()["tokens"] = readable ? nlohmann::json(row.tokens) : nlohmann::json();
    } else {
      const std::string tokens = readable ? std::to_string(row.tokens) : "unreadable";
      fmt::print("{:>10}  {:>16}  {:>14}  {}  {}\n", file.step, tokens, row.bytes, row.date, file.path);
    }
  }
  if (options.json) fmt::print("{}\n", rows.dump(2));
}

// What stays must hold a whole file: with the newest damaged, pruning could remove the last good one.
void prune(const CheckpointOptions& options) {
  const std::vector<CheckpointFile> before = checkpoints_of(options.run);
  const std::string directory = directory_of(options.run);
  const auto newest = newest_valid_checkpoint(directory);
  check_usage(newest && newest->passed_over.empty(),
              "{}: the newest checkpoint is damaged; delete it, then prune again", before.back().path);
  prune_checkpoints(directory, options.keep_last, options.keep_every);
  const std::vector<CheckpointFile> after = list_checkpoints(directory);
  for (const CheckpointFile& file : before) {
    const bool kept =
        std::any_of(after.begin(), after.end(), [&](const auto& other) { return other.step == file.step; });
    if (!kept) fmt::print("removed {}\n", file.path);
  }
  fmt::print("{} removed, {} kept\n", before.size() - after.size(), after.size());
}

}  // namespace

void add_checkpoint_command(CLI::App& app) {
  const auto options = std::make_shared<CheckpointOptions>();
  CLI::App* command = app.add_subcommand("checkpoint", "Verify, list or prune the checkpoints of a run");
  command->require_subcommand(1);
  command->footer("Example: egmla checkpoint verify runs/quickstart");

  CLI::App* verify_command = command->add_subcommand("verify", "Read every byte; exit code 2 when a file is damaged");
  verify_command->add_option("RUN", options->run, "run directory, or one checkpoint file")->required();
  verify_command->footer("Example: egmla checkpoint verify runs/quickstart");
  verify_command->callback([options] { verify(*options); });

  CLI::App* list_command = command->add_subcommand("list", "Step, tokens, size and date of each checkpoint");
  list_command->add_option("RUN", options->run, "run directory")->required();
  list_command->add_flag("--json", options->json, "a JSON array instead of a table");
  list_command->footer("Example: egmla checkpoint list runs/quickstart");
  list_command->callback([options] { list(*options); });

  CLI::App* prune_command = command->add_subcommand("prune", "Remove older checkpoints");
  prune_command->add_option("RUN", options->run, "run directory")->required();
  prune_command->add_option("--keep-last", options->keep_last, "newest files to keep")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  prune_command->add_option("--keep-every", options->keep_every, "keep steps that are a multiple of this; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  prune_command->footer("Example: egmla checkpoint prune runs/quickstart --keep-last 1 --keep-every 1000");
  prune_command->callback([options] { prune(*options); });
}

}  // namespace egmla

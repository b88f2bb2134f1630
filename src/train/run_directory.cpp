#include "train/run_directory.h"

#include <filesystem>
#include <fstream>

#include "core/check.h"
#include "core/files.h"

namespace egmla {

namespace fs = std::filesystem;

RunDirectory::RunDirectory(const Config& config) : path_(config.run.dir) {
  std::error_code error;
  fs::create_directories(path_, error);
  check_usage(!error, "run.dir: cannot make {}: {}", path_, error.message());
  lock_.emplace(file(".lock"), path_, "training", "wait for it or choose another run.dir");
  const std::string own = file("config.yaml");
  if (!fs::exists(own)) {
    check_usage(!fs::exists(file("metrics.jsonl")) && !fs::exists(checkpoints()),
                "{}: holds a run without config.yaml; choose another run.dir", path_);
    return;
  }
  const auto differences = config_differences(load_config(own, {}), config, resumable_keys());
  check_usage(differences.empty(),
              "{}: was made under another configuration; choose another run.name or run.dir, or undo: {}", path_,
              fmt::join(differences, "; "));
}

void RunDirectory::write_config(const Config& config) const {
  write_file(file("config.yaml"), resolved_yaml(config, false));
}

void RunDirectory::append_sample(int64_t step, const std::string& text) const {
  std::ofstream out(file("samples.txt"), std::ios::app | std::ios::binary);
  out << "--- step " << step << "\n" << text << "\n";
  out.flush();
  check(out.good(), "{}: cannot be written: {}", file("samples.txt"), system_error_text());
}

}  // namespace egmla

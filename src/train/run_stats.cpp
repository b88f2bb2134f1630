#include "train/run_stats.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/files.h"
#include "core/version.h"

namespace egmla {
namespace {

// "cpu" in the words of Linux; the device's own name for a GPU.
std::string hardware_text(const std::string& device) {
  if (device != "cpu") return device;
  const unsigned threads = std::thread::hardware_concurrency();
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos)
      return fmt::format("{}, {} threads", line.substr(colon + 2), threads);
  }
  return fmt::format("CPU, {} threads", threads);
}

}  // namespace

void write_run_stats(const std::string& path, const Transformer& model, int64_t sequence_length,
                     const std::string& device) {
  using Json = nlohmann::ordered_json;
  Json stats;
  if (std::filesystem::exists(path)) stats = Json::parse(read_file(path), nullptr, false);
  if (!stats.is_object()) stats = Json::object();
  const ParameterStore& store = model.parameters();
  stats["parameters"] = store.elements();
  stats["gate_tables"] = store.elements(ParameterGroup::gate_table);
  stats["cache_elements"] = model.cache_elements();
  stats["flops_per_token"] = model.flops_per_token(sequence_length);
  stats["hardware"] = hardware_text(device);
  stats["commit"] = EGMLA_COMMIT;
  write_file(path, stats.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace egmla

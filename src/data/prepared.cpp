#include "data/prepared.h"

#include <zlib.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "core/check.h"
#include "core/files.h"
#include "data/shards.h"

namespace egmla {

std::string tokenizer_checksum(const std::string& tokenizer_json) {
  const auto* const bytes = reinterpret_cast<const Bytef*>(tokenizer_json.data());
  return fmt::format("{:08x}", ::crc32_z(0, bytes, tokenizer_json.size()));
}

void check_prepared_with(const std::string& pattern, const std::string& tokenizer_json, const std::string& name) {
  namespace fs = std::filesystem;
  std::set<fs::path> folders;
  for (const std::string& shard : expand_glob(pattern)) folders.insert(fs::path(shard).parent_path());
  for (const fs::path& folder : folders) {
    const fs::path file = folder / "meta.json";
    if (!fs::is_regular_file(file)) continue;
    const auto meta = nlohmann::json::parse(read_file(file.string()), nullptr, false);
    if (!meta.is_object() || !meta.contains("tokenizer_crc32")) continue;
    check_usage(meta["tokenizer_crc32"] == tokenizer_checksum(tokenizer_json),
                "{}: these shards were made with another tokenizer than {}; use {}, or prepare the data again", pattern,
                name, (folder / "tokenizer.json").string());
  }
}

}  // namespace egmla

// TensorBoard event files: TFRecord framing around hand-encoded protobuf Events with scalar summaries.
// Record: length (u64), masked CRC-32C of those 8 bytes, data, masked CRC-32C of the data; little-endian.
#pragma once

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace egmla {

// CRC-32C (Castagnoli).
uint32_t crc32c(std::string_view data);

class TensorboardWriter {
 public:
  // Starts a new events.out.tfevents.<time>.<host> in `directory`, made when absent. TensorBoard forgets what earlier
  // files hold beyond resumed_step.
  TensorboardWriter(const std::string& directory, int64_t resumed_step);

  // One event with a value for each tag.
  void scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values);

  const std::string& path() const { return path_; }

 private:
  void write_event(std::string_view fields, int64_t step);

  std::string path_;
  std::ofstream file_;
};

}  // namespace egmla

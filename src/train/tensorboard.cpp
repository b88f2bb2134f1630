#include "train/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <filesystem>

#include "core/check.h"
#include "core/files.h"

namespace egmla {
namespace {

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = make_table();

// TFRecord stores checksums rotated and shifted, so that a checksum of data that holds checksums stays meaningful.
uint32_t masked_crc(std::string_view data) {
  return std::rotr(crc32c(data), 15) + 0xa282ead8u;
}

template <class T>
std::string bytes_of(T value) {
  static_assert(std::endian::native == std::endian::little);
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(value | 0x80);
  return out + static_cast<char>(value);
}

// Protobuf wire types.
enum class Wire : uint8_t { varint = 0, fixed64 = 1, length = 2, fixed32 = 5 };

std::string tag(uint32_t field, Wire wire) {
  return varint(field << 3 | static_cast<uint32_t>(wire));
}
std::string message(uint32_t field, std::string_view content) {
  return tag(field, Wire::length) + varint(content.size()) + std::string(content);
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

// Files are read in the order of their names: a second launch within a second takes the next free time.
std::string new_path(const std::string& directory) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0 || host[0] == '\0') host = {'h', 'o', 's', 't'};
  for (int64_t time = static_cast<int64_t>(now());; ++time) {
    std::string path =
        (std::filesystem::path(directory) / fmt::format("events.out.tfevents.{:010d}.{}", time, host.data())).string();
    if (!std::filesystem::exists(path)) return path;
  }
}

}  // namespace

uint32_t crc32c(std::string_view data) {
  uint32_t crc = ~0u;
  for (char c : data) crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(c)) & 0xffu];
  return ~crc;
}

TensorboardWriter::TensorboardWriter(const std::string& directory, int64_t resumed_step) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  check(!error, "{}: cannot be created: {}; check the run directory", directory, error.message());
  path_ = new_path(directory);
  errno = 0;
  file_.open(path_, std::ios::binary | std::ios::trunc);
  check(file_.good(), "{}: cannot be written: {}; check the run directory", path_, system_error_text());
  write_event(message(3, "brain.Event:2"), 0);
  const std::string start = tag(1, Wire::varint) + varint(1);  // SessionLog.status = START
  if (resumed_step > 0) write_event(message(7, start), resumed_step + 1);
}

void TensorboardWriter::scalars(int64_t step, const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [name, value] : values) {
    summary += message(1, message(1, name) + tag(2, Wire::fixed32) + bytes_of(static_cast<float>(value)));
  }
  write_event(message(5, summary), step);
}

// Event: wall_time = 1 (double), step = 2, file_version = 3, summary = 5, session_log = 7.
void TensorboardWriter::write_event(std::string_view fields, int64_t step) {
  std::string event = tag(1, Wire::fixed64) + bytes_of(now());
  event += tag(2, Wire::varint) + varint(static_cast<uint64_t>(step)) + std::string(fields);
  const std::string length = bytes_of(static_cast<uint64_t>(event.size()));
  errno = 0;
  file_ << length + bytes_of(masked_crc(length)) + event + bytes_of(masked_crc(event)) << std::flush;
  check(file_.good(), "{}: writing failed: {}; free space there", path_, system_error_text());
}

}  // namespace egmla

#include "io/seal.h"

#include <fcntl.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <bit>
#include <filesystem>
#include <optional>

#include "core/check.h"
#include "core/files.h"

namespace egmla {
namespace {

static_assert(std::endian::native == std::endian::little, "the trailer is written as it lies in memory");
static_assert(sizeof(FileSpan) == 16);

constexpr uint64_t kMagic = 0x4c4145534c4d4745u;  // "EGMLSEAL"

struct Footer {
  uint64_t spans = 0;
  uint64_t checksum = 0;
  uint64_t magic = kMagic;
};

class File {
 public:
  File(const std::string& path, int flags) : path_(path), fd_(::open(path.c_str(), flags | O_CLOEXEC)) {
    check_usage(fd_ >= 0, "{}: cannot be opened: {}; check the path", path, system_error_text());
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(fd_); }

  bool read(void* target, uint64_t bytes, uint64_t at) const {
    const ssize_t got = ::pread(fd_, target, bytes, static_cast<off_t>(at));
    return got == static_cast<ssize_t>(bytes);
  }

  void write(const void* source, uint64_t bytes, uint64_t at) const {
    const char* next = static_cast<const char*>(source);
    while (bytes > 0) {
      const ssize_t put = ::pwrite(fd_, next, bytes, static_cast<off_t>(at));
      check(put > 0, "{}: writing the seal failed: {}; free space there", path_, system_error_text());
      next += put;
      at += static_cast<uint64_t>(put);
      bytes -= static_cast<uint64_t>(put);
    }
  }

 private:
  std::string path_;
  int fd_;
};

// CRC-32 of [0, end) without the spans (sorted); nothing when a span lies outside or the bytes cannot be read.
std::optional<uint64_t> checksum_outside(const File& file, const std::vector<FileSpan>& spans, uint64_t end) {
  std::vector<unsigned char> block(1 << 20);
  uLong crc = 0;
  uint64_t at = 0;
  for (size_t i = 0; i <= spans.size(); ++i) {
    const FileSpan next = i < spans.size() ? spans[i] : FileSpan{end, 0};
    if (next.begin < at || next.begin > end || next.size > end - next.begin) return std::nullopt;
    while (at < next.begin) {
      const uint64_t bytes = std::min<uint64_t>(block.size(), next.begin - at);
      if (!file.read(block.data(), bytes, at)) return std::nullopt;
      crc = crc32_z(crc, block.data(), bytes);
      at += bytes;
    }
    at += next.size;
  }
  return crc;
}

}  // namespace

void append_seal(const std::string& path, std::vector<FileSpan> exempt) {
  std::sort(exempt.begin(), exempt.end());
  const File file(path, O_RDWR);
  uint64_t end = std::filesystem::file_size(path);
  Footer footer{.spans = exempt.size()};
  const auto put = [&](const void* data, uint64_t bytes) {
    file.write(data, bytes, end);
    end += bytes;
  };
  put(exempt.data(), exempt.size() * sizeof(FileSpan));
  put(&footer.spans, sizeof footer.spans);
  const auto checksum = checksum_outside(file, exempt, end);
  check(checksum.has_value(), "{}: sealing failed: {}", path, system_error_text());
  footer.checksum = *checksum;
  put(&footer.checksum, sizeof footer.checksum);
  put(&footer.magic, sizeof footer.magic);
}

SealState check_seal(const std::string& path) {
  const File file(path, O_RDONLY);
  const uint64_t size = std::filesystem::file_size(path);
  Footer footer;
  if (size < sizeof footer || !file.read(&footer, sizeof footer, size - sizeof footer) || footer.magic != kMagic) {
    return SealState::absent;
  }
  const uint64_t room = size - sizeof footer;
  if (footer.spans > room / sizeof(FileSpan)) return SealState::broken;
  std::vector<FileSpan> spans(footer.spans);
  const uint64_t table = footer.spans * sizeof(FileSpan);
  if (!file.read(spans.data(), table, room - table)) return SealState::broken;
  const auto checksum = checksum_outside(file, spans, room + sizeof footer.spans);
  return checksum == footer.checksum ? SealState::intact : SealState::broken;
}

}  // namespace egmla

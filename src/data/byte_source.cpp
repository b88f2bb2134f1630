#include "data/byte_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "core/check.h"
#include "core/files.h"
#ifdef EGMLA_WITH_ZSTD
#include <zstd.h>
#endif

namespace egmla {

#ifdef EGMLA_WITH_ZSTD
struct ByteSource::Zstd {
  explicit Zstd(int file_descriptor)
      : file(file_descriptor), input(ZSTD_DStreamInSize()), stream(ZSTD_createDStream()) {}
  ~Zstd() {
    ZSTD_freeDStream(stream);
    ::close(file);
  }

  size_t read(const std::string& path, char* out, size_t size) {
    ZSTD_outBuffer target{out, size, 0};
    while (target.pos == 0) {
      if (pending.pos == pending.size) {
        const ssize_t count = ::read(file, input.data(), input.size());
        check_usage(count >= 0, "{}: reading failed: {}; check the disk", path, system_error_text());
        check_usage(count > 0 || frame_is_whole, "{}: truncated zstd data after {} bytes; fetch the file again", path,
                    consumed);
        if (count == 0) return 0;
        consumed += count;
        pending = {input.data(), static_cast<size_t>(count), 0};
      }
      const size_t hint = ZSTD_decompressStream(stream, &target, &pending);
      check_usage(!ZSTD_isError(hint), "{}: damaged zstd data near byte {}: {}; fetch the file again", path, consumed,
                  ZSTD_getErrorName(hint));
      frame_is_whole = hint == 0;
    }
    return target.pos;
  }

  int file;
  std::vector<char> input;
  ZSTD_DStream* stream;
  ZSTD_inBuffer pending{nullptr, 0, 0};
  bool frame_is_whole = true;
  int64_t consumed = 0;
};
#else
struct ByteSource::Zstd {
  size_t read(const std::string&, char*, size_t) { return 0; }
  int64_t consumed = 0;
};
#endif

ByteSource::ByteSource(const std::string& path) : path_(path == "-" ? "standard input" : path) {
  std::error_code ignored;
  check_usage(path == "-" || !std::filesystem::is_directory(path, ignored), "{}: is a directory; expected a text file",
              path);
  const bool zstd = path.ends_with(".zst");
#ifndef EGMLA_WITH_ZSTD
  check_usage(!zstd, "{}: this build reads no zstd; install libzstd-dev and build again, or decompress it first", path);
#endif
  const int file = path == "-" ? ::dup(STDIN_FILENO) : ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  check_usage(file >= 0, "{}: cannot be read: {}; check the path", path_, system_error_text());
#ifdef EGMLA_WITH_ZSTD
  if (zstd) {
    zstd_ = std::make_unique<Zstd>(file);
    return;
  }
#endif
  gzip_ = ::gzdopen(file, "rb");
  check(gzip_ != nullptr, "{}: zlib cannot open it", path_);
  ::gzbuffer(gzip_, 1 << 18);
}

ByteSource::~ByteSource() {
  if (gzip_ != nullptr) ::gzclose(gzip_);
}

size_t ByteSource::read(char* out, size_t size) {
  return zstd_ ? zstd_->read(path_, out, size) : read_gzip(out, size);
}

size_t ByteSource::read_gzip(char* out, size_t size) {
  const int count = ::gzread(gzip_, out, static_cast<unsigned>(std::min<size_t>(size, 1 << 30)));
  int code = Z_OK;
  const char* reason = ::gzerror(gzip_, &code);
  check_usage(code != Z_ERRNO, "{}: reading failed: {}; check the disk", path_, system_error_text());
  check_usage(count >= 0 && (code == Z_OK || code == Z_STREAM_END),
              "{}: damaged or truncated gzip data: {}; fetch the file again", path_, reason);
  return static_cast<size_t>(count);
}

int64_t ByteSource::consumed() const {
  return zstd_ ? zstd_->consumed : static_cast<int64_t>(::gzoffset(gzip_));
}

bool LineReader::next(std::string_view& line) {
  constexpr size_t kChunk = 1 << 18;
  for (size_t searched = begin_;;) {
    const size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      line = std::string_view(buffer_).substr(begin_, end + 1 - begin_);
      begin_ = end + 1;
      return true;
    }
    buffer_.erase(0, begin_);
    begin_ = 0;
    searched = buffer_.size();
    buffer_.resize(searched + kChunk);
    buffer_.resize(searched + source_.read(buffer_.data() + searched, kChunk));
    if (buffer_.size() > searched) continue;
    line = buffer_;
    begin_ = buffer_.size();
    return !line.empty();
  }
}

}  // namespace egmla

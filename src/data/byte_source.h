// The bytes of a file or of standard input, decompressed: plain and gzip by content, zstd by the name's .zst.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace egmla {

class ByteSource {
 public:
  // "-" is standard input. A usage error when the file cannot be read.
  explicit ByteSource(const std::string& path);
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;
  ~ByteSource();

  // Fills at most `size` bytes; 0 at the end. A usage error for truncated or damaged data.
  size_t read(char* out, size_t size);
  // Bytes of the file consumed so far, compressed as they are.
  int64_t consumed() const;

 private:
  struct Zstd;
  size_t read_gzip(char* out, size_t size);

  std::string path_;
  gzFile gzip_ = nullptr;  // also reads what is not compressed
  std::unique_ptr<Zstd> zstd_;
};

// Lines of a source, of any length that fits into memory.
class LineReader {
 public:
  explicit LineReader(ByteSource& source) : source_(source) {}
  // The next line with its line feed, valid until the next call; false at the end.
  bool next(std::string_view& line);

 private:
  ByteSource& source_;
  std::string buffer_;
  size_t begin_ = 0;  // of the next line
};

}  // namespace egmla
